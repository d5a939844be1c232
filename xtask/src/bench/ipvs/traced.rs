//! What a process and those that it ran told the kernel of its network, by strace(1).

use std::collections::{BTreeMap, BTreeSet};

/// strace's words before those of the program; `trace` is where it writes. All strings are told as numbers: of a message the
/// first one says what it is for.
pub(super) fn words(trace: &str) -> Vec<&str> {
    let calls = "trace=execve,socket,sendto,sendmsg,sendmmsg,setsockopt,openat,unshare,mount,umount2,bpf";
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
    /// Writes, by what they were: `NETLINK_ROUTE 24`, `IPVS 1`, ...
    pub(super) writes: BTreeMap<String, u64>,
    /// What was tried out, and left nothing: in namespaces without a name that were made for it, and with nf_tables in
    /// transactions that the kernel refuses (that of User-Mode Linux has no nf_tables for netd).
    pub(super) tried: u64,
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
const IPVS_READS: [u32; 4] = [4, 8, 13, 15];
/// `GENL_ID_CTRL` of linux/genetlink.h.
const CONTROL: u32 = 0x10;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const SOCK_DIAG: u32 = 20;

/// Reads a trace.
pub(super) fn read(text: &str) -> Told {
    let calls = text.lines().filter_map(|line| line.split_once(' '));
    let calls: Vec<(&str, &str)> = calls.map(|(thread, call)| (thread, call.trim_start())).collect();
    let threads = |call: &str| -> BTreeSet<&str> {
        let of = calls.iter().filter(|(_, c)| c.starts_with(call));
        of.map(|(thread, _)| *thread).collect()
    };
    let (alone, named) = (threads("unshare(CLONE_NEWNET)"), threads("mount("));
    let mut sockets = Sockets::default();
    let mut told = Told::default();
    for (thread, call) in &calls {
        let tries = alone.contains(thread) && !named.contains(thread);
        let write = |told: &mut Told, what: String| match tries {
            true => told.tried += 1,
            false => *told.writes.entry(what).or_default() += 1,
        };
        sockets.see(thread, call);
        match call.split_once('(') {
            Some(("sendto" | "sendmsg" | "sendmmsg", args)) if args.contains("nlmsg_type=") => {
                for message in messages(args) {
                    match sockets.kind(args, &message) {
                        Kind::Asks => told.reads += 1,
                        Kind::Tries => told.tried += 1,
                        Kind::Writes(what) => write(&mut told, what),
                    }
                }
            }
            // `IPT_SO_SET_REPLACE`, `IP6T_SO_SET_ADD_COUNTERS` and the like.
            Some(("setsockopt", args)) if args.contains("T_SO_SET_") => {
                write(&mut told, args.split(", ").nth(2).unwrap_or("setsockopt").to_owned());
            }
            Some(("openat", args)) if args.contains("O_WRONLY") || args.contains("O_RDWR") => {
                let path = strings(args).next().unwrap_or_default();
                if path.starts_with("/proc/sys/") {
                    write(&mut told, path);
                }
            }
            Some(("execve", args)) => {
                let path = strings(args).next().unwrap_or_default();
                let name = path.rsplit('/').next().unwrap_or_default().to_owned();
                *told.programs.entry(name).or_default() += 1;
            }
            Some((what @ ("mount" | "umount2"), _)) => write(&mut told, what.to_owned()),
            Some(("bpf", args)) if args.starts_with("BPF_MAP_UPDATE") || args.starts_with("BPF_PROG_ATTACH") => {
                write(&mut told, args.split(',').next().unwrap_or_default().to_owned());
            }
            _ => {}
        }
    }
    told
}

/// What a netlink message is for.
enum Kind {
    Asks,
    Tries,
    Writes(String),
}

/// The family of each netlink socket: strace itself finds it out of those of its own namespace alone. All threads have the
/// same descriptors, and what netd runs speaks no netlink.
#[derive(Default)]
struct Sockets<'t> {
    family: BTreeMap<&'t str, &'t str>,
    /// Calls that are under way, by thread.
    asked: BTreeMap<&'t str, &'t str>,
}

