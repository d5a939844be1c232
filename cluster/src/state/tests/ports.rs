//! Published ports.

use model::PublishMode;

use super::*;

fn publish(s: &str, port: &str) -> Command {
    Command::Publish {
        service: name(s),
        port: port.parse().unwrap(),
    }
}

fn unpublish(s: &str, port: &str) -> Command {
    Command::Unpublish {
        service: name(s),
        port: port.parse().unwrap(),
    }
}

/// The number that was given.
fn number(applied: Applied) -> u16 {
    match applied {
        Applied::Published(p) => p.published,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_log_chooses_a_port_and_keeps_it() {
    let mut log = Log::new(1);
    log.ok(service("web", 2, &["auto:80", "auto:80/udp"]));
    let given = |log: &Log| -> Vec<String> { log.service("web").ports.keys().cloned().collect() };
    assert_eq!(given(&log), ["30000/tcp", "30001/udp"]);
    // Whatever else changes.
    log.ok(scale("web", 5));
    log.ok(publish("web", "443"));
    log.ok(Command::UpdateService {
        name: name("web"),
        update: ServiceUpdate {
            command: Some(vec!["other".into()]),
            publish: Some(["53/udp", "auto:80/udp", "auto:80"].map(|p| p.parse().unwrap()).into()),
            ..Default::default()
        },
    });
    assert_eq!(given(&log), ["30000/tcp", "30001/udp", "53/udp"]);
    assert_eq!(number(log.ok(publish("web", "auto:80"))), 30_000, "asked for again");

    // Not what hosts use, nor what somebody has by number, whatever the protocol.
    assert_eq!(log.ok(Command::SeePorts(vec![80, 30_002, 30_004])), Applied::Done);
    assert_eq!(log.ok(Command::SeePorts(vec![30_002, 30_004])), Applied::Unchanged);
    log.ok(service("api", 1, &["30003/udp"]));
    assert_eq!(number(log.ok(publish("api", "auto:80"))), 30_005);
    // By number it is the holder's, which is named.
    let e = log.no(publish("api", "30000:80"));
    assert!(e.message.contains("published by the service web"), "{e}");

    // Taken away by its number or as it was asked for, it rests.
    assert_eq!(number(log.ok(unpublish("web", "30000"))), 30_000);
    assert_eq!(number(log.ok(unpublish("web", "auto:80/udp"))), 30_001);
    assert_eq!(log.service("web").spec.publish, ["53/udp".parse().unwrap()]);
    assert_eq!(number(log.ok(publish("web", "auto:80"))), 30_006);
    log.time += REST_MS;
    for (n, range) in [30_007..=30_999u16, 31_000..=31_999, 32_000..=32_767]
        .into_iter()
        .enumerate()
    {
        let all: Vec<String> = range.clone().map(|target| format!("auto:{target}")).collect();
        let one = format!("s{n}");
        log.ok(service(&one, 0, &all.iter().map(String::as_str).collect::<Vec<_>>()));
        let mut same = log
            .service(&one)
            .ports
            .values()
            .map(|p| p.spec.published == p.spec.target);
        assert!(same.all(|s| s), "in turn: {range:?}");
    }
    assert_eq!(number(log.ok(publish("web", "auto:81"))), 30_000, "rested");
    assert_eq!(number(log.ok(publish("web", "auto:82"))), 30_001);
    let e = log.no(publish("web", "auto:83"));
    assert!(
        e.message.contains("no port of 30000 to 32767") && e.hint.contains("8080:83"),
        "{e}"
    );
    log.ok(Command::SeePorts(vec![]));
    assert_eq!(
        number(log.ok(publish("web", "auto:83"))),
        30_002,
        "its host has let go of it"
    );
    log.ok(Command::RemoveService { name: name("web") });
    assert_eq!(number(log.ok(publish("api", "auto:84,mode=host"))), 30_004);
    log.no(publish("api", "auto:85,mode=host"));
    log.time += REST_MS;
    log.ok(publish("api", "auto:85,mode=host"));
}

#[test]
fn an_address_and_a_mode_count() {
    let mut log = Log::new(2);
    log.ok(service("web", 1, &["192.0.2.1:80:8080", "53/udp"]));
    for (port, holder) in [
        ("80", Some("192.0.2.1:80:8080/tcp")),
        ("192.0.2.1:80", Some("192.0.2.1:80:8080/tcp")),
        ("eth0:80", Some("192.0.2.1:80:8080/tcp")),
        ("80,mode=host", Some("192.0.2.1:80:8080/tcp")),
        ("192.0.2.2:53/udp", Some("53/udp")),
        ("192.0.2.2:80", None),
        ("80/udp", None),
    ] {
        let made = log.run(service("other", 0, &[port]));
        match holder {
            Some(held) => {
                let e = made.unwrap_err();
                assert_eq!(e.code, Code::Conflict);
                assert!(e.message.contains("published by the service web"), "{port}: {e}");
                assert!(e.hint.contains(&format!("unpublish web {held}")), "{port}: {e}");
            }
            None => {
                made.unwrap();
                log.ok(Command::RemoveService { name: name("other") });
            }
        }
    }
    // Twice in one service; one published port to two targets.
    for (ports, word) in [
        (["70", "70:81"], "twice"),
        (["70", "70,mode=host"], "twice"),
        (["70", "192.0.2.1:70"], "twice"),
        (["auto:80", "auto:80"], "twice"),
        (["192.0.2.7:80:1", "192.0.2.8:80:2"], "lead to two ports"),
    ] {
        let e = log.no(service("other", 0, &ports));
        assert!(e.message.contains(word), "{ports:?}: {e}");
    }
    log.ok(service(
        "other",
        0,
        &["192.0.2.7:80:1", "192.0.2.8:80:1", "auto:80", "auto:81"],
    ));
    let e = log.no(unpublish("other", "80"));
    assert!(e.message.contains("it publishes: 192.0.2.7:80"), "{e}");
    log.ok(unpublish("other", "192.0.2.7:80"));
    // Another holder is named where the port is its.
    let e = log.no(unpublish("other", "53/udp"));
    assert!(e.message.contains("web does"), "{e}");
}

#[test]
fn a_host_port_is_one_task_a_node() {
    let mut log = Log::new(2);
    log.ok(service("web", 2, &["80,mode=host"]));
    assert_eq!(log.placed("web"), "n1=[(1, 1)] n2=[(2, 2)]");
    // Another one may have it too, elsewhere.
    log.ok(service("api", 2, &["80:8080,mode=host", "81,mode=host"]));
    assert_eq!(log.placed("api"), "n3=[(1, 1)]");
    let problem = log.service("api").problem.clone().unwrap();
    assert!(problem.contains("80/tcp"), "{problem}");
    log.ok(scale("web", 4));
    assert_eq!(log.placed("web"), "n1=[(1, 1)] n2=[(2, 2)]", "one a node");
    assert!(log.service("web").problem.is_some());
    // A node is free again: who waited gets it.
    log.ok(scale("web", 1));
    assert_eq!(log.placed("web"), "n1=[(1, 1)]");
    assert_eq!(log.placed("api"), "n2=[(2, 2)] n3=[(1, 1)]");
    assert_eq!(log.service("api").problem, None);
    // A port of the mesh is on every node.
    let e = log.no(service("mesh", 1, &["80"]));
    assert!(
        e.message.contains("service api") || e.message.contains("service web"),
        "{e}"
    );
    // A port that a running service takes moves it off nodes where it is another's.
    log.ok(service("late", 3, &[]));
    assert_eq!(log.placed("late").matches('=').count(), 3);
    log.ok(scale("api", 1));
    let home = log.placed("api");
    log.ok(publish("late", "81,mode=host"));
    let node = home.split('=').next().unwrap();
    assert!(
        !log.placed("late").contains(&format!("{node}=")),
        "{home}, {}",
        log.placed("late")
    );
    // A successor has no room beside it.
    let mut both = service("both", 1, &["90,mode=host"]);
    if let Command::CreateService { spec, .. } = &mut both {
        spec.update.order = model::spec::Order::StartFirst;
    }
    let e = log.no(both);
    assert!(e.hint.contains("stop-first"), "{e}");
}

#[test]
fn a_name_for_its_tasks_has_no_address_of_its_own() {
    let mut log = Log::new(1);
    let dnsrr = |ports: &[&str]| {
        let mut c = service("db", 1, ports);
        if let Command::CreateService { spec, .. } = &mut c {
            spec.endpoint_mode = model::spec::EndpointMode::Dnsrr;
        }
        c
    };
    let e = log.no(dnsrr(&["5432"]));
    assert!(e.message.contains("dnsrr") && e.hint.contains("mode=host"), "{e}");
    log.ok(dnsrr(&["5432,mode=host"]));
    assert!(log.service("db").vips.is_empty());
    assert_eq!(log.service("db").ports["5432/tcp"].spec.mode, PublishMode::Host);
    let e = log.no(publish("db", "80"));
    assert!(e.message.contains("dnsrr"), "{e}");
}

#[test]
fn a_port_that_leads_elsewhere_keeps_its_mark() {
    let mut log = Log::new(1);
    let publish = |ports: &[&str]| Command::UpdateService {
        name: name("web"),
        update: ServiceUpdate {
            publish: Some(ports.iter().map(|p| p.parse().unwrap()).collect()),
            ..Default::default()
        },
    };
    let marks = |log: &Log| -> Vec<(String, u32)> {
        let ports = log.service("web").ports.values();
        ports.map(|p| (p.asked().to_string(), p.mark)).collect()
    };
    let has = |ports: &[(&str, u32)]| -> Vec<(String, u32)> {
        ports.iter().map(|(p, mark)| ((*p).to_owned(), *mark)).collect()
    };
    log.ok(service("web", 1, &["80:8080", "443"]));
    assert_eq!(marks(&log), has(&[("443/tcp", 2), ("80:8080/tcp", 1)]));
    log.ok(publish(&["80:9090", "443"]));
    assert_eq!(
        marks(&log),
        has(&[("443/tcp", 2), ("80:9090/tcp", 1)]),
        "what is established goes on"
    );
    // In another way it is another port, and what was let go rests.
    log.ok(publish(&["80:9090,mode=host", "81:443"]));
    assert_eq!(marks(&log), has(&[("80:9090/tcp,mode=host", 3), ("81:443/tcp", 4)]));
    log.ok(Command::RemoveService { name: name("web") });
    log.ok(service("web", 1, &["80:8080"]));
    assert_eq!(
        marks(&log),
        has(&[("80:8080/tcp", 5)]),
        "none was given back twice, or kept"
    );
}
