//! Any commands in any order.

use proptest::prelude::*;

use super::*;

/// Commands that mostly make sense, on few names, so that they meet.
pub(super) fn any_command() -> impl Strategy<Value = Command> {
    let n = 0usize..4;
    let services = ["a", "b", "c", "d"];
    let nets = ["default", "red", "blue", "nope"];
    let svc = n.clone().prop_map(move |i| name(services[i]));
    let net = n.prop_map(move |i| name(nets[i]));
    let on = prop::sample::select(vec!["", "", "", "192.0.2.1", "192.0.2.2", "eth0"]);
    let port =
        (80u16..85, 80u16..82, any::<bool>(), any::<bool>(), on).prop_map(|(published, target, udp, host, on)| {
            model::PortSpec {
                // 84: the log chooses.
                published: published % 84,
                target,
                proto: if udp { model::Proto::Udp } else { model::Proto::Tcp },
                mode: if host {
                    model::PublishMode::Host
                } else {
                    model::PublishMode::Ingress
                },
                on: on.parse().unwrap(),
            }
        });
    let seen = prop::collection::vec(29_998u16..30_010, 0..9);
    let id = (1u64..6).prop_map(NodeId);
    let avail = prop::sample::select(vec![
        model::intent::Availability::Active,
        model::intent::Availability::Pause,
        model::intent::Availability::Drain,
    ]);
    let spec = (
        prop::collection::vec(net.clone(), 0..3),
        0u32..9,
        any::<bool>(),
        prop::collection::vec(port.clone(), 0..3),
    )
        .prop_map(|(networks, replicas, cmd, publish)| model::ServiceSpec {
            networks,
            replicas,
            command: if cmd { vec!["x".into()] } else { vec![] },
            publish,
            ..Default::default()
        });
    let placement = (
        any::<bool>(),
        prop::sample::select(vec![
            "",
            "node.labels.zone==1",
            "node.labels.zone!=1",
            "node.role==worker",
        ]),
        prop::option::of(svc.clone()),
        prop::option::of(svc.clone()),
        prop::option::of(1u32..3),
        0u64..2,
    )
        .prop_map(|(global, constraint, near, after, max_per_node, half)| {
            let placement = model::spec::PlacementSpec {
                constraints: Some(constraint.to_owned())
                    .filter(|c| !c.is_empty())
                    .into_iter()
                    .collect(),
                near: near.into_iter().collect(),
                after: after.into_iter().collect(),
                max_per_node,
                reserve: model::spec::Resources {
                    cpu_milli: half * 500,
                    memory: 0,
                },
                ..Default::default()
            };
            (
                if global {
                    model::spec::Mode::Global
                } else {
                    model::spec::Mode::Replicated
                },
                placement,
            )
        });
    let net_spec = (any::<bool>(), prop::option::of(0u8..3)).prop_map(|(ipv6, third)| model::NetworkSpec {
        subnet: third.map(|t| format!("10.77.{t}.0/24").parse().unwrap()),
        ipv6,
        ..Default::default()
    });
    let slots = prop::collection::vec(1u32..24, 0..8).prop_map(model::intent::SlotSet::from_iter);
    // Some of them stand beside those of global services.
    let beyond = prop::collection::vec((1u32..24, any::<bool>()), 0..8).prop_map(|v| {
        let number = |(n, of_node)| if of_node { SURGE_OF_NODE + n % 6 } else { n };
        model::intent::SlotSet::from_iter(v.into_iter().map(number))
    });
    let again = spec.clone();
    let vni = (4096u32..4100).prop_map(|v| Vni::try_from(v).unwrap());
    prop_oneof![
        (1u8..9).prop_map(|n| Command::AddNode(node(n, if n == 1 { Role::Manager } else { Role::Worker }))),
        id.clone().prop_map(|node| Command::RemoveNode { node }),
        (id.clone(), any::<bool>()).prop_map(|(node, manager)| Command::SetRole {
            node,
            role: if manager { Role::Manager } else { Role::Worker },
            rpc: manager.then(|| "198.18.0.9:2377".to_owned()),
        }),
        (id.clone(), 1u64..4).prop_map(|(node, old)| Command::RenewRaft { node, old }),
        (id.clone(), any::<bool>()).prop_map(|(node, down)| Command::SetNodeDown { node, down }),
        (id.clone(), avail).prop_map(|(node, availability)| Command::SetAvailability { node, availability }),
        (net.clone(), net_spec).prop_map(|(name, spec)| Command::CreateNetwork {
            name,
            spec,
            avoid: vec![]
        }),
        net.prop_map(|name| Command::RemoveNetwork { name }),
        (svc.clone(), spec.clone(), placement.clone()).prop_map(|(name, mut spec, (mode, placement))| {
            (spec.mode, spec.placement) = (mode, placement);
            Command::CreateService { name, spec }
        }),
        (id.clone(), 0u8..4, prop::option::of(0u32..6)).prop_map(|(node, zone, max_tasks)| Command::UpdateNode {
            node,
            update: NodeUpdate {
                labels: BTreeMap::from([("zone".to_owned(), (zone > 0).then(|| zone.to_string()))]),
                max_tasks: max_tasks.map(|n| (n > 0).then_some(n)),
                ..Default::default()
            },
        }),
        (id.clone(), 0u64..3).prop_map(|(node, cpus)| Command::SetMachine {
            node,
            machine: model::intent::Machine {
                os: "linux".into(),
                capacity: model::spec::Resources {
                    cpu_milli: cpus * 1000,
                    memory: cpus << 30
                },
                ..Default::default()
            },
        }),
        (svc.clone(), 0u32..5).prop_map(|(service, budget)| Command::Rebalance { service, budget }),
        (svc.clone(), spec).prop_map(|(name, s)| Command::UpdateService {
            name,
            update: ServiceUpdate {
                networks: Some(s.networks),
                replicas: Some(s.replicas),
                command: Some(s.command),
                publish: Some(s.publish),
                ..Default::default()
            },
        }),
        (svc.clone(), 0u32..20).prop_map(|(name, replicas)| Command::Scale { name, replicas }),
        (svc.clone(), again, placement, 0u64..40).prop_map(|(name, mut spec, (mode, placement), seen)| {
            (spec.mode, spec.placement) = (mode, placement);
            Command::ReplaceService { name, spec, seen }
        }),
        svc.clone().prop_map(|name| Command::Rollback { name }),
        (svc.clone(), 0u64..40, slots.clone(), beyond).prop_map(|(service, generation, slots, surge)| {
            Command::Advance {
                service,
                generation,
                slots,
                surge,
            }
        }),
        (svc.clone(), 0u64..40, 0..3).prop_map(|(service, generation, end)| Command::EndRollout {
            service,
            generation,
            end: [RolloutEnd::Completed, RolloutEnd::Paused, RolloutEnd::RolledBack][end as usize],
            message: String::new(),
        }),
        (svc.clone(), id.clone(), slots).prop_map(|(service, node, slots)| Command::Release { service, node, slots }),
        svc.clone().prop_map(|name| Command::RemoveService { name }),
        (svc.clone(), port.clone()).prop_map(|(service, port)| Command::Publish { service, port }),
        (svc.clone(), port).prop_map(|(service, port)| Command::Unpublish { service, port }),
        seen.prop_map(Command::SeePorts),
        (svc, id.clone(), prop::collection::vec(1u32..20, 0..4)).prop_map(|(service, node, slots)| Command::Avoid {
            service,
            node,
            slots: slots.into_iter().collect(),
        }),
        (id.clone(), vni.clone()).prop_map(|(node, vni)| Command::AssignBlock { node, vni }),
        (id, vni, prop::collection::vec(0u32..20, 0..4)).prop_map(|(node, vni, blocks)| Command::ReleaseBlocks {
            node,
            vni,
            blocks
        }),
    ]
}

