//! Rollouts by tables, and by chance against the real state machine and made-up runners.

mod world;

use model::{
    ServiceSpec,
    intent::{Rollout, RolloutState},
    spec::{FailureAction, Order, RollingUpdate},
};
use proptest::prelude::*;

use super::*;
use world::{World, spec};

fn rules(parallelism: u32, order: Order, action: FailureAction) -> RollingUpdate {
    RollingUpdate {
        parallelism,
        order,
        failure_action: action,
        monitor_ms: 500,
        ..RollingUpdate::default()
    }
}

fn with(command: &str, replicas: u32, update: RollingUpdate) -> ServiceSpec {
    ServiceSpec {
        replicas,
        update: update.clone(),
        rollback: RollingUpdate {
            failure_action: FailureAction::Pause,
            ..update
        },
        ..spec(command)
    }
}

fn rollout(w: &World) -> Rollout {
    w.service().rollout.clone().expect("a rollout")
}

#[test]
fn slots_are_replaced_some_at_a_time() {
    for (parallelism, order, most) in [
        (1, Order::StopFirst, 1),
        (2, Order::StopFirst, 2),
        (0, Order::StopFirst, 6),
        (1, Order::StartFirst, 0),
        (4, Order::StartFirst, 0),
        (0, Order::StartFirst, 0),
    ] {
        let mut w = World::new(3, with("a", 6, rules(parallelism, order, FailureAction::Pause)));
        w.run(5_000);
        w.replace(with("b", 6, rules(parallelism, order, FailureAction::Pause)));
        (w.least, w.fewest) = (6 - most, 6);
        w.finish(60_000);
        assert_eq!(rollout(&w).state, RolloutState::Completed, "{parallelism} {order:?}");
        assert!(rollout(&w).surge.is_empty());
        assert_eq!(w.running("b"), 6, "{parallelism} {order:?}");
        assert_eq!(w.places(), 6, "nothing else is left");
        if order == Order::StopFirst {
            assert_eq!(w.fewest, w.least, "as fast as it may: {parallelism}");
        }
    }
}

#[test]
fn what_is_changed_around_the_tasks_replaces_none() {
    let rules = rules(1, Order::StopFirst, FailureAction::Pause);
    let mut w = World::new(3, with("a", 3, rules.clone()));
    w.run(5_000);
    let before = w.service().generation;
    w.replace(ServiceSpec {
        drain_timeout_ms: 1,
        ..with("a", 4, rules)
    });
    assert_eq!((w.service().generation, w.service().rollout.clone()), (before, None));
    w.finish(5_000);
    assert_eq!(w.running("a"), 4);
}

#[test]
fn a_change_that_fails_stops_at_the_first() {
    for order in [Order::StopFirst, Order::StartFirst] {
        let mut w = World::new(3, with("a", 6, rules(1, order, FailureAction::Pause)));
        w.run(5_000);
        w.replace(with("broken", 6, rules(1, order, FailureAction::Pause)));
        w.least = if order == Order::StartFirst { 6 } else { 5 };
        w.run(30_000);
        let r = rollout(&w);
        assert_eq!(r.state, RolloutState::Paused, "{order:?}");
        assert!(r.message.contains("1 of 6 tasks failed: web."), "{}", r.message);
        assert!(r.message.contains("exit status 1"), "{}", r.message);
        // The canary of start-first is one more than was asked for: nothing that ran was touched.
        assert_eq!(w.running("a"), w.least);
        // Another change goes on from there.
        w.least = if order == Order::StartFirst { 6 } else { 4 };
        w.replace(with("b", 6, rules(2, order, FailureAction::Pause)));
        w.finish(60_000);
        assert_eq!(rollout(&w).state, RolloutState::Completed);
        assert_eq!((w.running("b"), w.places()), (6, 6));
    }
}

#[test]
fn a_paused_change_goes_on_when_it_is_asked_for_again() {
    let rule = |action| rules(3, Order::StopFirst, action);
    let mut w = World::new(3, with("a", 6, rule(FailureAction::Pause)));
    w.run(5_000);
    w.replace(with("broken", 6, rule(FailureAction::Pause)));
    w.run(30_000);
    assert_eq!(rollout(&w).state, RolloutState::Paused);
    w.replace(with("broken", 6, rule(FailureAction::Continue)));
    assert_eq!(rollout(&w).state, RolloutState::Updating);
    w.finish(60_000);
    let r = rollout(&w);
    assert_eq!(r.state, RolloutState::Completed);
    assert!(r.message.contains("6 of 6 tasks failed"), "{}", r.message);
}

