//! Handing out and taking away evenly, in one step instead of one by one.

/// Something that has some, and can have up to a limit: a node, or all nodes of a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bin {
    /// What it has.
    pub has: u32,
    /// What it is to have.
    pub want: u32,
    /// The most that it may have; below `has` it keeps what it has.
    pub cap: u32,
    /// Of equals, the lowest gets first and gives last.
    pub tie: (u64, u64, u64),
}

impl Bin {
    fn at(&self, level: u32) -> u32 {
        level.min(self.cap).max(self.has)
    }
}

/// Hands out `count`, each to the one that has the fewest: everybody below a level is filled up to it (or to his limit), and
/// the rest goes, one each, to the first at that level. Returns what could not be handed out.
pub(super) fn up(bins: &mut [Bin], count: u32) -> u32 {
    let count64 = u64::from(count);
    let cost = |level: u32, bins: &[Bin]| -> u64 { bins.iter().map(|b| u64::from(b.at(level) - b.has)).sum() };
    let top = bins.iter().map(|b| b.cap).max().unwrap_or(0);
    let most = bins.iter().map(|b| b.has).max().unwrap_or(0);
    let (mut low, mut high) = (0, top.min(most.saturating_add(count)));
    while low < high {
        let mid = low + (high - low).div_ceil(2);
        if cost(mid, bins) <= count64 {
            low = mid;
        } else {
            high = mid - 1;
        }
    }
    let rest = count64 - cost(low, bins);
    for b in bins.iter_mut() {
        b.want = b.at(low);
    }
    let mut open: Vec<&mut Bin> = bins.iter_mut().filter(|b| b.want == low && b.cap > low).collect();
    // If anybody is left with room, they are more than the rest: else the level would be higher.
    let given = usize::try_from(rest).unwrap_or(usize::MAX).min(open.len());
    first(&mut open, given, |b| b.tie, |b| b.want += 1);
    u32::try_from(rest).unwrap_or(u32::MAX) - u32::try_from(given).unwrap_or(u32::MAX)
}

/// Takes `count` away, each from the one that has the most; all of it, if there is less.
pub(super) fn down(bins: &mut [Bin], count: u32) {
    let gain = |level: u32, bins: &[Bin]| -> u64 { bins.iter().map(|b| u64::from(b.has.saturating_sub(level))).sum() };
    let (mut low, mut high) = (0, bins.iter().map(|b| b.has).max().unwrap_or(0));
    while low < high {
        let mid = low + (high - low) / 2;
        if gain(mid, bins) <= u64::from(count) {
            high = mid;
        } else {
            low = mid + 1;
        }
    }
    let rest = u64::from(count).saturating_sub(gain(low, bins));
    let mut open: Vec<&mut Bin> = Vec::new();
    for b in bins.iter_mut() {
        b.want = b.has.min(low);
        if b.want == low && low > 0 {
            open.push(b);
        }
    }
    let rest = usize::try_from(rest).unwrap_or(usize::MAX);
    first(&mut open, rest, |b| std::cmp::Reverse(b.tie), |b| b.want -= 1);
}

/// Does `what` to the `n` first of `them` by `key`, without sorting them all.
fn first<K: Ord>(them: &mut [&mut Bin], n: usize, key: impl Fn(&Bin) -> K, what: impl Fn(&mut Bin)) {
    if n == 0 {
        return;
    }
    let n = n.min(them.len());
    if n < them.len() {
        them.select_nth_unstable_by_key(n, |b| key(b));
    }
    for b in &mut them[..n] {
        what(b);
    }
}
