//! Which data path a node uses.

use model::row::Datapath;

use crate::config::Mode;

/// The data path in use. It stays for as long as netd runs: a node is wholly in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Which.
    pub datapath: Datapath,
    /// Why, for people.
    pub why: String,
}

impl Chosen {
    /// What the settings ask for.
    pub(super) fn new(mode: Mode) -> Chosen {
        let (datapath, why) = match mode {
            Mode::Ebpf => (Datapath::Ebpf, "datapath.mode is ebpf"),
            Mode::Ipvs => (Datapath::Ipvs, "datapath.mode is ipvs"),
            Mode::Auto => (
                Datapath::Ebpf,
                "datapath.mode is auto, and this version chooses eBPF on every kernel",
            ),
        };
        Chosen {
            datapath,
            why: why.to_owned(),
        }
    }
}
