//! Which data path a node uses.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use kernel::ipvs::Abilities;
use model::row::Datapath;

use super::{ipvs, pass::KernelError};
use crate::config::{Config, Mode};

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

/// What is here when a data path is chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    /// What was in use last.
    pub(super) last: Datapath,
    /// Endpoints whose namespaces are here.
    pub(super) endpoints: usize,
    /// Nothing may be taken away: this manager is locked.
    pub(super) only_add: bool,
}

impl Chosen {
    /// What the settings ask for and the kernel has.
    ///
    /// # Errors
    /// IPVS is asked for, and the kernel lacks what is named.
    pub(super) fn new(mode: Mode, before: Before) -> Result<(Chosen, Offers), String> {
        Self::of(mode, before, ipvs::offers)
    }

    fn of(mode: Mode, before: Before, ask: impl Fn() -> Result<Abilities, String>) -> Result<(Chosen, Offers), String> {
        let (chosen, offers) = Self::asked(mode, before, &ask)?;
        if !before.only_add || chosen.datapath == before.last {
            return Ok((chosen, offers));
        }
        let why = format!(
            "this manager is locked and changes nothing ({}); try: netctl cluster unlock",
            chosen.why
        );
        match before.last {
            Datapath::Ebpf => Ok(Self::ebpf(why)),
            // The kernel may be another one than then.
            Datapath::Ipvs => Ok(ask().map_or((chosen, offers), |has| Self::ipvs(why, has))),
        }
    }

    fn asked(
        mode: Mode,
        before: Before,
        ask: impl Fn() -> Result<Abilities, String>,
    ) -> Result<(Chosen, Offers), String> {
        let said = |mode: &str, has: &Abilities| format!("datapath.mode is {mode}, and the kernel has {has}");
        match mode {
            Mode::Ebpf => Ok(Self::ebpf("datapath.mode is ebpf".to_owned())),
            Mode::Ipvs => ask().map(|has| Self::ipvs(said("ipvs", &has), has)),
            Mode::Auto => Ok(match ask() {
                // A new version, or a module that came, is no reason to cut what runs.
                Ok(has) if before.last == Datapath::Ebpf && before.endpoints > 0 => Self::ebpf(format!(
                    "datapath.mode is auto, and this node used eBPF when its {} endpoints came, so it stays with it although the kernel has {has}; try: netctl node drain, then restart netd",
                    before.endpoints
                )),
                Ok(has) => Self::ipvs(said("auto", &has), has),
                Err(why) => Self::ebpf(format!("datapath.mode is auto, and IPVS cannot be had: {why}")),
            }),
        }
    }

    fn ebpf(why: String) -> (Chosen, Offers) {
        let datapath = Datapath::Ebpf;
        (Chosen { datapath, why }, Offers::Ebpf)
    }

    fn ipvs(why: String, has: Abilities) -> (Chosen, Offers) {
        let datapath = Datapath::Ipvs;
        (Chosen { datapath, why }, Offers::Ipvs(has))
    }
}

/// Whether this kernel has what the settings ask for, to be told before anything else is begun. Nothing is written.
///
/// # Errors
/// [`KernelError::NoIpvs`].
pub fn possible(mode: Mode) -> Result<(), KernelError> {
    match mode {
        Mode::Ipvs => ipvs::offers().map(drop).map_err(KernelError::NoIpvs),
        Mode::Auto | Mode::Ebpf => Ok(()),
    }
}

/// Whether the data path that the settings lead to has tunnels over IPv6. Reads the disk, and may ask the kernel, once: what
/// `auto` takes is decided when netd starts.
pub fn carries_ipv6(config: &Config) -> bool {
    static OFFERED: OnceLock<bool> = OnceLock::new();
    match config.datapath.mode {
        Mode::Ipvs => true,
        Mode::Ebpf => false,
        Mode::Auto => {
            Memory::open(&config.node.state_dir).last() == Datapath::Ipvs
                || *OFFERED.get_or_init(|| ipvs::offers().is_ok())
        }
    }
}

/// Which data path this node used last, so that a change of mode leaves nothing of the other one.
pub(super) struct Memory {
    file: PathBuf,
    last: Datapath,
    /// The one before, until nothing of it is left.
    leaving: Option<Datapath>,
}

impl Memory {
    /// One that was never written stands for eBPF, which was the only one.
    pub(super) fn open(state_dir: &Path) -> Memory {
        let file = state_dir.join("datapath");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let mut words = text.split_whitespace();
        let last = words.next().and_then(parse).unwrap_or(Datapath::Ebpf);
        let leaving = words.nth(1).and_then(parse).filter(|old| *old != last);
        Memory { file, last, leaving }
    }

    pub(super) fn last(&self) -> Datapath {
        self.last
    }

    /// The data path of which something may be left.
    pub(super) fn leaving(&self) -> Option<Datapath> {
        self.leaving
    }

    /// To be told before anything is made in the kernel.
    pub(super) fn begin(&mut self, now: Datapath) -> Result<(), KernelError> {
        if now == self.last {
            return Ok(());
        }
        self.write(now, Some(self.last))
    }

    /// Nothing of the one before is left.
    pub(super) fn left(&mut self) -> Result<(), KernelError> {
        self.write(self.last, None)
    }

