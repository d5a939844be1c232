//! Pure core: load-balancing intent lowered to map entries.
//!
//! [`Wanted`] says what the mesh of one node should do. A lowering compares it with what the node's data path holds and
//! yields an ordered plan: [`ebpf`] for the programs' maps (EBPF, Maps). IPVS will be a second module beside it, with an
//! observed state and a plan of its own, from the same [`Wanted`] and the same [`maglev`].
//!
//! Absent here: clocks, sockets, randomness. Equal input gives an equal plan on every node and in every run.

pub mod lower;
pub mod maglev;
pub mod wanted;

pub use lower::ebpf;
pub use wanted::{Backend, BackendId, BackendState, Node, Place, Port, Problem, Service, Wanted};
