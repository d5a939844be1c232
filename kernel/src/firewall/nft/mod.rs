//! nf_tables: table `inet netd`.

mod encode;
mod read;
#[cfg(test)]
pub(super) mod testing;

use mesh::lower::ipvs::rules::{
    Rules,
    nft::{self as wanted, Change, Table},
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use self::encode::Part;
pub(super) use self::read::base_chains;
use super::FirewallError;
use crate::{
    netfilter::TABLE,
    netlink::{NetlinkError, Socket},
};

/// How often a transaction is begun again after others' changes.
const RETRIES: usize = 10;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`, both IP families.
const INET: u8 = 1;

/// The table of one namespace.
pub(super) struct Nft {
    socket: Socket,
    /// What the table held when nf_tables was of this generation. The same generation: it still does, and need not be
    /// read.
    known: Option<(u32, Table)>,
}

fn open() -> Result<Socket, FirewallError> {
    Socket::open(NETLINK_NETFILTER).map_err(|source| FirewallError::Missing {
        what: "anything".into(),
        option: "CONFIG_NETFILTER_NETLINK",
        module: "nfnetlink",
        source,
    })
}

/// What the kernel lacks for a table of ours; `None`: nothing. All that we use is asked for in a transaction whose last
/// message is refused for certain, so that nothing comes of it.
pub(super) fn lacks() -> Result<Option<FirewallError>, FirewallError> {
    let mut socket = match open() {
        Ok(socket) => socket,
        Err(e) => return Ok(Some(e)),
    };
    for _ in 0..RETRIES {
        let generation = match read::generation(&mut socket) {
            Ok(g) => g,
            Err(e) => return Ok(Some(e)),
        };
        let parts = encode::probe();
        let last = parts.len();
        let names: Vec<_> = parts.iter().map(Part::lacking).collect();
        match socket.transaction(&encode::batch(generation, parts)) {
            Err((Some(at), _)) if at == last => return Ok(None),
            Err((_, e)) if e.is(Errno::ERESTART) => {}
            Err((at, source)) => return Ok(Some(refused(at, &names, source))),
            // It cannot succeed: the last message removes a table that nobody has.
            Ok(()) => return Ok(None),
        }
    }
    Err(FirewallError::Busy(RETRIES))
}

impl Nft {
    /// For the calling thread's namespace.
    pub(super) fn open() -> Result<Self, FirewallError> {
        Ok(Nft {
            socket: open()?,
            known: None,
        })
    }

    pub(super) fn apply(&mut self, rules: &Rules) -> Result<bool, FirewallError> {
        let table = wanted::table(rules);
        if table.chains.is_empty() {
            return self.remove();
        }
        for _ in 0..RETRIES {
            let generation = read::generation(&mut self.socket)?;
            let held = match &self.known {
                Some((g, known)) if *g == generation => Some(known.seen()),
                _ => {
                    settle(&mut self.socket, generation);
                    read::table(&mut self.socket)?
                }
            };
            let parts = match wanted::change(held.as_ref(), &table) {
                Change::None => {
                    self.known = Some((generation, table));
                    return Ok(false);
                }
                Change::Elements(sets) => encode::elements(&sets, &table),
                Change::Rebuild => encode::rebuild(&table),
            };
            if self.commit(generation, parts)? {
                // Exactly our own change lies between: what was read still holds.
                let now = read::generation(&mut self.socket)?;
                self.known = (now == generation.wrapping_add(1)).then_some((now, table));
                return Ok(true);
            }
        }
        Err(FirewallError::Busy(RETRIES))
    }

    pub(super) fn is_there(&mut self) -> Result<bool, FirewallError> {
        Ok(read::table(&mut self.socket)?.is_some())
    }

    pub(super) fn remove(&mut self) -> Result<bool, FirewallError> {
        self.known = None;
        for _ in 0..RETRIES {
            let generation = read::generation(&mut self.socket)?;
            if read::table(&mut self.socket)?.is_none() {
                return Ok(false);
            }
            if self.commit(generation, vec![encode::delete_table()])? {
                return Ok(true);
            }
        }
        Err(FirewallError::Busy(RETRIES))
    }

    /// One transaction. `Ok(false)`: somebody else was faster.
    fn commit(&mut self, generation: u32, parts: Vec<Part>) -> Result<bool, FirewallError> {
        let names: Vec<_> = parts.iter().map(Part::lacking).collect();
        match self.socket.transaction(&encode::batch(generation, parts)) {
            Ok(()) => Ok(true),
            Err((_, e)) if e.is(Errno::ERESTART) => Ok(false),
            Err((at, source)) => Err(refused(at, &names, source)),
        }
    }
}

/// Waits until a change of somebody's that is being carried out is done: its generation is told from its beginning, but
/// ranges appear at its end. A transaction of nothing waits for its turn and leaves no trace; that it may be refused (the
/// generation is gone) is told by the one that follows.
fn settle(socket: &mut Socket, generation: u32) {
    let _ = socket.transaction(&encode::batch(generation, Vec::new()));
}

/// What was refused, and what the kernel must have been built with: name, option, module.
type Lacking = (String, &'static str, &'static str);

fn refused(at: Option<usize>, names: &[Lacking], source: NetlinkError) -> FirewallError {
    // The batch begins with a header that is not a part.
    let part = at.and_then(|i| i.checked_sub(1)).and_then(|i| names.get(i));
    match part {
        Some((what, option, module)) => missing(what, option, module, source),
        None => missing("a change", "CONFIG_NF_TABLES", "nf_tables", source),
    }
}

/// Tells what the kernel lacks from other refusals: an unknown family, chain type or expression.
fn missing(what: &str, option: &'static str, module: &'static str, source: NetlinkError) -> FirewallError {
    let lacks = [
        Errno::EOPNOTSUPP,
        Errno::EAFNOSUPPORT,
        Errno::EPROTONOSUPPORT,
        Errno::ENOENT,
        Errno::EINVAL,
    ];
    if source.refusal().is_some_and(|r| lacks.contains(&r.errno)) {
        FirewallError::Missing {
            what: what.to_owned(),
            option,
            module,
            source,
        }
    } else {
        FirewallError::Netlink {
            doing: "change",
            what: what.to_owned(),
            source,
        }
    }
}

/// Whether a message of the kernel's is about our table: each names its table in its first attribute, except that of
/// the generation, which comes with all others.
pub(super) fn is_about_ours(kind: u16, body: &[u8]) -> bool {
    /// `NFT_MSG_NEWGEN`.
    const NEW_GENERATION: u16 = 15;
    kind >> 8 == SUBSYSTEM
        && kind & 0xff != NEW_GENERATION
        && body.first() == Some(&INET)
        && crate::netlink::Attrs(body.get(4..).unwrap_or_default())
            .string(1)
            .as_deref()
            == Some(TABLE)
}
