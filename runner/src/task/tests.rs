//! The machine against scripts, and against any order of events.

use std::collections::BTreeMap;

use proptest::prelude::*;

use model::{
    NodeId,
    api::Assignment,
    spec::{Condition, Health, Probe, Restart},
};

use super::*;

fn bad(how: &str) -> Event {
    Event::Exited(End {
        how: how.into(),
        well: false,
    })
}

fn wanted(order: Order) -> Event {
    Event::Wanted(Box::new(order))
}

fn well() -> Event {
    Event::Exited(End {
        how: "exit status 0".into(),
        well: true,
    })
}

fn found(pid: Option<u32>, attached: bool) -> Task {
    let found = Found {
        order: order(1),
        pid,
        restarts: 3,
        recent: 0,
        attached,
        health: None,
        done: None,
    };
    Task::found(ms(0), found)
}

fn order(generation: u64) -> Order {
    Order {
        node: NodeId(1),
        task: Assignment {
            id: "web.1".parse().unwrap(),
            service: "web".parse().unwrap(),
            slot: 1,
            networks: vec!["app".parse().unwrap()],
            command: vec!["srv".into()],
            env: BTreeMap::new(),
            hostname: None,
            restart: Restart::default(),
            health: None,
            stop_grace_ms: 3000,
            drain_timeout_ms: 1000,
            generation,
        },
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn task() -> Task {
    Task::new("web.1".parse().unwrap())
}

/// Actions in a word each; reports as their state.
fn words(actions: &[Action]) -> Vec<String> {
    let word = |a: &Action| {
        Some(match a {
            Action::Attach(_) => "attach".to_owned(),
            Action::Start { restarts, .. } => format!("start {restarts}"),
            Action::Drain { .. } => "drain".to_owned(),
            Action::Probe { number, .. } => format!("probe {number}"),
            Action::Remember { done: None, .. } => return None,
            Action::Remember { recent, .. } => format!("done, {recent} restarts"),
            Action::Terminate => "term".to_owned(),
            Action::Kill => "kill".to_owned(),
            Action::Detach => "detach".to_owned(),
            Action::Forget => "forget".to_owned(),
            Action::Report(s) if s.message.is_empty() => format!("{:?}", s.state),
            Action::Report(s) => format!("{:?}: {}", s.state, s.message),
        })
    };
    actions.iter().filter_map(word).collect()
}

/// Plays a script of (ms, event, expected words).
fn play(task: &mut Task, script: &[(u64, Event, &[&str])]) {
    for (at, event, expected) in script {
        let got = words(&task.handle(ms(*at), event.clone()));
        assert_eq!(got, *expected, "at {at} ms, {event:?}");
    }
}

fn running(generation: u64) -> Task {
    let mut t = task();
    play(
        &mut t,
        &[
            (0, wanted(order(generation)), &["Preparing", "attach"]),
            (1, Event::Attached { same: true }, &["Starting", "start 0"]),
            (2, Event::Started { pid: 7 }, &["Running"]),
        ],
    );
    t
}

#[test]
fn a_life() {
    let mut t = running(1);
    play(
        &mut t,
        &[
            (5, wanted(order(1)), &[]),
            (6, Event::Unwanted, &["Running: draining", "drain"]),
            (7, Event::Drained, &["term"]),
            (8, well(), &[]),
            (9, Event::Empty, &["detach"]),
            (10, Event::Detached, &["Shutdown", "forget"]),
        ],
    );
    assert!(t.is_stopped());
}

#[test]
fn a_stubborn_one_is_killed_after_its_grace() {
    let mut t = running(1);
    play(
        &mut t,
        &[
            (10, Event::Unwanted, &["Running: draining", "drain"]),
            (20, Event::Drained, &["term"]),
            (3019, Event::Tick, &[]),
            (3020, Event::Tick, &["kill"]),
            (3021, Event::Tick, &[]),
            (8020, Event::Tick, &["kill"]),
            (8030, Event::Empty, &["detach"]),
        ],
    );
}

#[test]
fn crashes_are_met_with_growing_pauses() {
    let mut t = running(1);
    let mut now = 2;
    let mut pauses = Vec::new();
    for restart in 1..=9 {
        play(&mut t, &[(now, bad("exit status 1"), &["kill"])]);
        let report = words(&t.handle(ms(now), Event::Empty));
        assert!(
            report[0].starts_with("Failed: exit status 1, next try in "),
            "{report:?}"
        );
        let until = t.next_timer().unwrap();
        pauses.push((until - ms(now)).as_millis());
        now = until.as_millis() as u64;
        assert_eq!(words(&t.handle(ms(now - 1), Event::Tick)), [""; 0]);
        let start = format!("start {restart}");
        play(
            &mut t,
            &[
                (now, Event::Tick, &["Starting", &start]),
                (now, Event::Started { pid: 8 }, &["Running"]),
            ],
        );
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600]);
    // Ten seconds of running make it sound again.
    play(&mut t, &[(now + 10_000, bad("killed by SIGSEGV"), &["kill"])]);
    play(
        &mut t,
        &[(
            now + 10_000,
            Event::Empty,
            &["Failed: killed by SIGSEGV, next try in 0.1 s"],
        )],
    );
}

#[test]
fn a_new_generation_stops_then_starts() {
    let mut t = running(1);
    play(
        &mut t,
        &[
            (5, wanted(order(2)), &["Running: draining", "drain"]),
            (6, wanted(order(3)), &[]),
            (7, Event::Drained, &["term"]),
            (8, Event::Empty, &["detach"]),
            (9, Event::Detached, &["Shutdown", "Preparing", "attach"]),
            (10, Event::Attached { same: true }, &["Starting", "start 1"]),
        ],
    );
    assert_eq!(t.current.unwrap().task.generation, 3);
}

#[test]
fn another_grace_needs_no_restart() {
    let mut t = running(1);
    let mut longer = order(1);
    longer.task.stop_grace_ms = 60_000;
    play(
        &mut t,
        &[
            (5, wanted(longer), &[]),
            (6, Event::Unwanted, &["Running: draining", "drain"]),
            (10, Event::Drained, &["term"]),
        ],
    );
    assert_eq!(t.next_timer(), Some(ms(60_010)));
}

#[test]
fn another_node_id_is_another_life() {
    let mut t = running(1);
    let mut elsewhere = order(1);
    elsewhere.node = NodeId(9);
    play(&mut t, &[(5, wanted(elsewhere), &["Running: draining", "drain"])]);
}

#[test]
fn a_task_is_attached_to_all_of_its_networks() {
    let mut wanted = order(1);
    wanted.task.networks.push("db".parse().unwrap());
    let mut task = Task::new(wanted.task.id.clone());
    let actions = task.handle(Duration::ZERO, Event::Wanted(Box::new(wanted.clone())));
    let asked = actions.iter().find_map(|a| match a {
        Action::Attach(body) => Some(body),
        _ => None,
    });
    let asked = asked.unwrap();
    assert_eq!(asked.network.as_str(), "app", "the first one has the default route");
    assert_eq!(asked.further, ["db".parse().unwrap()]);
}

#[test]
fn attaching_is_tried_again() {
    let mut t = task();
    play(
        &mut t,
        &[
            (0, wanted(order(1)), &["Preparing", "attach"]),
            (
                0,
                Event::NotAttached("no block".into()),
                &["Preparing: not attached: no block; next try in 0.1 s"],
            ),
            (100, Event::Tick, &["Preparing", "attach"]),
            (
                100,
                Event::NotAttached("no block".into()),
                &["Preparing: not attached: no block; next try in 0.2 s"],
            ),
            (300, Event::Tick, &["Preparing", "attach"]),
            (301, Event::Attached { same: true }, &["Starting", "start 0"]),
        ],
    );
}

#[test]
fn a_command_that_cannot_start_asks_for_its_namespace_again() {
    let mut t = task();
    play(
        &mut t,
        &[
            (0, wanted(order(1)), &["Preparing", "attach"]),
            (1, Event::Attached { same: true }, &["Starting", "start 0"]),
            (
                2,
                Event::NotStarted("no such file".into()),
                &["Rejected: no such file, next try in 0.1 s"],
            ),
            (102, Event::Tick, &["Preparing", "attach"]),
            (103, Event::Attached { same: true }, &["Starting", "start 1"]),
        ],
    );
}

#[test]
fn unwanted_at_any_point_ends_with_the_endpoint_gone() {
    let mut t = task();
    play(
        &mut t,
        &[
            (0, wanted(order(1)), &["Preparing", "attach"]),
            (1, Event::Unwanted, &[]),
            (2, Event::NotAttached("refused".into()), &["detach"]),
            (3, Event::NotDetached("netd is away".into()), &[]),
            (103, Event::Tick, &["detach"]),
            (104, Event::Detached, &["Shutdown", "forget"]),
        ],
    );
    let mut t = running(1);
    play(
        &mut t,
        &[
            (5, bad("exit status 1"), &["kill"]),
            (6, Event::Unwanted, &[]),
            (7, Event::Empty, &["detach"]),
        ],
    );
}

#[test]
fn unwanted_and_wanted_again_while_it_stops() {
    let mut t = running(1);
    play(
        &mut t,
        &[
            (5, Event::Unwanted, &["Running: draining", "drain"]),
            (6, wanted(order(1)), &[]),
            (7, Event::Drained, &["term"]),
            (8, Event::Empty, &["detach"]),
            (9, Event::Detached, &["Shutdown", "Preparing", "attach"]),
        ],
    );
}

#[test]
fn one_that_is_found_again_goes_on() {
    let mut t = found(Some(7), true);
    play(
        &mut t,
        &[
            (1, wanted(order(1)), &[]),
            (1, Event::Reconnected, &["Running", "attach"]),
            (2, Event::Attached { same: true }, &[]),
            (3, bad("ended"), &["kill"]),
            (3, Event::Empty, &["Failed: ended, next try in 0.1 s"]),
            (103, Event::Tick, &["Starting", "start 4"]),
        ],
    );
}

#[test]
fn one_that_is_found_dead_asks_netd_first_but_not_for_long() {
    let mut dead = found(None, true);
    play(
        &mut dead,
        &[
            (1, wanted(order(1)), &[]),
            (1, Event::Reconnected, &["Starting", "start 4"]),
        ],
    );
    let mut unwanted = found(None, true);
    play(&mut unwanted, &[(1, Event::Unwanted, &["detach"])]);
    let mut alone = found(None, true);
    assert_eq!(alone.next_timer(), Some(ms(1000)));
    play(&mut alone, &[(1000, Event::Tick, &["Starting", "start 4"])]);
    let mut rebooted = found(None, false);
    play(
        &mut rebooted,
        &[
            (1, wanted(order(1)), &[]),
            (1, Event::Reconnected, &["Preparing", "attach"]),
        ],
    );
}

#[test]
fn netd_is_told_again_when_it_is_back() {
    let mut t = running(1);
    play(
        &mut t,
        &[
            (5, Event::Reconnected, &["Running", "attach"]),
            (6, Event::NotAttached("starting".into()), &[]),
            (106, Event::Tick, &["attach"]),
            (107, Event::Attached { same: false }, &["kill"]),
            (108, bad("killed by SIGKILL"), &["kill"]),
            (109, Event::Empty, &["Failed: killed by SIGKILL, next try in 0.1 s"]),
        ],
    );
}

#[test]
fn a_service_without_a_network_is_told() {
    let mut none = order(1);
    none.task.networks.clear();
    let mut t = task();
    let got = words(&t.handle(ms(0), wanted(none)));
    assert!(got.last().unwrap().contains("has no network"), "{got:?}");
    assert!(t.next_timer().is_some());
}

/// A task whose service asks for a health check, running since 2 ms.
fn checked(interval_ms: u64, retries: u32) -> Task {
    let mut order = order(1);
    order.task.health = Some(Health {
        interval_ms,
        retries,
        ..Health::of(Probe::Tcp { port: 80 })
    });
    let mut t = task();
    play(
        &mut t,
        &[
            (0, wanted(order), &["Preparing", "attach"]),
            (1, Event::Attached { same: true }, &["Starting", "start 0"]),
            (2, Event::Started { pid: 7 }, &["Running"]),
        ],
    );
    t
}

fn answer(number: u32, answer: Result<(), &str>) -> Event {
    let answer = answer.map_err(str::to_owned);
    Event::Probed { number, answer }
}

#[test]
fn health_is_told_and_the_unhealthy_are_replaced_in_place() {
    let mut t = checked(1000, 2);
    let health = |t: &Task| t.last.as_ref().unwrap().health;
    play(
        &mut t,
        &[
            (52, Event::Tick, &["probe 1"]),
            (53, answer(1, Err("refused")), &["Running: not healthy yet: refused"]),
            (103, Event::Tick, &["probe 2"]),
        ],
    );
    assert_eq!(health(&t), None);
    play(&mut t, &[(104, answer(2, Ok(())), &["Running"])]);
    assert_eq!((health(&t), t.next_timer()), (Some(true), Some(ms(1104))));
    play(
        &mut t,
        &[
            (1104, Event::Tick, &["probe 3"]),
            (
                1105,
                answer(3, Err("late")),
                &["Running: check failed 1 of 2 times: late"],
            ),
            (2105, Event::Tick, &["probe 4"]),
            (2106, answer(4, Err("late")), &["Running: unhealthy: late", "term"]),
        ],
    );
    assert_eq!(health(&t), Some(false));
    play(
        &mut t,
        &[
            // The leader's end is told when nothing of it is left.
            (2107, well(), &[]),
            (2108, Event::Empty, &["Failed: unhealthy: late, next try in 0.1 s"]),
            (2208, Event::Tick, &["Starting", "start 1"]),
            (2209, Event::Started { pid: 8 }, &["Running"]),
            (2259, Event::Tick, &["probe 1"]),
        ],
    );
    assert_eq!(health(&t), None);
}

#[test]
fn an_unhealthy_one_that_does_not_end_is_killed_and_may_be_unwanted_meanwhile() {
    let mut t = checked(100, 1);
    play(
        &mut t,
        &[
            (202, Event::Tick, &["probe 1"]),
            (203, answer(1, Err("x")), &["Running: unhealthy: x", "term"]),
            (204, Event::Unwanted, &[]),
            (3203, Event::Tick, &["kill"]),
            (3204, Event::Empty, &["detach"]),
            (3205, Event::Detached, &["Shutdown", "forget"]),
        ],
    );
}

#[test]
fn another_health_check_needs_no_restart() {
    let mut t = checked(1000, 2);
    play(
        &mut t,
        &[
            (52, Event::Tick, &["probe 1"]),
            (53, answer(1, Ok(())), &["Running"]),
            // None any more: nothing is said of its health.
            (60, wanted(order(1)), &["Running"]),
        ],
    );
    assert_eq!(t.last.as_ref().unwrap().health, None);
    assert_eq!(t.next_timer(), None);
}

fn with_restart(restart: Restart) -> Order {
    let mut o = order(1);
    o.task.restart = restart;
    o
}

#[test]
fn a_job_that_ended_well_stays_ended() {
    let mut t = running(1);
    let on_failure = Restart {
        condition: Condition::OnFailure,
        ..Restart::default()
    };
    play(
        &mut t,
        &[
            (5, wanted(with_restart(on_failure.clone())), &[]),
            (6, well(), &["kill"]),
            (7, Event::Empty, &["Complete", "done, 0 restarts", "detach"]),
            (8, wanted(with_restart(on_failure.clone())), &[]),
            (9, Event::Detached, &[]),
            (10, wanted(with_restart(on_failure)), &[]),
            (11, Event::Reconnected, &["Complete"]),
        ],
    );
    assert_eq!(t.next_timer(), None);
    // netd-run starts anew: it stays ended.
    let done = t.finished.clone();
    let again = Found {
        order: order(1),
        pid: None,
        restarts: 0,
        recent: 0,
        attached: false,
        health: None,
        done,
    };
    let mut again = Task::found(ms(0), again);
    play(
        &mut again,
        &[
            (0, Event::Reconnected, &["Complete"]),
            (1, Event::Unwanted, &["forget"]),
        ],
    );
    // Another generation is another task.
    play(&mut t, &[(20, wanted(order(2)), &["Preparing", "attach"])]);
}

#[test]
fn restarts_that_are_used_up_are_told() {
    let mut t = running(1);
    let twice = Restart {
        max_attempts: Some(1),
        ..Restart::default()
    };
    play(
        &mut t,
        &[
            (5, wanted(with_restart(twice)), &[]),
            (6, bad("exit status 1"), &["kill"]),
            (7, Event::Empty, &["Failed: exit status 1, next try in 0.1 s"]),
            (107, Event::Tick, &["Starting", "start 1"]),
            (108, Event::Started { pid: 9 }, &["Running"]),
            (109, bad("exit status 1"), &["kill"]),
            (
                110,
                Event::Empty,
                &[
                    "Failed: exit status 1, restarts on this node are used up",
                    "done, 1 restarts",
                    "detach",
                ],
            ),
            (111, Event::Detached, &[]),
        ],
    );
    assert!(t.last.as_ref().unwrap().exhausted);
    // More are allowed: it goes on.
    play(&mut t, &[(200, wanted(order(1)), &["Preparing", "attach"])]);
}

#[test]
fn one_that_is_not_wanted_any_more_while_its_end_is_carried_out_is_forgotten() {
    let mut t = running(1);
    let never = Restart {
        condition: Condition::None,
        ..Restart::default()
    };
    play(
        &mut t,
        &[
            (5, wanted(with_restart(never)), &[]),
            (6, bad("killed by SIGKILL"), &["kill"]),
            (
                7,
                Event::Empty,
                &["Failed: killed by SIGKILL, not restarted", "done, 0 restarts", "detach"],
            ),
            (8, Event::Unwanted, &[]),
            (9, Event::Detached, &["forget"]),
        ],
    );
}

fn any_order(generation: u64, n: u32) -> Order {
    let mut o = order(generation);
    if n > 0 {
        o.task.health = Some(Health {
            retries: n,
            ..Health::of(Probe::Tcp { port: 80 })
        });
        o.task.restart.max_attempts = Some(n);
    }
    o
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1u64..3, 0u32..3).prop_map(|(g, n)| wanted(any_order(g, n))),
        Just(Event::Unwanted),
        Just(Event::Reconnected),
        any::<bool>().prop_map(|same| Event::Attached { same }),
        Just(Event::NotAttached("x".into())),
        Just(Event::Started { pid: 7 }),
        Just(Event::NotStarted("x".into())),
        Just(bad("x")),
        Just(well()),
        (0u32..4, any::<bool>()).prop_map(|(n, well)| answer(n, if well { Ok(()) } else { Err("x") })),
        Just(Event::Empty),
        Just(Event::Drained),
        Just(Event::Detached),
        Just(Event::NotDetached("x".into())),
        Just(Event::Tick),
    ]
}

