//! What a process and those that it ran told the kernel of its network, by strace(1).

use std::collections::{BTreeMap, BTreeSet};

/// strace's words before those of the program; `trace` is where it writes. All strings are told as numbers: of a message the
/// first one says what it is for.
pub(super) fn words(trace: &str) -> Vec<&str> {
    let calls = "trace=execve,sendto,sendmsg,sendmmsg,setsockopt,openat,unshare,setns,mount,umount2,bpf";
    vec![
        "strace",
        "-f",
        "-xx",
        "-s",
        "4",
        "-e",
        "abbrev=none",
        "-e",
        calls,
        "-o",
        trace,
        "--",
    ]
}

/// What was told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Writes, by what they were: `RTM_NEWROUTE`, `IPVS 1`, ...
    pub(super) writes: BTreeMap<String, u64>,
    /// Of them those into namespaces that were made to try something out, and had no name.
    pub(super) tried: BTreeMap<String, u64>,
    /// Questions.
    pub(super) reads: u64,
    /// Programs that were run.
    pub(super) programs: BTreeMap<String, u64>,
}

impl Told {
    pub(super) fn written(&self) -> u64 {
        self.writes.values().sum()
    }
}

/// `IPVS_CMD_GET_*` of linux/ip_vs.h.
const IPVS_READS: [&str; 4] = ["04", "08", "0d", "0f"];

/// Reads a trace.
pub(super) fn read(text: &str) -> Told {
    let calls: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let calls = calls.into_iter().map(|(thread, call)| (thread, call.trim_start()));
    let calls: Vec<(&str, &str)> = calls.collect();
    let threads = |call: &str| -> BTreeSet<&str> {
        let of = calls.iter().filter(|(_, c)| c.starts_with(call));
        of.map(|(thread, _)| *thread).collect()
    };
    let (alone, named) = (threads("unshare(CLONE_NEWNET)"), threads("mount("));
    let mut told = Told::default();
    for (thread, call) in &calls {
        let writes = match alone.contains(thread) && !named.contains(thread) {
            true => &mut told.tried,
            false => &mut told.writes,
        };
        let mut write = |what: &str| *writes.entry(what.to_owned()).or_default() += 1;
        match call.split_once('(') {
            Some(("sendto" | "sendmsg" | "sendmmsg", args)) if args.contains("nlmsg_type=") => {
                for (what, is_read) in messages(args) {
                    match is_read {
                        true => told.reads += 1,
                        false => write(&what),
                    }
                }
            }
            // `IPT_SO_SET_REPLACE`, `IP6T_SO_SET_ADD_COUNTERS` and the like.
            Some(("setsockopt", args)) if args.contains("T_SO_SET_") => {
                write(args.split(", ").nth(2).unwrap_or("setsockopt"));
            }
            Some(("openat", args)) if args.contains("O_WRONLY") || args.contains("O_RDWR") => {
                let path = strings(args).next().unwrap_or_default();
                if path.starts_with("/proc/sys/") {
                    write(&path);
                }
            }
            Some(("execve", args)) => {
                let path = strings(args).next().unwrap_or_default();
                let name = path.rsplit('/').next().unwrap_or_default().to_owned();
                *told.programs.entry(name).or_default() += 1;
            }
            Some((what @ ("mount" | "umount2"), _)) => write(what),
            Some(("bpf", args)) if args.starts_with("BPF_MAP_UPDATE") || args.starts_with("BPF_PROG_ATTACH") => {
                write(args.split(',').next().unwrap_or_default());
            }
            _ => {}
        }
    }
    told
}

/// The messages of a call: what each is, and whether it only asks.
fn messages(args: &str) -> impl Iterator<Item = (String, bool)> + '_ {
    args.split("nlmsg_type=").skip(1).map(|rest| {
        let kind = rest.split(", ").next().unwrap_or_default();
        let command = rest.split('"').nth(1).and_then(|text| text.get(2..4));
        match (kind, command) {
            ("IPVS", Some(command)) => (format!("IPVS {command}"), IPVS_READS.contains(&command)),
            _ => {
                let asks = kind.contains("GET") || kind.starts_with("NLMSG_") || kind.starts_with("SOCK_DIAG");
                (kind.to_owned(), asks || kind == "nlctrl")
            }
        }
    })
}