impl<'t> Sockets<'t> {
    fn see(&mut self, thread: &'t str, call: &'t str) {
        let asked = call
            .strip_prefix("socket(AF_NETLINK, ")
            .and_then(|args| args.split(", ").nth(1));
        if let Some(family) = asked.and_then(|f| f.split([')', ' ']).next()) {
            self.asked.insert(thread, family);
        }
        if (call.starts_with("socket(") || call.starts_with("<... socket resumed>"))
            && let Some((_, number)) = call.rsplit_once("= ")
        {
            match self.asked.remove(thread) {
                Some(family) => drop(self.family.insert(number.trim_end(), family)),
                None => drop(self.family.remove(number.trim_end())),
            }
        }
    }

    fn kind(&self, args: &str, message: &Message<'_>) -> Kind {
        let socket = args.split(',').next().unwrap_or_default();
        let family = self.family.get(socket).copied().unwrap_or("netlink");
        let number = message.kind.split(' ').next().and_then(|n| n.strip_prefix("0x"));
        let number = number.and_then(|n| u32::from_str_radix(n, 16).ok());
        let asks = match (family, number, message.command) {
            // Four kinds of message for each object: new, gone, asked for, set.
            ("NETLINK_ROUTE", Some(n), _) => n % 4 == 2,
            ("NETLINK_GENERIC", Some(CONTROL), _) => true,
            ("NETLINK_GENERIC", _, Some(command)) => message.kind == "nlctrl" || IPVS_READS.contains(&command),
            ("NETLINK_NETFILTER", ..) => return Kind::Tries,
            ("NETLINK_SOCK_DIAG", Some(n), _) => n == SOCK_DIAG,
            _ => message.kind.contains("GET") || message.kind.starts_with("SOCK_DIAG"),
        };
        match (asks, message.command) {
            (true, _) => Kind::Asks,
            (false, Some(command)) if family == "NETLINK_GENERIC" => Kind::Writes(format!("IPVS {command}")),
            (false, _) => Kind::Writes(format!("{family} {}", message.kind)),
        }
    }
}

struct Message<'t> {
    /// Its type: a name, or a number and a remark.
    kind: &'t str,
    /// The first octet of what follows the header.
    command: Option<u32>,
}

/// The messages of a call.
fn messages(args: &str) -> impl Iterator<Item = Message<'_>> {
    args.split("nlmsg_type=").skip(1).map(|rest| Message {
        kind: rest.split(", ").next().unwrap_or_default(),
        command: rest
            .split('"')
            .nth(1)
            .and_then(|text| u32::from_str_radix(text.get(2..4)?, 16).ok()),
    })
}

