//! Which data path a node uses.

use std::path::{Path, PathBuf};

use kernel::ipvs::Abilities;
use model::row::Datapath;

use super::{ipvs, pass::KernelError};
use crate::config::Mode;

/// The data path in use. It stays for as long as netd runs: a node is wholly in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Which.
    pub datapath: Datapath,
    /// Why, for people.
    pub why: String,
}

/// What the kernel has for it.
pub(super) enum Offers {
    Ebpf,
    Ipvs(Abilities),
}

impl Chosen {
    /// What the settings ask for and the kernel has.
    ///
    /// # Errors
    /// IPVS is asked for, and the kernel lacks what is named.
    pub(super) fn new(mode: Mode) -> Result<(Chosen, Offers), String> {
        Self::of(mode, ipvs::offers)
    }

    fn of(mode: Mode, ask: impl FnOnce() -> Result<Abilities, String>) -> Result<(Chosen, Offers), String> {
        let ebpf = |why: String| {
            let datapath = Datapath::Ebpf;
            (Chosen { datapath, why }, Offers::Ebpf)
        };
        let ipvs = |mode: &str, offers: Abilities| {
            let chosen = Chosen {
                datapath: Datapath::Ipvs,
                why: format!("datapath.mode is {mode}, and the kernel has {offers}"),
            };
            (chosen, Offers::Ipvs(offers))
        };
        match mode {
            Mode::Ebpf => Ok(ebpf("datapath.mode is ebpf".to_owned())),
            Mode::Ipvs => ask().map(|offers| ipvs("ipvs", offers)),
            Mode::Auto => Ok(ebpf(
                "datapath.mode is auto, and this version chooses eBPF on every kernel".to_owned(),
            )),
        }
    }
}

/// Whether this kernel has what the settings ask for, to be told before anything else is begun. Nothing is written.
///
/// # Errors
/// [`KernelError::NoIpvs`].
pub fn possible(mode: Mode) -> Result<(), KernelError> {
    Chosen::new(mode).map(|_| ()).map_err(KernelError::NoIpvs)
}

/// Which data path this node used last, so that a change of mode leaves nothing of the other one.
pub(super) struct Memory {
    file: PathBuf,
    last: Datapath,
}

impl Memory {
    /// One that was never written stands for eBPF, which was the only one.
    pub(super) fn open(state_dir: &Path) -> Memory {
        let file = state_dir.join("datapath");
        let last = match std::fs::read_to_string(&file).as_deref().map(str::trim) {
            Ok("ipvs") => Datapath::Ipvs,
            _ => Datapath::Ebpf,
        };
        Memory { file, last }
    }

    pub(super) fn last(&self) -> Datapath {
        self.last
    }

    /// To be told before anything is made in the kernel.
    pub(super) fn set(&mut self, now: Datapath) -> Result<(), KernelError> {
        if now == self.last {
            return Ok(());
        }
        let word: &[u8] = match now {
            Datapath::Ebpf => b"ebpf\n",
            Datapath::Ipvs => b"ipvs\n",
        };
        crate::disk::write_atomic(&self.file, word, 0o600).map_err(|e| KernelError::Memory(self.file.clone(), e))?;
        self.last = now;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers() -> Abilities {
        Abilities {
            version: (1, 2, 1),
            table_rows: 4096,
            schedulers: [mesh::ipvs::Scheduler::Mh, mesh::ipvs::Scheduler::Rr].into(),
            ipv6: true,
        }
    }

    #[test]
    fn the_mode_and_the_kernel_decide() {
        let none = || Err("this kernel has no IPVS; try: modprobe ip_vs".to_owned());
        let (chosen, _) = Chosen::of(Mode::Ebpf, || panic!("nobody asks")).unwrap();
        assert_eq!(chosen.datapath, Datapath::Ebpf);
        let (chosen, _) = Chosen::of(Mode::Ipvs, || Ok(offers())).unwrap();
        assert_eq!(chosen.datapath, Datapath::Ipvs);
        assert!(
            chosen.why.contains("mode is ipvs") && chosen.why.contains("mh"),
            "{}",
            chosen.why
        );
        assert!(Chosen::of(Mode::Ipvs, none).is_err_and(|e| e.contains("modprobe")));
        assert_eq!(Chosen::of(Mode::Auto, none).unwrap().0.datapath, Datapath::Ebpf);
    }

    #[test]
    fn the_last_data_path_is_remembered() {
        let dir = std::env::temp_dir().join(format!("netd-datapath-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut memory = Memory::open(&dir);
        assert_eq!(
            memory.last(),
            Datapath::Ebpf,
            "what every node had before there was a choice"
        );
        memory.set(Datapath::Ipvs).unwrap();
        assert_eq!(Memory::open(&dir).last(), Datapath::Ipvs);
        memory.set(Datapath::Ebpf).unwrap();
        assert_eq!(Memory::open(&dir).last(), Datapath::Ebpf);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
