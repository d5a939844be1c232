//! A lab and its hosts.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::anchor::Anchor;
use crate::daemon::{DaemonOptions, Daemons};
use crate::exec::{Door, Output, Process};
use crate::fabric::{self, Port};
use crate::folder::{self, RunFolder};
use crate::neighbours::Limit;

/// What a lab consists of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Hosts for daemons, named n1, n2, ... Range 0-80, default 3.
    pub nodes: u8,
    /// Hosts without a daemon, named client, client2, ... Range 0-80, default 1.
    pub clients: u8,
    /// IPv4 on the underlay. Default: yes. One of the two it must have.
    pub ipv4: bool,
    /// IPv6 on the underlay too. Default: yes.
    pub ipv6: bool,
    /// Folder with netd, netctl, netd-run, lab-anchor and lab-tool. Default: the folder of this program, without
    /// cargo's `deps`.
    pub bin_dir: Option<PathBuf>,
    /// How daemons are started.
    pub daemon: DaemonOptions,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            nodes: 3,
            clients: 1,
            ipv4: true,
            ipv6: true,
            bin_dir: None,
            daemon: DaemonOptions::default(),
        }
    }
}

/// Hosts on a switch. Everything ends when this value is dropped, or when the process ends.
#[derive(Debug)]
pub struct Lab {
    // Order matters: processes and hosts end before their folder goes.
    hosts: Vec<Host>,
    switch: Host,
    nodes: usize,
    folder: RunFolder,
    kept: bool,
}

/// A host of a lab.
#[derive(Debug)]
pub struct Host {
    pub(crate) door: Door,
    pub(crate) daemons: Mutex<Daemons>,
    pub(crate) daemon_options: DaemonOptions,
    pub(crate) more_config: Mutex<String>,
    pub(crate) data_path: Mutex<Option<String>>,
    pub(crate) v4: Ipv4Addr,
    v6: Ipv6Addr,
    /// The underlay has IPv4.
    has_v4: bool,
    switch: u32,
    background: Mutex<Vec<Process>>,
    anchor: Anchor,
}

impl Lab {
    /// Makes the hosts and the wire between them; sweeps what dead labs left.
    ///
    /// # Errors
    ///
    /// Without root, without the binaries, or when the kernel lacks a namespace, a bridge or veth.
    pub fn new(name: &str, options: Options) -> anyhow::Result<Lab> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab makes namespaces and needs root; try: sudo -E env PATH=\"$PATH\" cargo xtask ...");
        }
        if options.nodes > 80 || options.clients > 80 {
            bail!("a lab has at most 80 nodes and 80 clients");
        }
        folder::sweep();
        let bin_dir = match options.bin_dir.clone() {
            Some(dir) => dir,
            None => default_bin_dir()?,
        };
        for program in ["lab-anchor", "lab-tool"] {
            if !bin_dir.join(program).is_file() {
                bail!("{program} is not in {}; try: cargo build -p lab", bin_dir.display());
            }
        }
        let hosts = usize::from(options.nodes) + usize::from(options.clients);
        let families = [options.ipv4.then(Limit::v4), options.ipv6.then(Limit::v6)];
        for warning in families.into_iter().flatten().filter_map(|l| l.warning(hosts)) {
            eprintln!("{warning}");
        }
        let folder = RunFolder::create(name)?;
        let made = make(&options, &bin_dir, &folder);
        if made.is_err() {
            folder.remove();
        }
        let (switch, hosts) = made?;
        Ok(Lab {
            hosts,
            switch,
            nodes: usize::from(options.nodes),
            folder,
            kept: false,
        })
    }

    /// The hosts for daemons.
    pub fn nodes(&self) -> &[Host] {
        self.hosts.get(..self.nodes).unwrap_or_default()
    }

    /// A host by its name.
    ///
    /// # Errors
    ///
    /// When there is none of this name.
    pub fn host(&self, name: &str) -> anyhow::Result<&Host> {
        self.hosts
            .iter()
            .find(|h| h.name() == name)
            .with_context(|| format!("this lab has no host {name}"))
    }

    /// The first host without a daemon.
    ///
    /// # Errors
    ///
    /// When the lab was made without one.
    pub fn client(&self) -> anyhow::Result<&Host> {
        self.host("client")
    }

    /// The host with the bridge, which is also gateway, resolver and "the outside".
    pub fn switch(&self) -> &Host {
        &self.switch
    }

    /// The folder with all logs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How to enter each host from a shell.
    pub fn entrances(&self) -> Vec<(String, String)> {
        self.hosts.iter().map(|h| (h.name().to_owned(), h.entrance())).collect()
    }

    /// Lets the lab outlive this process, with what runs in it. [`end_kept`](crate::end_kept) ends it.
    ///
    /// # Errors
    ///
    /// When a host is gone already.
    pub fn keep(mut self) -> anyhow::Result<()> {
        self.folder.mark_kept()?;
        self.switch.stay()?;
        for host in &mut self.hosts {
            host.stay()?;
        }
        self.kept = true;
        Ok(())
    }

    /// The last lines of every log, for a test that failed.
    pub fn tail(&self, lines: usize) -> String {
        let mut text = String::new();
        for host in &self.hosts {
            let Ok(entries) = fs::read_dir(&host.door.folder) else {
                continue;
            };
            let mut logs: Vec<PathBuf> = entries
                .flatten()
                .map(|e| e.path())
                .filter(|p| p.extension().is_some_and(|e| e == "log"))
                .collect();
            logs.sort();
            for log in logs {
                let all = fs::read_to_string(&log).unwrap_or_default();
                let skipped = all.lines().count().saturating_sub(lines);
                text.push_str(&format!(
                    "---- {} {}\n",
                    host.name(),
                    log.file_name().unwrap_or_default().display()
                ));
                for line in all.lines().skip(skipped) {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail(40));
        }
        if self.kept {
            return;
        }
        for host in self.hosts.drain(..) {
            drop(host);
        }
        self.switch.clear();
        self.folder.remove();
    }
}

