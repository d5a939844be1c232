//! Health checks.

use super::*;

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
