//! The configuration of `HAProxy`.

use std::fmt::Write as _;

use super::{Rule, Setup};

pub(super) fn text(setup: &Setup) -> String {
    let (balance, stream) = match setup.rule {
        Rule::HaproxySource => ("balance source\n", false),
        Rule::HaproxyStream => ("balance source\n", true),
        Rule::HaproxyConsistent => ("balance source\nhash-type consistent\n", false),
        Rule::HaproxyTable => {
            ("balance roundrobin\nstick-table type ip size 100k expire 3h peers own\nstick on src\n", false)
        }
        _ => ("balance roundrobin\ncookie route insert indirect nocache\n", false),
    };
    let (mode, check) = if stream { ("tcp", "") } else { ("http", " check") };
    let mut text = format!(
        "global\nlocalpeer own\nstats socket {} mode 600 level admin\ndefaults\nmode {mode}\ntimeout connect 1s\n\
         timeout client 5s\ntimeout server 5s\nretries 2\noption redispatch\npeers own\npeer own 127.0.0.1:10000\n\
         listen web\nbind :{}\n{balance}",
        setup.socket().display(),
        setup.target.port()
    );
    if !stream {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "option httpchk GET {}", setup.health);
        text += "default-server inter 500ms fastinter 200ms fall 3 rise 2\n";
    }
    for server in &setup.servers {
        let cookie = if setup.rule == Rule::HaproxyCookie { format!(" cookie {}", server.name) } else { String::new() };
        let _ = writeln!(text, "server {} {}{check} weight {}{cookie}", server.name, server.address, server.weight);
    }
    text
}