fn make(options: &Options, bin_dir: &Path, folder: &RunFolder) -> anyhow::Result<(Host, Vec<Host>)> {
    let resolv = folder.path().join("resolv.conf");
    let resolver = match options.ipv4 {
        true => IpAddr::V4(fabric::SWITCH_V4),
        false => IpAddr::V6(fabric::SWITCH_V6),
    };
    fs::write(&resolv, format!("nameserver {resolver}\n")).context("writing the lab's resolv.conf")?;
    let start = |name: &str, place: u8, switch: Option<u32>| -> anyhow::Result<Host> {
        let own = folder.path().join(name);
        fs::create_dir_all(&own).with_context(|| format!("making {}", own.display()))?;
        let anchor = Anchor::start(&bin_dir.join("lab-anchor"), name, folder.path(), &resolv)?;
        folder.add_anchor(anchor.pid())?;
        let (v4, v6) = fabric::address(place);
        let init = anchor.init();
        Ok(Host {
            door: Door {
                host: name.to_owned(),
                init,
                bin_dir: bin_dir.to_owned(),
                folder: own,
            },
            daemons: Mutex::default(),
            daemon_options: options.daemon.clone(),
            more_config: Mutex::default(),
            data_path: Mutex::default(),
            v4,
            v6,
            has_v4: options.ipv4,
            switch: switch.unwrap_or(init),
            background: Mutex::default(),
            anchor,
        })
    };
    let switch = start("switch", 1, None)?;
    let mut hosts = Vec::new();
    for node in 1..=options.nodes {
        hosts.push(start(&format!("n{node}"), 10 + node, Some(switch.anchor.init()))?);
    }
    for client in 1..=options.clients {
        let name = if client == 1 {
            "client".to_owned()
        } else {
            format!("client{client}")
        };
        hosts.push(start(&name, 100 + client, Some(switch.anchor.init()))?);
    }
    let ports: Vec<Port> = hosts
        .iter()
        .map(|h| Port {
            name: h.name().to_owned(),
            init: h.anchor.init(),
            v4: h.v4,
            v6: h.v6,
        })
        .collect();
    fabric::build(switch.anchor.init(), &ports, (options.ipv4, options.ipv6))?;
    // The switch is the outside's router.
    switch
        .run(&["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])?
        .ok()?;
    Ok((switch, hosts))
}

fn default_bin_dir() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("asking for this program's path")?;
    let dir = exe.parent().context("this program lies in no folder")?;
    Ok(if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir).to_owned()
    } else {
        dir.to_owned()
    })
}

