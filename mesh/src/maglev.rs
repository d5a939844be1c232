//! Maglev hashing: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, 3.4.
//!
//! Each backend walks the cells in an order of its own (`offset + k * skip` modulo a prime) and the backends take turns,
//! so that shares differ by one cell at most and few cells change when a backend comes or goes. The order follows from
//! the backend's identity alone: every node fills the same row, and a flow that enters through another node, or whose
//! affinity entry has expired, meets the same backend. This file is therefore a contract between nodes: a change of the
//! hash, the turn order or the lengths moves flows while versions are mixed.

use crate::wanted::BackendId;

/// Row lengths, primes, by the largest number of backends that they serve: at least 100 cells a backend, so that
/// shares differ by 1 % at most (up to 655 backends, beyond which the longest row is used all the same).
pub const LENGTHS: [(usize, u32); 4] = [(10, 1021), (40, 4093), (160, 16381), (usize::MAX, 65521)];

/// Cells of the row of `backends` backends; 0 for none.
pub fn row_len(backends: usize) -> u32 {
    if backends == 0 {
        return 0;
    }
    LENGTHS
        .iter()
        .find(|(most, _)| backends <= *most)
        .map_or(0, |(_, len)| *len)
}

/// A backend's place in the hash: what its walk follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seed {
    offset: u64,
    skip: u64,
}

impl Seed {
    /// The seed of a backend: FNV-1a (64 bit) over the node id (8 octets, little endian) and the endpoint's id, then the
    /// finaliser of splitmix64 with two constants, because FNV alone leaves the high bits of like names alike.
    pub fn new(id: &BackendId) -> Self {
        let node = id.node.0.to_le_bytes();
        let h = node
            .iter()
            .chain(id.endpoint.as_str().as_bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
                (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        Seed {
            offset: mix(h),
            skip: mix(h ^ 0x9e37_79b9_7f4a_7c15),
        }
    }
}

/// The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills a row of `len` cells (a prime). Each cell holds an index into `seeds`, which the caller gives in the same order
/// on every node (by identity). Empty when there is no backend.
pub fn fill(seeds: &[Seed], len: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    if seeds.is_empty() || len < 2 {
        return Vec::new();
    }
    let m = u64::from(len);
    let mut walks: Vec<(u64, u64)> = seeds.iter().map(|s| (s.offset % m, s.skip % (m - 1) + 1)).collect();
    let mut row = vec![FREE; len as usize];
    let mut left = len;
    'turns: loop {
        for (index, (at, skip)) in walks.iter_mut().enumerate() {
            // `len` is prime, so a walk meets every cell: a free one is found while `left` is above 0.
            while let Some(cell) = row.get_mut(*at as usize) {
                *at += *skip;
                if *at >= m {
                    *at -= m;
                }
                if *cell == FREE {
                    *cell = index as u32;
                    break;
                }
            }
            left -= 1;
            if left == 0 {
                break 'turns;
            }
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use model::NodeId;
    use proptest::prelude::*;

    use super::*;

    fn seeds(n: u64) -> Vec<Seed> {
        (0..n)
            .map(|i| {
                Seed::new(&BackendId {
                    node: NodeId(1 + i % 7),
                    endpoint: format!("web.{i}").parse().unwrap(),
                })
            })
            .collect()
    }

    #[test]
    fn lengths_are_primes_with_a_hundred_cells_a_backend() {
        for (most, len) in LENGTHS {
            assert!((2..len).take_while(|d| d * d <= len).all(|d| len % d != 0), "{len}");
            assert!(most == usize::MAX || most * 100 <= len as usize);
        }
        let table = [
            (0, 0),
            (1, 1021),
            (10, 1021),
            (11, 4093),
            (40, 4093),
            (41, 16381),
            (160, 16381),
            (161, 65521),
            (70_000, 65521),
        ];
        for (n, len) in table {
            assert_eq!(row_len(n), len, "{n} backends");
        }
    }

    /// Nodes of different versions must agree: these numbers (made by a second implementation, in Python) may not change.
    #[test]
    fn the_hash_is_a_contract() {
        let id = BackendId {
            node: NodeId(2),
            endpoint: "web.1".parse().unwrap(),
        };
        assert_eq!(
            Seed::new(&id),
            Seed {
                offset: 13_796_447_042_722_327_971,
                skip: 9_132_382_616_039_993_105
            }
        );
        assert_eq!(fill(&seeds(3), 13), [1, 0, 2, 0, 1, 0, 1, 0, 0, 2, 2, 2, 1]);
    }

    #[test]
    fn few_cells_move_when_a_backend_leaves() {
        let all = seeds(10);
        let before = fill(&all, 1021);
        for gone in 0..10usize {
            let mut rest = all.clone();
            rest.remove(gone);
            let after = fill(&rest, 1021);
            let moved = before
                .iter()
                .zip(&after)
                .filter(|(b, a)| {
                    let a = if **a as usize >= gone { **a + 1 } else { **a };
                    **b as usize != gone && **b != a
                })
                .count();
            // Of the 919 cells that need not move; the paper's figure 11 has some percent at such a size.
            assert!(moved < 150, "backend {gone}: {moved} cells moved");
        }
    }

    proptest! {
        #[test]
        fn shares_differ_by_one_cell(n in 1u64..200) {
            let row = fill(&seeds(n), row_len(n as usize));
            let mut share = vec![0u32; n as usize];
            row.iter().for_each(|b| share[*b as usize] += 1);
            prop_assert!(share.iter().max().unwrap() - share.iter().min().unwrap() <= 1);
        }
    }
}
