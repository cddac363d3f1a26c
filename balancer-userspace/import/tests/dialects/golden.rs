//! Converts whole sample configurations of the four programs, and compares the results with the files in `samples`.

use std::{env, fs};

use balancer_import::Dialect;

use crate::support::{SAMPLES, checked, completed, samples, text_of, try_convert};

/// `UPDATE_SAMPLES=1` makes the test write the expected results: read the differences before you commit the files.
#[test]
fn when_a_whole_configuration_is_converted_then_the_result_is_the_one_that_was_read() {
    for (dialect, sample, addresses) in SAMPLES {
        let conversion = try_convert(dialect, sample, &text_of(sample), addresses).unwrap();
        let expected = samples().join(format!("{dialect}.toml"));
        let text = format!("{}# {}\n", checked(&conversion), conversion.summary());
        if env::var_os("UPDATE_SAMPLES").is_some() {
            fs::write(&expected, &text).unwrap();
        }
        assert_eq!(text, fs::read_to_string(&expected).unwrap(), "{}", expected.display());
    }
}

#[test]
fn when_no_service_is_nat_or_snat_then_only_the_interface_of_clients_is_asked_for() {
    let rules =
        |mode: &str| format!("-A -t 198.51.100.10:80 -s sh\n-a -t 198.51.100.10:80 -r 10.0.0.11:80 {mode} -w 1\n");
    for (mode, both) in [("-g", false), ("-i", false), ("-m", true)] {
        let text = try_convert(Dialect::Ipvsadm, "rules", &rules(mode), &[]).unwrap().toml();
        assert!(text.contains("# interfaces = [\"eth0\""), "{text}");
        assert!(text.contains("where clients' packets come in"), "{text}");
        assert_eq!(text.contains(", \"eth1\"]") && text.contains("the backends' side"), both, "{text}");
    }
}

#[test]
fn when_a_service_lacks_an_address_then_it_is_valid_once_one_is_put_in() {
    let mut completed_services = 0;
    for (dialect, sample, _) in SAMPLES {
        let text = try_convert(dialect, sample, &text_of(sample), &[]).unwrap().toml();
        let whole = completed(&text, "203.0.113.10").replace(":PORT", ":443");
        // The loop skips services whose servers have host names.
        for service in whole.split("[[service]]").skip(1).filter(|service| service.contains("[[service.backend]]")) {
            let text = format!("[[service]]{service}");
            let parsed = balancer_config::file::parse("balancer.toml".as_ref(), text.as_bytes());
            assert!(parsed.is_ok(), "{}\n{text}", parsed.unwrap_err());
            completed_services += 1;
        }
    }
    assert_eq!(completed_services, 4, "nginx's and HAProxy's on every address, keepalived's and ipvsadm's by a mark");
}
