//! Planted faults, to see whether the simulator finds them. They exist with the feature `mutants` alone, which netd does
//! not compile with; without it every question is answered at compile time, and the answer is no.

/// Whether planted faults are compiled in.
pub const PLANTED: bool = cfg!(feature = "mutants");

macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Mutant {
            /// All there are.
            pub const ALL: &[Mutant] = &[$(Mutant::$name,)+];

            /// What it does wrong.
            pub fn about(self) -> &'static str {
                match self {
                    $(Mutant::$name => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }
    };
}

mutants! {
    /// skips the fsync of the log
    SkipFsync,
    /// acknowledges entries to the leader before they are written
    SpeakBeforeWrite,
    /// counts a vote twice
    CountVotesTwice,
    /// forgets its vote at a restart
    ForgetVote,
    /// applies entries before they are committed
    ApplyBeforeCommit,
    /// answers when the leader alone has written
    AnswerBeforeCommit,
    /// answers reads without asking a majority
    StaleRead,
    /// makes snapshots without the last command
    SnapshotLosesLast,
    /// keeps the old state when a snapshot is installed
    KeepOldState,
    /// forgets the ids of requests
    ForgetRequest,
    /// gives an id in Raft out again
    ReuseRaftId,
    /// begins an empty log under an id in Raft that took part
    BeginUsedId,
    /// listens to managers that were removed
    HearRemoved,
    /// frees a VIP when the leader changes
    FreeVip,
    /// gives blocks out again without a rest
    NoQuarantine,
    /// keeps tasks on drained nodes
    IgnoreDrain,
    /// places a slot twice
    PlaceTwice,
    /// stops a task that moves before its successor is ready
    CutMoved,
    /// replaces further tasks before the last ones are ready
    RollAll,
    /// removes managers without demoting them first
    IgnoreRole,
    /// replaces secrets although they were changed meanwhile
    IgnoreSeen,
    /// lets strangers join
    AnyToken,
    /// lets log time go back at a new leader
    TimeGoesBack,
    /// accepts rows that their owner did not sign
    AcceptForeignRow,
    /// brings removed rows back
    ResurrectTombstone,
    /// lets queues of news grow without a bound
    UnboundedQueue,
    /// leaves the last row out when tables are compared
    DigestLeavesOut,
    /// keeps the rows of removed nodes
    KeepRemovedRows,
}

#[cfg(feature = "mutants")]
std::thread_local! {
    static ON: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Whether a fault is on, in this thread.
#[cfg(feature = "mutants")]
pub(crate) fn on(m: Mutant) -> bool {
    ON.get() == Some(m)
}

/// Whether a fault is on: none ever is.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn on(_: Mutant) -> bool {
    false
}

/// Switches a fault on in this thread, or all off. Without the feature nothing happens.
pub fn plant(m: Option<Mutant>) {
    #[cfg(feature = "mutants")]
    ON.set(m);
    #[cfg(not(feature = "mutants"))]
    let _ = m;
}
