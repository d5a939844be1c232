//! netd and netd-run on a host.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::exec::Process;
use crate::host::Host;

/// A daemon that is not ready after this time has failed.
const READY: Duration = Duration::from_secs(30);

/// Which data path the daemons use where neither the lab nor the host says so: a whole suite runs over one or the other.
/// Without it `ebpf`, on every kernel: what `auto` takes depends on the machine, and a figure must not.
const DATAPATH: &str = "NETD_LAB_DATAPATH";

/// How daemons are started.
#[derive(Debug, Clone, Default)]
pub struct DaemonOptions {
    /// Record every execve of netd into `netd.strace` in the host's folder.
    pub strace: bool,
    /// More lines for the end of the configuration file.
    pub config: String,
    /// More lines for its section `[cluster]`; `{name}` is the host's name.
    pub cluster: String,
    /// Level of the log; default `info`.
    pub level: Option<String>,
    /// No addresses in the configuration: netd finds its own.
    pub no_addresses: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Daemons {
    netd: Option<Process>,
    runner: Option<Process>,
}

impl Daemons {
    pub(crate) fn detach(&mut self) {
        self.netd.iter_mut().chain(&mut self.runner).for_each(Process::detach);
    }
}

impl Host {
    /// Starts netd and waits for its sd_notify READY=1. Answers the time that took.
    ///
    /// # Errors
    ///
    /// When it runs already, ends, or is not ready in 30 s; with its log.
    pub fn start_netd(&self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let socket = self.launch()?;
        let mut buffer = [0; 4096];
        loop {
            if let Ok(n) = socket.recv(&mut buffer)
                && String::from_utf8_lossy(buffer.get(..n).unwrap_or_default())
                    .lines()
                    .any(|l| l == "READY=1")
            {
                return Ok(start.elapsed());
            }
            let mut daemons = self.daemons()?;
            let netd = daemons.netd.as_mut().context("netd was ended by another step")?;
            let ended = netd.ended();
            if ended.is_none() && start.elapsed() <= READY {
                continue;
            }
            let said = netd.output().trim_end().to_owned();
            // It is not held any more: one that hangs is ended.
            daemons.netd = None;
            match ended {
                Some(code) => bail!("netd on {} ended with {code}: {said}", self.name()),
                None => bail!("netd on {} was not ready in {} s: {said}", self.name(), READY.as_secs()),
            }
        }
    }

    /// Starts netd and waits for nothing: for who ends it in the middle.
    ///
    /// # Errors
    ///
    /// When it runs already, or cannot be started.
    pub fn begin_netd(&self) -> anyhow::Result<()> {
        self.launch().map(drop)
    }

    /// Starts netd; answers where it says that it is ready.
    fn launch(&self) -> anyhow::Result<UnixDatagram> {
        let config = self.write_config()?;
        let notify = self.folder().join("notify.sock");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).context("making the notification socket")?;
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .context("setting a time limit")?;
        let mut daemons = self.daemons()?;
        if daemons.netd.as_mut().is_some_and(|p| p.ended().is_none()) {
            bail!("netd runs already on {}", self.name());
        }
        let trace = self.folder().join("netd.strace").display().to_string();
        let config = config.display().to_string();
        let mut argv = vec!["netd", "--config", &config];
        if self.daemon_options.strace {
            let strace = ["strace", "-f", "-A", "-o", &trace, "-e", "trace=execve,execveat", "--"];
            argv.splice(0..0, strace);
        }
        let notify_path = notify.display().to_string();
        daemons.netd = Some(self.door.spawn("netd", &argv, &[("NOTIFY_SOCKET", &notify_path)])?);
        Ok(socket)
    }

