//! Lowering to the programs' maps `services`, `backends`, `lut` and `targets` (layouts: `ebpf-abi`).
//!
//! Places are kept, and need no memory but the maps themselves: a backend is recognised by (network, MAC) in its cell, a
//! row by the service keys that name it. So a restart with nothing changed gives an empty plan, and a change of one
//! service writes its own cells alone.

mod cells;
mod desired;
mod maps;
mod plan;
mod rows;
mod space;
#[cfg(test)]
mod tests;

pub use maps::{Gone, Observed, Sizes, Step};
pub use plan::{Plan, plan};
