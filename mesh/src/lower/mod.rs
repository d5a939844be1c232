//! One module per data path: from [`crate::Wanted`] to what that data path is told.

pub mod ebpf;
pub mod ipvs;
