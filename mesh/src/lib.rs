//! Pure core: load-balancing intent lowered to map entries.
//!
//! [`Wanted`] says what the mesh of one node should do. A lowering compares it with what the node's data path holds and
//! yields an ordered plan: [`ebpf`] for the programs' maps (EBPF, Maps), [`ipvs`] for the kernel's own balancer.
//!
//! Absent here: clocks, sockets, randomness. Equal input gives an equal plan on every node and in every run.

pub mod lower;
pub mod maglev;
pub mod wanted;

pub use lower::{ebpf, ipvs};
pub use wanted::{Backend, BackendId, BackendState, Node, Place, Port, Problem, Service, Wanted};