#[test]
fn a_change_that_fails_goes_back_by_itself() {
    for order in [Order::StopFirst, Order::StartFirst] {
        let mut w = World::new(3, with("a", 6, rules(2, order, FailureAction::Pause)));
        w.run(5_000);
        let (before, tasks) = (w.service().generation, w.tasks_of("a"));
        w.replace(with("broken", 6, rules(2, order, FailureAction::Rollback)));
        w.least = if order == Order::StartFirst { 6 } else { 4 };
        w.finish(60_000);
        let r = rollout(&w);
        assert_eq!(r.state, RolloutState::RollbackCompleted, "{order:?}");
        assert!(r.message.contains("exit status 1"), "why is still told: {}", r.message);
        let s = w.service();
        assert_eq!((s.spec.command[0].as_str(), s.generation), ("a", before));
        assert_eq!((s.previous.clone(), w.running("a"), w.places()), (None, 6, 6));
        // Tasks that the change had not reached were not touched.
        let kept = w.tasks_of("a").intersection(&tasks).count();
        assert_eq!(kept, if order == Order::StartFirst { 6 } else { 4 });
    }
}

#[test]
fn some_failures_may_be_allowed() {
    let rule = RollingUpdate {
        max_failure_permille: 200,
        ..rules(1, Order::StopFirst, FailureAction::Pause)
    };
    let mut w = World::new(3, with("a", 6, rule.clone()));
    w.run(5_000);
    // One of six is 167 thousandths.
    w.cursed = Some(3);
    w.replace(with("b", 6, rule));
    w.finish(60_000);
    let r = rollout(&w);
    assert_eq!(r.state, RolloutState::Completed);
    assert!(r.message.contains("1 of 6 tasks failed: web.3"), "{}", r.message);
}

#[test]
fn a_person_goes_back_half_way() {
    let rule = rules(1, Order::StopFirst, FailureAction::Pause);
    let mut w = World::new(3, with("a", 6, rule.clone()));
    w.run(5_000);
    w.replace(with("b", 6, rule));
    while w.running("b") < 3 {
        w.run(50);
    }
    let untouched = w.tasks_of("a");
    w.command(Command::Rollback { name: w.name() });
    assert_eq!(rollout(&w).state, RolloutState::RollbackStarted);
    w.finish(60_000);
    assert_eq!(rollout(&w).state, RolloutState::RollbackCompleted);
    assert_eq!((w.running("a"), w.places()), (6, 6));
    assert!(untouched.is_subset(&w.tasks_of("a")), "they run what is asked for");
    // And there again.
    w.command(Command::Rollback { name: w.name() });
    w.finish(60_000);
    assert_eq!(w.running("b"), 6);
}

#[test]
fn another_change_in_the_middle_drags_nobody_to_a_third() {
    for order in [Order::StopFirst, Order::StartFirst] {
        let rule = rules(1, order, FailureAction::Pause);
        let mut w = World::new(3, with("a", 6, rule.clone()));
        w.run(5_000);
        w.replace(with("b", 6, rule.clone()));
        w.least = if order == Order::StartFirst { 6 } else { 5 };
        while w.running("b") < 3 {
            w.run(50);
        }
        w.replace(with("c", 6, rule.clone()));
        assert_eq!(rollout(&w).pending.len(), 2, "what runs a, and what runs b");
        // Whoever goes back gets what was proved, not what was given up.
        assert_eq!(w.service().previous.as_ref().map(|p| p.command[0].as_str()), Some("a"));
        w.finish(90_000);
        assert_eq!((w.running("c"), w.places()), (6, 6), "{order:?}");
    }
}

#[test]
fn start_first_without_room_stops_first() {
    // A paused node takes nothing more.
    let rule = rules(2, Order::StartFirst, FailureAction::Pause);
    let mut w = World::new(1, with("a", 4, rule.clone()));
    w.run(5_000);
    w.command(Command::SetAvailability {
        node: NodeId(1),
        availability: model::intent::Availability::Pause,
    });
    w.replace(with("b", 4, rule));
    w.least = 2;
    w.finish(60_000);
    assert_eq!(w.running("b"), 4);
}

