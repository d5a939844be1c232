//! SCTP sockets, from `/proc/net/sctp`: it is there when the module is, and asking does not load it, as `NETLINK_SOCK_DIAG`
//! would on every host (net/sctp/proc.c).

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use model::Proto;

use super::Listener;

/// `SCTP_SS_LISTENING` of include/net/sctp/constants.h.
const LISTENING: u32 = 10;
/// `SCTP_STATE_ESTABLISHED`, and the one after it, in which data may still be under way.
const LIVING: std::ops::RangeInclusive<u32> = 3..=4;

/// An association.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Association {
    pub(super) port: u16,
    pub(super) far: u16,
    inode: u32,
    living: bool,
}

impl Association {
    /// Whether it would be cut if its process ended now.
    pub(super) fn is_living(&self) -> bool {
        self.living
    }

    pub(super) fn holder(&self) -> Listener {
        Listener {
            proto: Proto::Sctp,
            at: SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.port)),
            inode: self.inode,
        }
    }
}

/// Everything that listens in the calling thread's namespace.
pub(super) fn listeners() -> Vec<Listener> {
    table("eps").lines().flat_map(endpoint).collect()
}

/// Every association of the calling thread's namespace.
pub(super) fn associations() -> Vec<Association> {
    table("assocs").lines().filter_map(association).collect()
}

fn table(name: &str) -> String {
    fs::read_to_string(format!("/proc/thread-self/net/sctp/{name}")).unwrap_or_default()
}

/// `ENDPT SOCK STY SST HBKT LPORT UID INODE LADDRS`: one for each address that it is bound to.
fn endpoint(line: &str) -> Vec<Listener> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words.get(at).and_then(|w| w.parse::<u32>().ok());
    let port = number(5).and_then(|p| u16::try_from(p).ok());
    let (Some(LISTENING), Some(port), Some(inode)) = (number(3), port, number(7)) else {
        return Vec::new();
    };
    let addresses = words.iter().skip(8).filter_map(|w| w.parse::<IpAddr>().ok());
    let at = |ip| Listener {
        proto: Proto::Sctp,
        at: SocketAddr::new(ip, port),
        inode,
    };
    addresses.map(at).collect()
}

/// `ASSOC SOCK STY SST ST HBKT ASSOC-ID TX_QUEUE RX_QUEUE UID INODE LPORT RPORT LADDRS <-> RADDRS ...`
fn association(line: &str) -> Option<Association> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse::<u32>().ok();
    let port = |at| u16::try_from(number(at)?).ok();
    Some(Association {
        living: LIVING.contains(&number(4)?),
        inode: number(10)?,
        port: port(11)?,
        far: port(12)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_the_kernel_writes_them() {
        assert_eq!(endpoint(" ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS"), []);
        let some = endpoint("ffff8880 ffff8881 2   10  13   3868      0 12345 10.77.16.3 fd77::3 ");
        let told: Vec<String> = some.iter().map(|l| format!("{} {}", l.at, l.inode)).collect();
        assert_eq!(told, ["10.77.16.3:3868 12345", "[fd77::3]:3868 12345"]);
        assert_eq!(
            endpoint("ffff8880 ffff8881 2   7   13   3868      0 12345 0.0.0.0"),
            [],
            "it does not listen"
        );
        let line = "ffff8882 ffff8883 2   1   3  0      17        0        0       0 12346 3868  40001  *10.77.16.3 <-> *198.18.0.9 \t 7500 10 10 0 0 0 0 1 1";
        let a = association(line).unwrap();
        assert_eq!(
            (a.port, a.far, a.is_living(), a.holder().inode),
            (3868, 40_001, true, 12_346)
        );
        for bad in ["", "a b c", "x x x x y 0 0 0 0 0 0 70000 1"] {
            assert_eq!((endpoint(bad), association(bad)), (vec![], None), "{bad}");
        }
    }
}