    fn write(&mut self, now: Datapath, leaving: Option<Datapath>) -> Result<(), KernelError> {
        let text = match leaving {
            None => format!("{}\n", word(now)),
            Some(old) => format!("{} after {}\n", word(now), word(old)),
        };
        crate::disk::write_atomic(&self.file, text.as_bytes(), 0o600)
            .map_err(|e| KernelError::Memory(self.file.clone(), e))?;
        (self.last, self.leaving) = (now, leaving);
        Ok(())
    }
}

/// As it is in the settings.
pub(super) fn word(datapath: Datapath) -> &'static str {
    match datapath {
        Datapath::Ebpf => "ebpf",
        Datapath::Ipvs => "ipvs",
    }
}

fn parse(text: &str) -> Option<Datapath> {
    [Datapath::Ebpf, Datapath::Ipvs].into_iter().find(|d| word(*d) == text)
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

    fn before(last: Datapath, endpoints: usize) -> Before {
        Before {
            last,
            endpoints,
            only_add: false,
        }
    }

    fn none() -> Result<Abilities, String> {
        Err("this kernel has no IPVS; try: modprobe ip_vs".to_owned())
    }

    #[test]
    fn the_mode_and_the_kernel_decide() {
        let fresh = before(Datapath::Ebpf, 0);
        let (chosen, _) = Chosen::of(Mode::Ebpf, fresh, || panic!("nobody asks")).unwrap();
        assert_eq!(chosen.datapath, Datapath::Ebpf);
        for (mode, word) in [(Mode::Ipvs, "ipvs"), (Mode::Auto, "auto")] {
            let (chosen, _) = Chosen::of(mode, fresh, || Ok(offers())).unwrap();
            assert_eq!(chosen.datapath, Datapath::Ipvs);
            let said = chosen.why.contains(&format!("mode is {word}")) && chosen.why.contains("mh");
            assert!(said, "{}", chosen.why);
        }
        assert!(Chosen::of(Mode::Ipvs, fresh, none).is_err_and(|e| e.contains("modprobe")));
        let (chosen, _) = Chosen::of(Mode::Auto, fresh, none).unwrap();
        assert_eq!(chosen.datapath, Datapath::Ebpf);
        assert!(chosen.why.contains("this kernel has no IPVS"), "{}", chosen.why);
    }

    #[test]
    fn nobody_is_cut_who_did_not_ask_for_it() {
        let of = |mode, before| Chosen::of(mode, before, || Ok(offers())).unwrap().0;
        let chosen = of(Mode::Auto, before(Datapath::Ebpf, 3));
        assert_eq!(chosen.datapath, Datapath::Ebpf);
        assert!(
            chosen.why.contains("3 endpoints") && chosen.why.contains("node drain"),
            "{}",
            chosen.why
        );
        assert_eq!(of(Mode::Auto, before(Datapath::Ipvs, 3)).datapath, Datapath::Ipvs);
        // Who asks gets it.
        assert_eq!(of(Mode::Ipvs, before(Datapath::Ebpf, 3)).datapath, Datapath::Ipvs);
        assert_eq!(of(Mode::Ebpf, before(Datapath::Ipvs, 3)).datapath, Datapath::Ebpf);
        // The kernel has no IPVS any more: there is no choice.
        let (chosen, _) = Chosen::of(Mode::Auto, before(Datapath::Ipvs, 3), none).unwrap();
        assert_eq!(chosen.datapath, Datapath::Ebpf);
    }

    #[test]
    fn a_locked_manager_stays_with_what_it_had() {
        for (mode, last) in [(Mode::Ipvs, Datapath::Ebpf), (Mode::Ebpf, Datapath::Ipvs)] {
            let locked = Before {
                last,
                endpoints: 0,
                only_add: true,
            };
            let (chosen, _) = Chosen::of(mode, locked, || Ok(offers())).unwrap();
            assert_eq!(chosen.datapath, last);
            assert!(chosen.why.contains("cluster unlock"), "{}", chosen.why);
        }
    }

    #[test]
    fn the_last_data_path_is_remembered_until_nothing_of_it_is_left() {
        let dir = std::env::temp_dir().join(format!("netd-datapath-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let seen = || {
            let memory = Memory::open(&dir);
            (memory.last(), memory.leaving())
        };
        let mut memory = Memory::open(&dir);
        assert_eq!(
            seen(),
            (Datapath::Ebpf, None),
            "what every node had before there was a choice"
        );
        memory.begin(Datapath::Ebpf).unwrap();
        assert_eq!(seen(), (Datapath::Ebpf, None));
        memory.begin(Datapath::Ipvs).unwrap();
        // A netd that was killed here is followed by one that does the rest, or goes back.
        assert_eq!(seen(), (Datapath::Ipvs, Some(Datapath::Ebpf)));
        memory.begin(Datapath::Ipvs).unwrap();
        assert_eq!(seen(), (Datapath::Ipvs, Some(Datapath::Ebpf)));
        memory.begin(Datapath::Ebpf).unwrap();
        assert_eq!(seen(), (Datapath::Ebpf, Some(Datapath::Ipvs)));
        memory.left().unwrap();
        assert_eq!(seen(), (Datapath::Ebpf, None));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
