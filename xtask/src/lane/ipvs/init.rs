//! The guest's first program: mounts, modules, the work, the end.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;

/// What the guest says when the work is done, before the status.
pub(super) const ENDED: &str = "lane: the guest's work ended with ";

/// What a host of this mode has, and what the tests make; each brings what it depends on. What a packet filter or a link
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
const OWN: [&str; 3] = ["/run", "/tmp", "/var/tmp"];

/// Tests know by `NETD_LANE` that what the lane is for has to be there.
const BEGIN: &str = r#"#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8 NETD_LANE=ipvs
off() {
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
exec >/dev/tty1 2>&1 </dev/null
must mount -t sysfs sysfs /sys
must mount -t cgroup2 cgroup2 /sys/fs/cgroup
"#;

/// The kernel asks this program for modules that it finds missing, and so do others that need some, iptables for one. It is
/// where the hosts of a lab have it too, whose `/run` is their own.
const LOADER: &str = r#"must mkdir -p /dev/modules/lib
must ln -s /usr/lib/uml/modules /dev/modules/lib/modules
printf '#!/bin/sh\nexec /sbin/modprobe -d /dev/modules "$@"\n' >/dev/modules/modprobe
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

/// The program for a script that may use these folders of this machine.
///
/// # Errors
///
/// When a folder's name is no text.
pub(super) fn text(script: &str, visible: &[&Path]) -> anyhow::Result<String> {
    let mut text = BEGIN.to_owned();
    for dir in OWN {
        let _ = writeln!(text, "must mount -t tmpfs -o mode=1777 tmpfs {dir}");
    }
    for dir in visible {
        let dir = dir.to_str().with_context(|| format!("{} is no text", dir.display()))?;
        if OWN.iter().any(|own| Path::new(dir).starts_with(own)) {
            // It was covered a line ago.
            let dir = quoted(dir);
            let _ = writeln!(text, "must mkdir -p {dir}\nmust mount -t hostfs -o ro,{dir} none {dir}");
        }
    }
    text.push_str(LOADER);
    let _ = writeln!(text, "must /dev/modules/modprobe -a {}", MODULES.join(" "));
    // Programs of a service expect no less.
    text.push_str("must ulimit -n 65536\nmust ip link set lo up\n");
    text.push_str(WORK);
    text.push_str(script);
    text.push_str(END);
    Ok(text)
}

/// A word that the shell takes as it is.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_are_covered_are_laid_over_again() {
        let text = text("true", &[Path::new("/tmp/it's/netd"), Path::new("/home/netd")]).unwrap();
        let mounts: Vec<&str> = text.lines().filter(|l| l.contains("hostfs")).collect();
        assert_eq!(
            mounts,
            [r"must mount -t hostfs -o ro,'/tmp/it'\''s/netd' none '/tmp/it'\''s/netd'"]
        );
    }

    #[test]
    fn the_program_is_one_that_a_shell_reads() {
        let text = text("echo \"it's\"", &[Path::new("/tmp/a")]).unwrap();
        let mut sh = std::process::Command::new("sh")
            .args(["-n", "-c", &text])
            .spawn()
            .unwrap();
        assert!(sh.wait().unwrap().success());
        assert!(text.contains(ENDED));
    }
}
