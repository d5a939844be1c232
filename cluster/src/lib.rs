//! Pure core: intent, placement, addresses, rows, membership, Raft
