//! Any order of events.

use proptest::prelude::*;

use super::*;

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
