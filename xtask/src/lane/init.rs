//! The first program of a guest on this machine's files: mounts, modules, the work, the end.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use super::machine::Machine;

/// What the guest says when the work is done, before the status.
const ENDED: &str = "lane: the guest's work ended with ";

/// What is not the same in every lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guest<'a> {
    /// Name of the lane. Tests know by it (`NETD_LANE`) that what the lane is for has to be there.
    pub(super) lane: &'a str,
    /// The terminal that the lane listens to.
    pub(super) terminal: &'a str,
    /// The folder of the kernel's modules: in it one a release, with what `depmod` makes.
    pub(super) modules: &'a Path,
    /// Folders of this machine that the work needs, where they are here.
    pub(super) visible: &'a [&'a Path],
}

/// What a host of either data path has, and what the tests make; each brings what it depends on. What a packet filter or a link
/// asks for beside them, the kernel loads itself, as on any machine.
const MODULES: &[&str] = &[
    "ipv6",
    "veth",
    "bridge",
    "vxlan",
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_wrr",
    "ip_vs_lc",
    "ip_vs_wlc",
    "ip_vs_sh",
    "ip_vs_mh",
    "nf_conntrack_netlink",
    "udp_diag",
    "sch_ingress",
    "cls_flower",
    "cls_fw",
    "cls_matchall",
    "cls_bpf",
    "act_gact",
    "act_skbedit",
    "act_skbmod",
];

/// Folders that are the guest's own, and empty.
const OWN: [&str; 4] = ["/run", "/tmp", "/var/log", "/var/tmp"];

/// What was said last has left a serial line when that is closed.
const BEGIN: &str = r#"#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8
off() {
    exec >/dev/null 2>&1
    echo o >/proc/sysrq-trigger
    sleep 60
}
must() {
    "$@" && return
    echo "lane: $* failed"
    off
}
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
"#;

const MOUNTS: &str = r#"must mount -t sysfs sysfs /sys
must mount -t cgroup2 cgroup2 /sys/fs/cgroup
"#;

/// The kernel asks this program for modules that it finds missing, and so do others that need some, iptables for one. It is
/// where the hosts of a lab have it too, whose `/run` is their own.
const LOADER: &str = r#"printf '#!/bin/sh\nexec /sbin/modprobe -d /dev/modules "$@"\n' >/dev/modules/modprobe
must chmod 755 /dev/modules/modprobe
echo /dev/modules/modprobe >/proc/sys/kernel/modprobe
"#;

/// The work sees a pipe, as in CI, and not a terminal.
const WORK: &str = r#"must mkfifo /run/said
cat /run/said &
reader=$!
(
"#;

/// Whatever the work has left running holds the pipe. It ends, all that was said is shown, and then the end is told.
const END: &str = r#"
) >/run/said 2>&1
status=$?
for pid in /proc/[0-9]*; do
    pid=${pid#/proc/}
    [ $pid = 1 ] || [ $pid = $reader ] || kill -9 $pid 2>/dev/null
done
wait $reader
echo "lane: the guest's work ended with $status"
off
"#;

/// The program for a script.
///
/// # Errors
///
/// When a folder's name is no text.
pub(super) fn text(script: &str, guest: &Guest<'_>) -> anyhow::Result<String> {
    let mut text = BEGIN.to_owned();
    let Guest { lane, terminal, .. } = guest;
    let _ = writeln!(text, "export NETD_LANE={lane}\nexec >{terminal} 2>&1 </dev/null");
    text.push_str(MOUNTS);
    // What would be covered is held, and laid over again.
    let covered = guest
        .visible
        .iter()
        .filter(|dir| OWN.iter().any(|own| dir.starts_with(own)));
    let covered = covered.map(|dir| name(dir)).collect::<anyhow::Result<Vec<_>>>()?;
    for (i, dir) in covered.iter().enumerate() {
        let _ = writeln!(
            text,
            "must mkdir -p /dev/visible/{i}\nmust mount --bind {dir} /dev/visible/{i}"
        );
    }
    for dir in OWN {
        let _ = writeln!(text, "must mount -t tmpfs -o mode=1777 tmpfs {dir}");
    }
    for (i, dir) in covered.iter().enumerate() {
        let _ = writeln!(text, "must mkdir -p {dir}\nmust mount --move /dev/visible/{i} {dir}");
    }
    let modules = name(guest.modules)?;
    let _ = writeln!(
        text,
        "must mkdir -p /dev/modules/lib\nmust ln -s {modules} /dev/modules/lib/modules"
    );
    text.push_str(LOADER);
    let _ = writeln!(text, "must /dev/modules/modprobe -a {}", MODULES.join(" "));
    // Programs of a service expect no less.
    text.push_str("must ulimit -n 65536\nmust ip link set lo up\n");
    text.push_str(WORK);
    text.push_str(script);
    text.push_str(END);
    Ok(text)
}

/// Hears such a guest: calls `each` with every line that its work writes. Answers the script's status.
///
/// # Errors
///
/// The guest ends before its work does, or takes longer than `limit`: the end of its console is told.
pub(super) fn follow(machine: Machine, limit: Duration, each: &mut dyn FnMut(&str)) -> anyhow::Result<i32> {
    let (mut status, mut last) = (None, String::new());
    let ended = machine.follow(limit, &mut |line| match line.strip_prefix(ENDED) {
        Some(told) => status = told.parse().ok(),
        None => {
            each(line);
            line.clone_into(&mut last);
        }
    })?;
    let tail = format!(
        "its last line: {last}\nthe end of its kernel's console:\n{}",
        ended.console
    );
    match (ended.status, status) {
        (None, _) => bail!(
            "the guest was not done after {} s and was switched off; {tail}",
            limit.as_secs()
        ),
        // What the script says counts when the kernel ended in order too.
        (Some(s), Some(status)) if s.success() => Ok(status),
        (Some(s), _) => bail!("the guest's kernel ended with {s} before its work was done; {tail}"),
    }
}

/// A path as the shell takes it.
fn name(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str();
    text.map(quoted)
        .with_context(|| format!("{} is no text", path.display()))
}

/// A word that the shell takes as it is.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(visible: &[&Path], script: &str) -> String {
        let guest = Guest {
            lane: "ipvs",
            terminal: "/dev/tty1",
            modules: Path::new("/usr/lib/uml/modules"),
            visible,
        };
        text(script, &guest).unwrap()
    }

    #[test]
    fn folders_that_are_covered_are_laid_over_again() {
        let text = with(&[Path::new("/home/netd"), Path::new("/tmp/it's/netd")], "true");
        let at = |line: &str| text.lines().position(|l| l == line).expect(line);
        let held = at(r"must mount --bind '/tmp/it'\''s/netd' /dev/visible/0");
        let covered = at("must mount -t tmpfs -o mode=1777 tmpfs /tmp");
        let laid = at(r"must mount --move /dev/visible/0 '/tmp/it'\''s/netd'");
        assert!(held < covered && covered < laid);
        assert!(!text.contains("/home/netd"));
    }

    #[test]
    fn the_program_is_one_that_a_shell_reads() {
        let text = with(&[Path::new("/tmp/a")], "echo \"it's\"");
        let mut sh = std::process::Command::new("sh")
            .args(["-n", "-c", &text])
            .spawn()
            .unwrap();
        assert!(sh.wait().unwrap().success());
        assert!(text.contains(ENDED));
    }
}
