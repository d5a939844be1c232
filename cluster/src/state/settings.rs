//! The command that changes settings of the cluster.

use model::{ClusterSettings, settings::Change};

use super::{Applied, Refusal, State};
use crate::ipam;

impl State {
    pub(super) fn update_settings(&mut self, index: u64, changes: &[Change]) -> Result<Applied, Refusal> {
        let old = &self.intent.settings;
        let mut new = old.clone();
        for change in changes {
            new.set(change)?;
        }
        check(&new)?;
        if new == *old {
            return Ok(Applied::Unchanged);
        }
        // Slices are counted from the pool's beginning: another pool begins anew.
        let cut = |s: &ClusterSettings| (s.default_addr_pool, s.default_addr_pool_mask_length);
        let (v4, v6) = (cut(old) != cut(&new), old.default_addr_pool6 != new.default_addr_pool6);
        if let Some(pools) = &mut self.pools {
            pools.next_v4 = if v4 { 0 } else { pools.next_v4 };
            pools.next_v6 = if v6 { 0 } else { pools.next_v6 };
        }
        self.change(index).settings = new;
        Ok(Applied::Done)
    }
}

/// Whether a cluster can have these settings: ranges, and what a range alone does not tell.
pub fn check(s: &ClusterSettings) -> Result<(), Refusal> {
    s.check()?;
    ipam::check_v4(s.default_addr_pool, 8, 24).map_err(|e| {
        Refusal::invalid(
            format!("the default pool {} cannot be used: {e}", s.default_addr_pool),
            "default-addr-pool=10.128.0.0/9",
        )
    })?;
    let ula = s
        .default_addr_pool6
        .ok_or_else(|| Refusal::invalid("there is no IPv6 pool", "a random prefix such as fd12:3456:789a::/48"))?;
    ipam::check_v6(ula, 48, 48).map_err(|e| {
        Refusal::invalid(
            format!("the IPv6 pool {ula} cannot be used: {e}"),
            "default-addr-pool6=fd12:3456:789a::/48",
        )
    })
}
