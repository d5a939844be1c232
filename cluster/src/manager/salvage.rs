//! What one manager's disk tells when the others are lost.

use super::ManagerError;
use crate::{
    log::{self, Disk, Log},
    raft::Body,
    state::{Envelope, State},
};

/// The state after every entry of a log, committed or not: an entry that a majority had was acknowledged, and this manager
/// cannot know of every one that it was. `None`: there is no log.
pub fn salvage<D: Disk>(disk: D, key: &[u8; 32], seed: [u8; 32]) -> Result<Option<State>, ManagerError> {
    let Some((_, found)) = Log::open(disk, key, seed, log::Options::default())? else {
        return Ok(None);
    };
    let mut state = match &found.start.snapshot {
        Some(s) => State::decode(&s.data)?,
        None => State::default(),
    };
    for e in &found.start.entries {
        if e.index <= state.applied() {
            continue;
        }
        match &e.body {
            Body::Command(bytes) => {
                // A refusal is an answer to somebody who is gone.
                let _ = state.apply(e.index, &Envelope::decode(bytes)?);
            }
            Body::Empty => state.pass(e.index),
            Body::Conf(change) => state.conf_changed(e.index, change),
        }
    }
    Ok(Some(state))
}
