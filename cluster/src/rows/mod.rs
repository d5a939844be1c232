//! Facts: the table of signed rows, how two tables become equal, and which rows count.
//!
//! A row belongs to one node, which alone signs new versions of it; anybody may relay it. [`Table::merge`] takes the
//! greater of two versions, so that merging is commutative, associative and idempotent. A row that the intent does not
//! (or not yet) grant to its owner is kept but masked ([`grant::check`]). News travel through [`Deltas`]; what gets lost
//! on the way is found by comparing digests ([`Table::summary`], [`Table::pages`], [`Table::compare`]).

mod deltas;
mod digest;
pub mod grant;
mod signed;
mod table;
#[cfg(test)]
mod tests;

pub use deltas::Deltas;
pub use digest::{Diff, Page, PageRow, Summary};
pub use signed::{MAX_ROW, RowError, SIGNATURE, SignedRow, Signer, decode_all};
pub use table::{MAX_ROWS_PER_OWNER, Refused, TOMBSTONE_KEEP, Table};