impl Host {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.door.host
    }

    /// Its IPv4 address on the underlay.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address on the underlay.
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// Its address on the underlay: IPv4 where that has both families.
    pub fn address(&self) -> IpAddr {
        match self.has_v4 {
            true => self.v4.into(),
            false => self.v6.into(),
        }
    }

    /// `address:port` of a port on this host, by [`Host::address`].
    pub fn at(&self, port: u16) -> String {
        fabric::socket_address(self.address(), port)
    }

    /// `[address]:port` of a port on this host, IPv6.
    pub fn at_v6(&self, port: u16) -> String {
        fabric::socket_address(IpAddr::V6(self.v6), port)
    }

    /// Its folder for logs, configuration and state; at the same path inside and outside.
    pub fn folder(&self) -> &Path {
        &self.door.folder
    }

    /// The path of `lab-tool`, which needs no PATH: for the commands of services.
    pub fn tool(&self) -> String {
        self.door.bin_dir.join("lab-tool").display().to_string()
    }

    /// PID 1 of the host, as seen by the owner of the lab.
    pub fn init_pid(&self) -> u32 {
        self.anchor.init()
    }

    /// A command line that opens a shell in it.
    pub fn entrance(&self) -> String {
        format!(
            "nsenter -t {} -a env PATH={}:$PATH bash",
            self.anchor.init(),
            self.door.bin_dir.display()
        )
    }

    /// Runs a command and takes what it says; killed after 120 s.
    ///
    /// # Errors
    ///
    /// When it cannot be started or does not end. An exit code other than 0 is no error here: see [`Output::ok`].
    pub fn run(&self, argv: &[&str]) -> anyhow::Result<Output> {
        self.door.run(argv, None)
    }

    /// As [`Host::run`], from one line split at blanks (no quoting).
    ///
    /// # Errors
    ///
    /// As [`Host::run`].
    pub fn sh(&self, line: &str) -> anyhow::Result<Output> {
        let argv: Vec<&str> = line.split_whitespace().collect();
        self.run(&argv)
    }

    /// `netctl` with the words of `line`.
    ///
    /// # Errors
    ///
    /// As [`Host::run`].
    pub fn netctl(&self, line: &str) -> anyhow::Result<Output> {
        self.sh(&format!("netctl {line}"))
    }

    /// Starts a command in the background; its output goes to `NAME.log` in the host's folder. The caller holds it.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, argv: &[&str]) -> anyhow::Result<Process> {
        self.door.spawn(name, argv, &[])
    }

    /// As [`Host::spawn`]; the host holds it until the lab ends.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or does not print a line with `ready` in 10 s.
    pub fn serve(&self, name: &str, argv: &[&str]) -> anyhow::Result<()> {
        let mut process = self.spawn(name, argv)?;
        process.line("ready", Duration::from_secs(10))?;
        self.keep(process)
    }

    /// Holds a background process until the lab ends.
    ///
    /// # Errors
    ///
    /// When another step of this lab panicked.
    pub fn keep(&self, process: Process) -> anyhow::Result<()> {
        self.background
            .lock()
            .map_err(|_| anyhow::anyhow!("another step of this lab panicked"))?
            .push(process);
        Ok(())
    }

    /// Makes a network namespace in the host, as an orchestrator would: answers its path.
    ///
    /// # Errors
    ///
    /// When there is one of that name.
    pub fn make_netns(&self, name: &str) -> anyhow::Result<String> {
        self.run(&["ip", "netns", "add", name])?.ok()?;
        self.run(&["ip", "-n", name, "link", "set", "lo", "up"])?.ok()?;
        Ok(format!("/run/netns/{name}"))
    }

    /// Runs a command in a named network namespace of the host.
    ///
    /// # Errors
    ///
    /// As [`Host::run`].
    pub fn in_netns(&self, netns: &str, argv: &[&str]) -> anyhow::Result<Output> {
        let entry = netns_entry(netns);
        let mut all = vec!["nsenter", entry.as_str(), "--"];
        all.extend_from_slice(argv);
        self.run(&all)
    }

    /// Starts a background command in a named network namespace of the host.
    ///
    /// # Errors
    ///
    /// As [`Host::serve`].
    pub fn serve_in_netns(&self, netns: &str, name: &str, argv: &[&str]) -> anyhow::Result<()> {
        let entry = netns_entry(netns);
        let mut all = vec!["nsenter", entry.as_str(), "--"];
        all.extend_from_slice(argv);
        self.serve(name, &all)
    }

    /// Processes of the host whose command line contains `text`, as the owner of the lab numbers them.
    ///
    /// # Errors
    ///
    /// When /proc cannot be read.
    pub fn processes(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(&self.anchor.init().to_string()).context("the host has ended")?;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            // An exiting process has neither any more.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(text) && namespace(&pid.to_string()).as_ref() == Some(&own) {
                found.push(pid);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// `kill -9` for one of [`Host::processes`].
    ///
    /// # Errors
    ///
    /// When there is no such process.
    pub fn kill_process(&self, pid: u32) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).with_context(|| format!("killing process {pid}"))
    }

    /// Pulls its cable: the other end goes down, its own side stays as it is.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn cut(&self) -> anyhow::Result<()> {
        fabric::set_link(self.switch, self.name(), false)
    }

    /// Puts the cable back.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn heal(&self) -> anyhow::Result<()> {
        fabric::set_link(self.switch, self.name(), true)
    }

    fn stay(&mut self) -> anyhow::Result<()> {
        if let Ok(mut daemons) = self.daemons.lock() {
            daemons.detach();
        }
        if let Ok(mut background) = self.background.lock() {
            background.iter_mut().for_each(Process::detach);
        }
        self.anchor.stay()
    }

    /// Ends what runs in the background here.
    fn clear(&self) {
        if let Ok(mut background) = self.background.lock() {
            background.clear();
        }
    }
}

/// A name is one of `ip netns`, a path is itself.
fn netns_entry(netns: &str) -> String {
    if netns.starts_with('/') {
        format!("--net={netns}")
    } else {
        format!("--net=/run/netns/{netns}")
    }
}
