//! Where a data path is in the kernel.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::Kept;

/// What of the data path is in one network namespace of the node that answers, for other tools to be pointed at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelPlace {
    /// Path of the namespace; none: the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// netd's devices there, and what each is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, String>,
    /// What holds the rules, in words.
    pub rules: String,
    /// How long flows are remembered there without a packet; none: that is not settable there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
    /// Commands that show it, for root on that node.
    pub look: Vec<String>,
}
