//! What follows an end.

use super::*;

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