/// Mostly, who sends a command has seen what it is about.
pub(super) fn aimed(log: &Log, mut command: Command) -> Command {
    let known = |s: &Name| log.state.intent.services.get(s);
    match &mut command {
        Command::ReplaceService { name, seen, .. } if *seen > 5 => *seen = known(name).map_or(0, |s| s.changed),
        Command::Advance {
            service, generation, ..
        }
        | Command::EndRollout {
            service, generation, ..
        } if *generation > 5 => {
            *generation = known(service).map_or(0, |s| s.generation);
        }
        _ => {}
    }
    command
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever the order: the invariants hold after each entry, refusals change nothing, a second machine that reads a
    /// snapshot in the middle ends in the same state, and deltas of the intent add up to it.
    #[test]
    fn any_order(commands in prop::collection::vec((any_command(), 0u64..200_000), 1..60), cut in 0usize..60) {
        let mut log = Log::new(2);
        let mut other = log.state.clone();
        let mut follower = (*log.state.intent()).clone();
        for (at, (command, step)) in commands.into_iter().enumerate() {
            log.time += step;
            let command = aimed(&log, command);
            let outcome = log.run(command.clone());
            let envelope = Envelope { request: log.index.into(), time_ms: log.time, command };
            prop_assert_eq!(other.apply(log.index, &envelope), outcome);
            if at == cut {
                other = State::decode(&other.encode().unwrap()).unwrap();
            }
            let delta = follower.delta_to(&log.state.intent());
            prop_assert!(follower.apply(delta));
            prop_assert_eq!(&follower, &*log.state.intent());
        }
        prop_assert_eq!(other, log.state);
    }

    /// Octets from outside are read or refused, never worse.
    #[test]
    fn garbage_is_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Envelope::decode(&bytes);
        let _ = State::decode(&bytes);
        bytes.insert(0, 1);
        let _ = Envelope::decode(&bytes);
        let _ = State::decode(&bytes);
    }
}