/// The strings of a call, which are told as `\x2f\x70...`.
fn strings(args: &str) -> impl Iterator<Item = String> + '_ {
    let quoted = args.split('"').skip(1).step_by(2);
    quoted.map(|text| {
        let octets = text
            .split("\\x")
            .skip(1)
            .filter_map(|hex| u8::from_str_radix(hex, 16).ok());
        String::from_utf8_lossy(&octets.collect::<Vec<u8>>()).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> String {
        text.bytes().map(|b| format!("\\x{b:02x}")).collect()
    }

    #[test]
    fn writes_are_told_from_questions() {
        let lines = [
            format!("10 execve(\"{}\", [\"{}\"], 0x7ffd /* 9 vars */) = 0", hex("/usr/sbin/netd"), hex("netd")),
            "10 sendto(5, [{nlmsg_len=32, nlmsg_type=nlctrl, nlmsg_flags=NLM_F_REQUEST}, \"\\x03\\x01\"...], 32, 0) = 32".into(),
            "11 sendto(6, [{nlmsg_len=40, nlmsg_type=RTM_GETLINK, nlmsg_flags=NLM_F_REQUEST}, {}], 40, 0) = 40".into(),
            "11 sendto(6, [[{nlmsg_len=40, nlmsg_type=RTM_NEWROUTE, nlmsg_flags=NLM_F_REQUEST}, {}], \
             [{nlmsg_len=40, nlmsg_type=RTM_DELROUTE, nlmsg_flags=NLM_F_REQUEST}, {}]], 80, 0 <unfinished ...>".into(),
            "12 sendto(7, [[{nlmsg_len=40, nlmsg_type=IPVS, nlmsg_seq=1}, \"\\x08\\x01\"...], \
             [{nlmsg_len=40, nlmsg_type=IPVS, nlmsg_seq=2}, \"\\x05\\x01\"...]], 80, 0) = 80".into(),
            "13 setsockopt(4, SOL_IP, IPT_SO_SET_REPLACE, \"\\x01\"..., 900) = 0".into(),
            "13 setsockopt(4, SOL_SOCKET, SO_REUSEADDR, [1], 4) = 0".into(),
            format!("14 openat(AT_FDCWD, \"{}\", O_WRONLY|O_CLOEXEC) = 9", hex("/proc/sys/net/ipv4/ip_forward")),
            format!("14 openat(AT_FDCWD, \"{}\", O_RDONLY|O_CLOEXEC) = 9", hex("/proc/sys/net/ipv4/ip_forward")),
            format!("14 openat(AT_FDCWD, \"{}\", O_RDWR|O_CLOEXEC) = 9", hex("/var/lib/netd/file")),
            "10 sendto(8, \"\\x01\\x02\"..., 90, 0, {sa_family=AF_INET}, 16) = 90".into(),
        ];
        let told = read(&lines.join("\n"));
        let writes: Vec<(&str, u64)> = told.writes.iter().map(|(what, n)| (what.as_str(), *n)).collect();
        assert_eq!(
            writes,
            [
                ("/proc/sys/net/ipv4/ip_forward", 1),
                ("IPT_SO_SET_REPLACE", 1),
                ("IPVS 05", 1),
                ("RTM_DELROUTE", 1),
                ("RTM_NEWROUTE", 1),
            ]
        );
        assert_eq!((told.written(), told.reads), (5, 3));
        assert_eq!(told.programs, [("netd".to_owned(), 1)].into());
    }

    #[test]
    fn what_is_tried_out_in_a_namespace_without_a_name_is_told_apart() {
        let service = "sendto(5, [{nlmsg_len=32, nlmsg_type=IPVS, nlmsg_seq=1}, \"\\x01\\x01\"...], 32, 0) = 32";
        let made = format!("7 unshare(CLONE_NEWNET) = 0\n7 {service}\n8 unshare(CLONE_NEWNET) = 0\n8 {service}\n");
        let told = read(&format!(
            "{made}8 mount(\"\\x2f\", \"\\x2f\", NULL, MS_BIND, NULL) = 0\n"
        ));
        assert_eq!(told.tried, [("IPVS 01".to_owned(), 1)].into());
        assert_eq!(told.writes, [("IPVS 01".to_owned(), 1), ("mount".to_owned(), 1)].into());
    }
}
