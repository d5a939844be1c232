use super::State;

/// First octet of an encoded [`State`]. 2: requests with their time; 1 was never in a release.
const FORMAT: u8 = 2;

/// Why octets are no [`State`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Written by a newer netd.
    #[error("the snapshot has format {0}, this netd knows {FORMAT}; try: the netd that wrote it")]
    Newer(u8),
    /// Not what was written.
    #[error("the snapshot cannot be read: {0}; try: netctl cluster restore FILE")]
    Malformed(String),
}

impl State {
    /// The whole state as octets, for a snapshot.
    pub fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        postcard::to_extend(self, vec![FORMAT]).map_err(|e| SnapshotError::Malformed(e.to_string()))
    }

    /// Reads [`State::encode`].
    pub fn decode(bytes: &[u8]) -> Result<State, SnapshotError> {
        match bytes.split_first() {
            Some((&FORMAT, body)) => {
                let mut state: State =
                    postcard::from_bytes(body).map_err(|e| SnapshotError::Malformed(e.to_string()))?;
                state.derive();
                Ok(state)
            }
            Some((&f, _)) if f > FORMAT => Err(SnapshotError::Newer(f)),
            Some((&f, _)) => Err(SnapshotError::Malformed(format!("format {f}"))),
            None => Err(SnapshotError::Malformed("empty".into())),
        }
    }
}