/// The world as the machine's actions make it: which requests are open, whether a process lives.
#[derive(Default)]
struct World {
    attach: u32,
    start: bool,
    drain: bool,
    detach: bool,
    endpoint: bool,
    lives: bool,
    asked_to_end: bool,
    forgotten: bool,
}

impl World {
    fn apply(&mut self, actions: Vec<Action>) {
        for a in actions {
            let first = matches!(a, Action::Attach(_) | Action::Report(_) | Action::Forget);
            assert!(first || !self.forgotten, "{a:?}");
            match a {
                Action::Attach(_) => {
                    self.attach += 1;
                    self.forgotten = false;
                }
                Action::Start { .. } => {
                    assert!(!self.start && !self.lives, "two at once");
                    self.start = true;
                }
                Action::Drain { .. } => self.drain = true,
                Action::Terminate | Action::Kill => self.asked_to_end = true,
                Action::Detach => {
                    assert!(!self.lives && !self.start, "its namespace is taken from under it");
                    self.detach = true;
                }
                Action::Report(_) | Action::Probe { .. } | Action::Remember { .. } => {}
                Action::Forget => {
                    assert!(!self.lives && !self.start && !self.endpoint);
                    self.forgotten = true;
                }
            }
        }
    }

    /// Answers one open request; `luck`: whether it succeeds.
    fn answer(&mut self, luck: bool) -> Option<Vec<Event>> {
        if self.attach > 0 {
            self.attach -= 1;
            if !luck {
                return Some(vec![Event::NotAttached("x".into())]);
            }
            self.endpoint = true;
            return Some(vec![Event::Attached { same: true }]);
        }
        if std::mem::take(&mut self.start) {
            if !luck {
                return Some(vec![Event::NotStarted("x".into())]);
            }
            self.lives = true;
            self.asked_to_end = false;
            return Some(vec![Event::Started { pid: 7 }]);
        }
        if std::mem::take(&mut self.drain) {
            return Some(vec![Event::Drained]);
        }
        if self.asked_to_end && self.lives {
            self.lives = false;
            return Some(vec![bad("x"), Event::Empty]);
        }
        if std::mem::take(&mut self.detach) {
            if !luck {
                return Some(vec![Event::NotDetached("x".into())]);
            }
            self.endpoint = false;
            return Some(vec![Event::Detached]);
        }
        None
    }
}

