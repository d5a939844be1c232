//! Moving what runs, when somebody asks for it.

use model::{
    intent::{Availability, Placed, SlotSet},
    spec::{Mode, Strategy},
};

use super::{Fill, Host, Plan, Request, filter, moves, place, slots, strategy};

/// Places a service as if nothing ran, as far as at most `budget` slots that could stay have to move for it; then as
/// [`place`]. What no other node has room for stays. Global and random placements have nothing to even out.
pub fn rebalance(before: &Placed, hosts: &[Host<'_>], ask: &Request<'_>, budget: u32) -> Plan {
    let now = place(before, hosts, ask);
    if ask.mode == Mode::Global || ask.spec.strategy == Strategy::Random || now.unplaced > 0 {
        return now;
    }
    let filters = filter::Filters::new(ask);
    let mut ideal: Vec<Fill<'_>> = hosts
        .iter()
        .map(|host| {
            let had = now.placed.get(&host.id).map_or(0, SlotSet::len);
            // A node that is not given any may keep what it has; all others are as good as new.
            let active = host.node.availability == Availability::Active && !host.avoid;
            let verdict = filters.look(host, if active { 0 } else { had });
            Fill {
                host,
                has: 0,
                cap: verdict.cap,
                want: 0,
                liked: had,
                limit: verdict.limit,
            }
        })
        .collect();
    let count = now.placed.values().map(SlotSet::len).sum();
    strategy::fill(&mut ideal, ask, count);

    // Who has too much gives to who has too little, the most uneven first, in so many steps as are allowed.
    let has = |f: &Fill<'_>| now.placed.get(&f.host.id).map_or(0, SlotSet::len);
    let mut givers: Vec<(u32, usize)> = Vec::new();
    let mut takers: Vec<(u32, usize)> = Vec::new();
    for (i, f) in ideal.iter().enumerate() {
        let (has, want) = (has(f), f.want);
        if has > want {
            givers.push((has - want, i));
        } else if want > has {
            takers.push((want - has, i));
        }
    }
    let sum = |of: &[(u32, usize)]| of.iter().map(|o| o.0).sum::<u32>();
    let steps = sum(&givers).min(sum(&takers)).min(budget);
    let share = |from: &mut Vec<(u32, usize)>| {
        let mut bins: Vec<super::level::Bin> = from
            .iter()
            .map(|(n, i)| super::level::Bin {
                has: *n,
                want: *n,
                cap: *n,
                tie: (0, 0, *i as u64),
            })
            .collect();
        super::level::down(&mut bins, steps);
        for ((n, _), bin) in from.iter_mut().zip(bins) {
            *n -= bin.want;
        }
        from.retain(|(n, _)| *n > 0);
    };
    share(&mut givers);
    share(&mut takers);

    let mut placed = now.placed.clone();
    let mut lost = Vec::new();
    for (n, i) in givers {
        let id = ideal[i].host.id;
        let Some(slots) = placed.get_mut(&id) else { continue };
        let (stay, go) = slots::split_highest(slots, n);
        lost.extend(go.0.iter().map(|r| (*r, id)));
        *slots = stay;
    }
    lost.sort_unstable();
    let last = lost.last().map_or(0, |l| l.0.1);
    let mut queue = slots::Queue::new(slots::normal(lost.iter().map(|l| l.0).collect()));
    let mut given = Vec::new();
    for (n, i) in takers {
        let more = queue.take(n);
        given.extend(more.0.iter().map(|r| (*r, ideal[i].host.id)));
        let set = placed.entry(ideal[i].host.id).or_default();
        *set = slots::union(set, &more);
    }
    placed.retain(|_, s| !s.is_empty());
    let mut all = now.moves;
    all.extend(moves(&lost, &given, last));
    Plan {
        placed,
        moves: all,
        ..now
    }
}