#[test]
fn a_drained_node_keeps_its_tasks_until_others_are_ready() {
    let rule = rules(1, Order::StopFirst, FailureAction::Pause);
    let mut w = World::new(3, with("a", 6, rule));
    w.run(5_000);
    w.least = 6;
    w.command(Command::SetAvailability {
        node: NodeId(2),
        availability: model::intent::Availability::Drain,
    });
    w.run(10_000);
    assert_eq!((w.running("a"), w.places()), (6, 6));
    assert!(w.intent().tasks_on(NodeId(2)).next().is_none());
    // The last node goes: there is no other place, so they go on where they are, and it is told.
    for n in [1, 3] {
        w.command(Command::SetAvailability {
            node: NodeId(n),
            availability: model::intent::Availability::Drain,
        });
    }
    w.run(10_000);
    assert_eq!(w.running("a"), 6);
    assert!(w.service().problem.is_some());
    // One comes back, and takes those that have no other.
    w.command(Command::SetAvailability {
        node: NodeId(2),
        availability: model::intent::Availability::Active,
    });
    w.finish(20_000);
    assert_eq!((w.running("a"), w.places(), w.service().problem.clone()), (6, 6, None));
    assert_eq!(w.intent().tasks_on(NodeId(2)).count(), 6);
}

#[test]
fn a_delay_lies_between_batches() {
    let rule = RollingUpdate {
        delay_ms: 3_000,
        ..rules(2, Order::StopFirst, FailureAction::Pause)
    };
    let mut w = World::new(2, with("a", 4, rule.clone()));
    w.run(5_000);
    w.replace(with("b", 4, rule));
    let took = w.finish(60_000);
    assert!((3_000 + 1_000..9_000).contains(&took), "{took}");
}

/// What may happen in the middle.
#[derive(Debug, Clone)]
enum Event {
    Update(char),
    Scale(u32),
    Rollback,
    Drain(u64),
    Activate(u64),
    Die(u64),
    Return(u64),
    NewLeader,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        prop::char::range('b', 'e').prop_map(Event::Update),
        (0..8u32).prop_map(Event::Scale),
        Just(Event::Rollback),
        (1..=4u64).prop_map(Event::Drain),
        (1..=4u64).prop_map(Event::Activate),
        (1..=4u64).prop_map(Event::Die),
        (1..=4u64).prop_map(Event::Return),
        Just(Event::NewLeader),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::StopFirst), Just(Order::StartFirst)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// While nothing dies and nothing is scaled: never more away than may be, whatever is changed, taken back or drained.
    #[test]
    fn as_many_are_ready_as_was_promised(
        seed in any::<u64>(),
        replicas in 1..8u32,
        parallelism in 1..4u32,
        order in order(),
        events in prop::collection::vec((0..6_000u64, event()), 0..6),
    ) {
        let rule = rules(parallelism, order, FailureAction::Pause);
        let mut w = World::seeded(4, with("a", replicas, rule.clone()), seed);
        w.run(5_000);
        w.replace(with("b", replicas, rule.clone()));
        w.least = match order {
            Order::StartFirst => replicas,
            Order::StopFirst => replicas.saturating_sub(parallelism),
        };
        for (wait, e) in events {
            w.run(wait);
            match e {
                Event::Update(c) => w.replace(with(&c.to_string(), replicas, rule.clone())),
                Event::Rollback => w.try_command(Command::Rollback { name: w.name() }),
                Event::Drain(n) if n > 2 => w.drain(n),
                Event::Activate(n) => w.activate(n),
                Event::NewLeader => w.forget(),
                _ => {}
            }
        }
        w.finish(200_000);
        prop_assert_eq!(w.places(), replicas);
        let command = w.service().spec.command[0].clone();
        prop_assert_eq!(w.running(&command), replicas);
    }

    /// Whatever happens, it comes to an end, with what was asked for last.
    #[test]
    fn it_ends_whatever_happens(
        seed in any::<u64>(),
        parallelism in 0..4u32,
        order in order(),
        events in prop::collection::vec((0..4_000u64, event()), 0..12),
    ) {
        let rule = rules(parallelism, order, FailureAction::Continue);
        let mut w = World::seeded(4, with("a", 4, rule.clone()), seed);
        w.run(5_000);
        for (wait, e) in events {
            w.run(wait);
            match e {
                Event::Update(c) => {
                    let replicas = w.service().spec.replicas;
                    w.replace(with(&c.to_string(), replicas, rule.clone()));
                }
                Event::Scale(n) => w.command(Command::Scale { name: w.name(), replicas: n }),
                Event::Rollback => w.try_command(Command::Rollback { name: w.name() }),
                Event::Drain(n) => w.drain(n),
                Event::Activate(n) => w.activate(n),
                Event::Die(n) if n > 1 => w.die(n),
                Event::Return(n) => w.revive(n),
                _ => w.forget(),
            }
        }
        for n in 1..=4 {
            w.revive(n);
            w.activate(n);
        }
        w.finish(400_000);
        let replicas = w.service().spec.replicas;
        prop_assert_eq!(w.places(), replicas);
        let command = w.service().spec.command[0].clone();
        prop_assert_eq!(w.running(&command), replicas);
    }
}