    /// Starts netd-run beside netd.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_runner(&self) -> anyhow::Result<()> {
        // Hosts share this machine's files: each has its own logs.
        let logs = self.folder().join("log").display().to_string();
        let runner = self.door.spawn("netd-run", &["netd-run", "--log-dir", &logs], &[])?;
        self.daemons()?.runner = Some(runner);
        Ok(())
    }

    /// `kill -9` for netd alone; the host, its tasks and netd-run live on.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill_netd(&self) -> anyhow::Result<()> {
        let mut netd = self
            .daemons()?
            .netd
            .take()
            .with_context(|| format!("no netd on {}", self.name()))?;
        netd.kill();
        Ok(())
    }

    /// SIGTERM for netd; waits until it has ended. Answers its exit code.
    ///
    /// # Errors
    ///
    /// When it does not run or does not end in 10 s.
    pub fn stop_netd(&self) -> anyhow::Result<i32> {
        let mut netd = self
            .daemons()?
            .netd
            .take()
            .with_context(|| format!("no netd on {}", self.name()))?;
        netd.signal(Signal::SIGTERM)?;
        Ok(netd.wait(Duration::from_secs(10))?.code)
    }

    /// Kills everything that runs on the host at once and pulls its cable: a power cut, as the others see it. The tasks
    /// live in a process tree of their own, so PID 1's children are all killed.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn power_cut(&self) -> anyhow::Result<()> {
        self.cut()?;
        let mut guard = self.daemons()?;
        let daemons = &mut *guard;
        for process in daemons.netd.iter_mut().chain(&mut daemons.runner) {
            process.kill();
        }
        daemons.netd = None;
        daemons.runner = None;
        // Every process that the host can see, except PID 1 and the one that asks.
        self.run(&["sh", "-c", "kill -9 -1"])?;
        Ok(())
    }

    /// What netd has logged since its last start.
    ///
    /// # Errors
    ///
    /// When none runs.
    pub fn netd_log(&self) -> anyhow::Result<String> {
        let daemons = self.daemons()?;
        Ok(daemons
            .netd
            .as_ref()
            .with_context(|| format!("no netd on {}", self.name()))?
            .output())
    }

    /// Process number of netd, as the owner of the lab sees it.
    ///
    /// # Errors
    ///
    /// When none runs.
    pub fn netd_pid(&self) -> anyhow::Result<u32> {
        self.daemons()?
            .netd
            .as_ref()
            .with_context(|| format!("no netd on {}", self.name()))?
            .pid()
    }

    /// The programs that netd has executed, itself left out; empty is what is wanted. Needs
    /// [`DaemonOptions::strace`].
    ///
    /// # Errors
    ///
    /// When nothing was recorded.
    pub fn executed_by_netd(&self) -> anyhow::Result<Vec<String>> {
        let path = self.folder().join("netd.strace");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let calls: Vec<&str> = text.lines().filter(|l| l.contains("execve")).collect();
        if calls.is_empty() {
            bail!("{} records no execve, not even netd's own", path.display());
        }
        Ok(calls
            .into_iter()
            .filter(|l| !l.contains("/netd\", [\"netd\""))
            .map(str::to_owned)
            .collect())
    }

    fn daemons(&self) -> anyhow::Result<std::sync::MutexGuard<'_, Daemons>> {
        self.daemons
            .lock()
            .map_err(|_| anyhow::anyhow!("another step of this lab panicked"))
    }

    /// Lines for the end of this host's configuration file alone, from the next start on.
    ///
    /// # Errors
    ///
    /// When another step of this lab panicked.
    pub fn configure(&self, lines: &str) -> anyhow::Result<()> {
        *self
            .more_config
            .lock()
            .map_err(|_| anyhow::anyhow!("another step of this lab panicked"))? = lines.to_owned();
        Ok(())
    }

    /// Which data path this host's daemon is told to use (`[datapath] mode`), from the next start on, whatever the lab's is.
    ///
    /// # Errors
    ///
    /// When another step of this lab panicked.
    pub fn use_data_path(&self, mode: &str) -> anyhow::Result<()> {
        let own = self.data_path.lock();
        *own.map_err(|_| anyhow::anyhow!("another step of this lab panicked"))? = Some(mode.to_owned());
        Ok(())
    }

    fn data_path(&self) -> anyhow::Result<String> {
        let own = self.data_path.lock();
        let own = own.map_err(|_| anyhow::anyhow!("another step of this lab panicked"))?;
        let said = own.clone().or_else(|| std::env::var(DATAPATH).ok());
        Ok(said.unwrap_or_else(|| "ebpf".to_owned()))
    }

    fn more_config(&self) -> anyhow::Result<String> {
        let more = self.more_config.lock();
        Ok(more
            .map_err(|_| anyhow::anyhow!("another step of this lab panicked"))?
            .clone())
    }

    fn write_config(&self) -> anyhow::Result<PathBuf> {
        let path = self.folder().join("netd.toml");
        let state = self.folder().join("state");
        fs::create_dir_all(&state).with_context(|| format!("making {}", state.display()))?;
        let level = self.daemon_options.level.as_deref().unwrap_or("info");
        let (own, listen) = (self.address(), self.at(2377));
        let cluster = self.daemon_options.cluster.replace("{name}", self.name());
        let addresses = match self.daemon_options.no_addresses {
            true => String::new(),
            false => format!("[cluster]\nlisten = \"{listen}\"\n{cluster}\n[datapath]\naddress = \"{own}\"\n\n"),
        };
        let text = format!(
            "[node]\nname = \"{name}\"\nstate_dir = \"{state}\"\n\n{addresses}\
             [log]\nlevel = \"{level}\"\n{more}",
            name = self.name(),
            state = state.display(),
            more = format_args!("{}\n{}", self.daemon_options.config, self.more_config()?),
        );
        fs::write(&path, with_data_path(&text, &self.data_path()?))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// A configuration that says which data path, where it did not say so before.
fn with_data_path(text: &str, mode: &str) -> String {
    const SECTION: &str = "[datapath]\n";
    // No other section has a setting of this name.
    if text.lines().any(|line| line.trim_start().starts_with("mode")) {
        return text.to_owned();
    }
    let setting = format!("mode = \"{mode}\"\n");
    match text.split_once(SECTION) {
        Some((before, after)) => format!("{before}{SECTION}{setting}{after}"),
        None => format!("{text}\n{SECTION}{setting}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_path_is_said_once() {
        let said = "[datapath]\naddress = \"198.18.0.11\"\nmode = \"ebpf\"\n";
        assert_eq!(with_data_path(said, "ipvs"), said);
        assert_eq!(
            with_data_path("[datapath]\nport = 1\n[log]\n", "ipvs"),
            "[datapath]\nmode = \"ipvs\"\nport = 1\n[log]\n"
        );
        assert_eq!(
            with_data_path("[log]\n", "ipvs"),
            "[log]\n\n[datapath]\nmode = \"ipvs\"\n"
        );
    }
}