proptest! {
    /// No order of events, however foolish, panics; a timer never lies in the past for ever.
    #[test]
    fn any_order_of_events_is_survived(events in prop::collection::vec(any_event(), 0..60)) {
        let mut t = task();
        for (n, e) in events.into_iter().enumerate() {
            let now = ms(n as u64 * 50);
            t.handle(now, e);
            for _ in 0..3 {
                if t.next_timer().is_some_and(|at| at <= now) {
                    t.handle(now, Event::Tick);
                }
            }
            prop_assert!(t.next_timer().is_none_or(|at| at > now));
        }
    }

    /// Whatever was wished for in between and however unlucky it went: in the end what runs is what is wanted.
    #[test]
    fn the_last_wish_comes_true(
        wishes in prop::collection::vec((prop::option::of(1u64..4), 0usize..6), 1..12),
        luck in prop::collection::vec(any::<bool>(), 64),
        crashes in any::<bool>(),
    ) {
        let mut t = task();
        let mut world = World::default();
        let mut now = ms(0);
        let mut luck = luck.into_iter();
        let mut last = None;
        for (wish, steps) in wishes {
            last = wish;
            let event = wish.map_or(Event::Unwanted, |g| wanted(order(g)));
            world.apply(t.handle(now, event));
            for _ in 0..steps {
                now += ms(40);
                if let Some(events) = world.answer(luck.next().unwrap_or(true)) {
                    for e in events {
                        world.apply(t.handle(now, e));
                    }
                }
                if crashes && world.lives && steps == 5 {
                    world.lives = false;
                    world.apply(t.handle(now, bad("crash")));
                    world.apply(t.handle(now, Event::Empty));
                }
                world.apply(t.handle(now, Event::Tick));
            }
        }
        for _ in 0..200 {
            now += ms(500);
            while let Some(events) = world.answer(true) {
                for e in events {
                    world.apply(t.handle(now, e));
                }
            }
            world.apply(t.handle(now, Event::Tick));
        }
        match last {
            Some(g) => {
                prop_assert!(world.lives && world.endpoint);
                prop_assert_eq!(t.current.as_ref().map(|o| o.task.generation), Some(g));
            }
            None => {
                prop_assert!(!world.lives && !world.endpoint && world.forgotten);
                prop_assert!(t.is_stopped());
            }
        }
    }
}
