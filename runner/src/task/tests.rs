//! The machine against scripts, and against any order of events.

mod any;
mod health;
mod restart;

use std::collections::BTreeMap;

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

fn answer(number: u32, answer: Result<(), &str>) -> Event {
    let answer = answer.map_err(str::to_owned);
    Event::Probed { number, answer }
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