/// The strings of a call, which are told as `\x2f\x70...`.
fn strings(args: &str) -> impl Iterator<Item = String> + '_ {
    let quoted = args.split('"').skip(1).step_by(2);
    quoted.map(|text| {
        let octets = text.split("\\x").skip(1);
        let octets = octets.filter_map(|hex| u8::from_str_radix(hex, 16).ok());
        String::from_utf8_lossy(&octets.collect::<Vec<u8>>()).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> String {
        text.bytes().map(|b| format!("\\x{b:02x}")).collect()
    }

    fn proc(setting: &str, flags: &str) -> String {
        format!("14 openat(AT_FDCWD, \"{}\", {flags}|O_CLOEXEC) = 9", hex(setting))
    }

    #[test]
    fn writes_are_told_from_questions() {
        let told = read(&format!(
            r#"10 execve("{}", ["{}"], 0x7ffd /* 9 vars */) = 0
10 socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_GENERIC) = 5
11 socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_ROUTE <unfinished ...>
12 socket(AF_INET, SOCK_DGRAM, IPPROTO_IP) = 8
11 <... socket resumed>)             = 6
10 sendto(5, [{{nlmsg_len=32, nlmsg_type=nlctrl, nlmsg_flags=NLM_F_REQUEST}}, "\x03\x01"...], 32, 0) = 32
11 sendto(6, [{{nlmsg_len=40, nlmsg_type=RTM_GETLINK, nlmsg_flags=NLM_F_REQUEST}}, {{}}], 40, 0) = 40
11 sendto(6, [{{nlmsg_len=40, nlmsg_type=0x1a /* NLMSG_??? */, nlmsg_flags=NLM_F_REQUEST}}, "\x02"...], 40, 0) = 40
11 sendto(6, [[{{nlmsg_len=40, nlmsg_type=RTM_NEWROUTE, nlmsg_flags=NLM_F_REQUEST}}, {{}}], [{{nlmsg_len=40, nlmsg_type=0x19 /* NLMSG_??? */, nlmsg_seq=3}}, "\x02"...]], 80, 0 <unfinished ...>
12 sendto(5, [[{{nlmsg_len=40, nlmsg_type=0x1c /* NLMSG_??? */, nlmsg_seq=1}}, "\x08\x01"...], [{{nlmsg_len=40, nlmsg_type=0x1c /* NLMSG_??? */, nlmsg_seq=2}}, "\x05\x01"...]], 80, 0) = 80
13 setsockopt(4, SOL_IP, IPT_SO_SET_REPLACE, "\x01"..., 900) = 0
13 setsockopt(4, SOL_SOCKET, SO_REUSEADDR, [1], 4) = 0
{}
{}
{}
10 sendto(8, "\x01\x02"..., 90, 0, {{sa_family=AF_INET}}, 16) = 90
"#,
            hex("/usr/sbin/netd"),
            hex("netd"),
            proc("/proc/sys/net/ipv4/ip_forward", "O_WRONLY"),
            proc("/proc/sys/net/ipv4/ip_forward", "O_RDONLY"),
            proc("/var/lib/netd/file", "O_RDWR"),
        ));
        let writes: Vec<(&str, u64)> = told.writes.iter().map(|(what, n)| (what.as_str(), *n)).collect();
        assert_eq!(
            writes,
            [
                ("/proc/sys/net/ipv4/ip_forward", 1),
                ("IPT_SO_SET_REPLACE", 1),
                ("IPVS 5", 1),
                ("NETLINK_ROUTE 0x19 /* NLMSG_??? */", 1),
                ("NETLINK_ROUTE RTM_NEWROUTE", 1),
            ]
        );
        assert_eq!((told.written(), told.reads, told.tried), (5, 4, 0));
        assert_eq!(told.programs, [("netd".to_owned(), 1)].into());
    }

    #[test]
    fn what_is_tried_out_is_told_apart() {
        let told = read(
            r#"7 unshare(CLONE_NEWNET) = 0
7 socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_GENERIC) = 5
7 sendto(5, [{nlmsg_len=32, nlmsg_type=0x1c /* NLMSG_??? */, nlmsg_seq=1}, "\x01\x01"...], 32, 0) = 32
8 unshare(CLONE_NEWNET) = 0
8 sendto(5, [{nlmsg_len=32, nlmsg_type=0x1c /* NLMSG_??? */, nlmsg_seq=1}, "\x01\x01"...], 32, 0) = 32
8 mount("\x2f", "\x2f", NULL, MS_BIND, NULL) = 0
9 socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_NETFILTER) = 6
9 sendto(6, [{nlmsg_len=32, nlmsg_type=0xa03 /* NLMSG_??? */, nlmsg_seq=1}, "\x01\x01"...], 32, 0) = 32
"#,
        );
        assert_eq!(told.writes, [("IPVS 1".to_owned(), 1), ("mount".to_owned(), 1)].into());
        assert_eq!(told.tried, 2);
    }
}
