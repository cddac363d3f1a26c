//! Tests of programs that have the code of certain features only, and of richer programs that replace them.

use std::collections::BTreeSet;

use anyhow::Result;
use aya::programs::loaded_programs;
use balancer_common::{features::Features, map_types::Forwarding};
use balancer_control::{features, io::ServiceSpec};
use balancer_dataplane::{
    Dataplane as _, KernelDataplane,
    telling::{Filter, PROGRAM},
};
use balancer_runtime::supervisor::Supervisor;
use balancer_testkit::rig::enter_namespace;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::scene::{CAPACITY, Scene, XDP_PASS, XDP_TX, apart, backend, service};

#[test]
fn when_a_service_needs_a_feature_then_it_waits_for_the_richer_program() {
    apart(|| {
        let mut scene = Scene::start(Features::NONE)?;
        let poor = scene.program();
        let nat = service(Forwarding::Nat);
        let refused = scene.publish(&nat).unwrap_err().to_string();
        assert_eq!(refused, "the kernel program that runs has no code for nat");
        assert_eq!(scene.action(), XDP_PASS);

        let needed = features::of_published(&nat);
        assert_eq!(scene.extend(needed)?, Some(needed));
        assert_ne!(scene.program().id(), poor.id());
        assert_eq!(scene.program().name_as_str(), Some("balancer"));
        assert!(loaded_programs().filter_map(Result::ok).all(|program| program.id() != poor.id()), "it stays loaded");
        scene.publish(&nat)?;
        assert_eq!(scene.action(), XDP_TX);

        let richer = scene.program().id();
        assert_eq!(scene.extend(needed)?, None);
        assert_eq!(scene.program().id(), richer);
        let ruled = ServiceSpec { rules: true, ..nat };
        assert!(scene.publish(&ruled).unwrap_err().to_string().ends_with("no code for rules"));
        assert_eq!(scene.extend(features::of_published(&ruled))?, Some(needed | Features::RULES));
        scene.publish(&ruled)?;
        assert_eq!(scene.action(), XDP_TX);
        Ok(())
    });
}

#[test]
fn when_the_kernel_refuses_a_richer_program_then_the_present_one_goes_on_and_a_later_attempt_succeeds() {
    apart(|| {
        let nat = service(Forwarding::Nat);
        let mut scene = Scene::start(features::of_published(&nat))?;
        scene.publish(&nat)?;
        let before = scene.program().id();
        let dsr = service(Forwarding::Dsr);
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, 10, hard)?;
        let refused = scene.extend(features::of_published(&dsr));
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        let refused = format!("{:#}", refused.unwrap_err());
        assert!(
            refused.starts_with("a kernel program with IPv4, dsr: ") && refused.contains("os error 24"),
            "{refused}"
        );
        assert_eq!((scene.program().id(), scene.action()), (before, XDP_TX));
        assert!(scene.publish(&dsr).unwrap_err().to_string().ends_with("no code for dsr"));

        let told = scene.attacher.tell(&mut scene.attached, &filter())?;
        assert_eq!((scene.program().name_as_str(), scene.action()), (Some(PROGRAM), XDP_TX));
        scene.attacher.tell_no_more(&mut scene.attached);
        drop(told);
        assert_eq!((scene.program().id(), scene.action()), (before, XDP_TX));

        assert!(scene.extend(features::of_published(&dsr))?.is_some());
        scene.publish(&dsr)?;
        assert_eq!(scene.action(), XDP_TX);
        Ok(())
    });
}

#[test]
fn when_packets_are_traced_then_the_tracing_program_gets_the_feature_and_the_plain_program_after_it() {
    apart(|| {
        let mut scene = Scene::start(Features::NONE)?;
        let nat = service(Forwarding::Nat);
        let told = scene.attacher.tell(&mut scene.attached, &filter())?;
        let poor = scene.program();
        assert_eq!((poor.name_as_str(), scene.action()), (Some(PROGRAM), XDP_PASS));
        assert!(scene.extend(features::of_published(&nat))?.is_some());
        scene.publish(&nat)?;
        let richer = scene.program();
        assert_ne!(richer.id(), poor.id());
        assert_eq!((richer.name_as_str(), scene.action()), (Some(PROGRAM), XDP_TX));
        drop(told);
        scene.attacher.tell_no_more(&mut scene.attached);
        assert_eq!((scene.program().name_as_str(), scene.action()), (Some("balancer"), XDP_TX));
        let told = scene.attacher.tell(&mut scene.attached, &filter())?;
        assert_eq!((scene.program().name_as_str(), scene.action()), (Some(PROGRAM), XDP_TX));
        drop(told);
        Ok(())
    });
}

fn filter() -> Filter {
    Filter { client: None, vips: BTreeSet::new(), only_vips: false, snaplen: 64 }
}

#[test]
fn when_the_programs_are_not_attached_yet_then_a_published_service_brings_its_features() {
    apart(|| {
        let (ifindex, other) = enter_namespace()?;
        let mut dataplane = KernelDataplane::load_kept(
            CAPACITY,
            &[ifindex, other],
            None,
            false,
            &Supervisor::default(),
            Features::NONE,
        )?;
        let nat = service(Forwarding::Nat);
        dataplane.write_backend(&backend(&nat))?;
        dataplane.swap_table(nat.id, vec![1; 251].into(), None)?;
        dataplane.publish_services(std::slice::from_ref(&nat))?;
        assert_eq!(dataplane.features(), features::of_published(&nat));
        Ok(())
    });
}
