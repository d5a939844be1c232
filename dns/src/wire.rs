//! Messages as they are on the wire (RFC 1035 4, RFC 6891): one query parsed, one reply written.

/// How a message travels: sets how long a reply may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// 512 octets, or what the client says it takes, at most [`UDP_MAX`].
    Udp,
    /// 65,535 octets.
    Tcp,
}

/// Longest reply by UDP, and the size that we say we take ourselves, octets (the "DNS flag day 2020" figure, which
/// crosses every path unfragmented).
pub(crate) const UDP_MAX: u16 = 1232;

/// Response codes (RFC 1035 4.1.1, RFC 6891 6.1.3).
pub mod rcode {
    /// No error.
    pub const NOERROR: u8 = 0;
    /// The query is malformed.
    pub const FORMERR: u8 = 1;
    /// We, or those we asked, could not find out.
    pub const SERVFAIL: u8 = 2;
    /// There is no such name.
    pub const NXDOMAIN: u8 = 3;
    /// We do not do that.
    pub const NOTIMP: u8 = 4;
    /// We will not do that.
    pub const REFUSED: u8 = 5;
    /// The query's version of EDNS is unknown.
    pub const BADVERS: u8 = 16;
}

pub(crate) mod rtype {
    pub(crate) const A: u16 = 1;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const ANY: u16 = 255;
}

pub(crate) const CLASS_IN: u16 = 1;
/// Octets of the header.
pub(crate) const HEADER: usize = 12;
/// Octets of an OPT record without options.
pub(crate) const OPT_LEN: usize = 11;
/// Longest name, octets (RFC 1035 3.1).
const NAME_MAX: usize = 255;
/// DNSSEC OK, in the last 16 bits of OPT's TTL field.
const DO: u16 = 0x8000;

pub(crate) mod flag {
    pub(crate) const QR: u16 = 0x8000;
    pub(crate) const OPCODE: u16 = 0x7800;
    pub(crate) const AA: u16 = 0x0400;
    pub(crate) const TC: u16 = 0x0200;
    pub(crate) const RD: u16 = 0x0100;
    pub(crate) const RA: u16 = 0x0080;
    pub(crate) const AD: u16 = 0x0020;
    pub(crate) const CD: u16 = 0x0010;
}

/// Reads along a message; every read is checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'m> {
    message: &'m [u8],
    pub(crate) at: usize,
}

impl<'m> Reader<'m> {
    pub(crate) fn new(message: &'m [u8], at: usize) -> Self {
        Reader { message, at }
    }
    pub(crate) fn take(&mut self, n: usize) -> Option<&'m [u8]> {
        let end = self.at.checked_add(n)?;
        let part = self.message.get(self.at..end)?;
        self.at = end;
        Some(part)
    }
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }
    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }
    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }
    pub(crate) fn done(&self) -> bool {
        self.at >= self.message.len()
    }
    /// Passes over a name that may end in a pointer.
    pub(crate) fn skip_name(&mut self) -> Option<()> {
        loop {
            match self.u8()? {
                0 => return Some(()),
                n if n < 64 => drop(self.take(n.into())?),
                n if n >= 0xc0 => return self.u8().map(drop),
                _ => return None,
            }
        }
    }
}

/// A name in wire form, in lower case, with its labels found.
#[derive(Clone, Copy)]
pub(crate) struct QName {
    wire: [u8; NAME_MAX],
    len: usize,
    /// Where each label's length octet is.
    starts: [u8; NAME_MAX / 2 + 1],
    labels: usize,
}

impl QName {
    /// Reads an uncompressed name: nothing precedes the question that a pointer could name.
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let mut name = QName {
            wire: [0; NAME_MAX],
            len: 0,
            starts: [0; NAME_MAX / 2 + 1],
            labels: 0,
        };
        loop {
            let n = r.u8()?;
            if n > 63 {
                return None;
            }
            let from = name.len;
            // The root's octet has to fit as well.
            let body = name.wire.get_mut(from..from + 1 + usize::from(n))?;
            let (head, rest) = body.split_first_mut()?;
            *head = n;
            rest.copy_from_slice(r.take(n.into())?);
            rest.make_ascii_lowercase();
            name.len += 1 + usize::from(n);
            if n == 0 {
                return Some(name);
            }
            *name.starts.get_mut(name.labels)? = u8::try_from(from).ok()?;
            name.labels += 1;
        }
    }

    /// In wire form, lower case, with the root's octet.
    pub(crate) fn wire(&self) -> &[u8] {
        self.wire.get(..self.len).unwrap_or_default()
    }

    /// The labels from left to right.
    pub(crate) fn labels(&self) -> impl DoubleEndedIterator<Item = &[u8]> + ExactSizeIterator {
        self.starts.get(..self.labels).unwrap_or_default().iter().map(|at| {
            let at = usize::from(*at);
            let n = self.wire.get(at).copied().unwrap_or_default();
            self.wire.get(at + 1..at + 1 + usize::from(n)).unwrap_or_default()
        })
    }
}

/// What the client says about itself (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edns {
    /// Longest UDP message that it takes.
    pub(crate) size: u16,
    /// Version; we know 0.
    pub(crate) version: u8,
    /// It wants DNSSEC records.
    pub(crate) dnssec_ok: bool,
}

/// A query with one question.
#[derive(Clone)]
pub(crate) struct Query<'q> {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    pub(crate) name: QName,
    /// The question as the client wrote it, capitals and all: a reply repeats it (0x20).
    pub(crate) question: &'q [u8],
    pub(crate) qtype: u16,
    pub(crate) qclass: u16,
    pub(crate) edns: Option<Edns>,
}

/// Why there is no [`Query`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Not a query at all: an answer to it could start a loop.
    Drop,
    /// To be answered with this code.
    Reply { id: u16, flags: u16, rcode: u8 },
}

impl<'q> Query<'q> {
    pub(crate) fn parse(message: &'q [u8]) -> Result<Self, Bad> {
        let mut r = Reader::new(message, 0);
        let (Some(id), Some(flags), Some(counts)) = (r.u16(), r.u16(), r.take(8)) else {
            return Err(Bad::Drop);
        };
        if flags & flag::QR != 0 {
            return Err(Bad::Drop);
        }
        let bad = |rcode| Bad::Reply { id, flags, rcode };
        if flags & flag::OPCODE != 0 {
            return Err(bad(rcode::NOTIMP));
        }
        let &[0, 1, 0, 0, 0, 0, ar_high, ar_low] = counts else {
            return Err(bad(rcode::FORMERR));
        };
        let additional = u16::from_be_bytes([ar_high, ar_low]);
        Self::parse_body(message, r, id, flags, additional).ok_or(bad(rcode::FORMERR))
    }

    fn parse_body(message: &'q [u8], mut r: Reader<'q>, id: u16, flags: u16, additional: u16) -> Option<Self> {
        let name = QName::read(&mut r)?;
        let (qtype, qclass) = (r.u16()?, r.u16()?);
        let question = message.get(HEADER..r.at)?;
        let mut edns = None;
        for _ in 0..additional {
            let root = Reader::new(message, r.at).u8() == Some(0);
            r.skip_name()?;
            let (rtype, class, ttl, len) = (r.u16()?, r.u16()?, r.u32()?, r.u16()?);
            r.take(len.into())?;
            if rtype != rtype::OPT {
                continue;
            }
            if !root || edns.is_some() {
                return None;
            }
            let [_, version, high, low] = ttl.to_be_bytes();
            let dnssec_ok = u16::from_be_bytes([high, low]) & DO != 0;
            edns = Some(Edns {
                size: class,
                version,
                dnssec_ok,
            });
        }
        r.done().then_some(Query {
            id,
            flags,
            name,
            question,
            qtype,
            qclass,
            edns,
        })
    }

    /// How long a reply may be, octets.
    pub(crate) fn limit(&self, transport: Transport) -> usize {
        match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => self.edns.map_or(512, |e| e.size.clamp(512, UDP_MAX)).into(),
        }
    }
}

/// Writes the only OPT record that we send.
pub(crate) fn write_opt(out: &mut Vec<u8>, rcode: u8, dnssec_ok: bool) {
    out.push(0);
    out.extend(rtype::OPT.to_be_bytes());
    out.extend(UDP_MAX.to_be_bytes());
    out.extend([rcode >> 4, 0]);
    out.extend(if dnssec_ok { DO } else { 0 }.to_be_bytes());
    out.extend([0, 0]);
}

/// Writes a header over the first octets of `out`, which must be there. `rcode` above 15 goes to OPT.
pub(crate) fn set_header(out: &mut [u8], id: u16, flags: u16, rcode: u8, counts: [u16; 4]) {
    let [qd, an, ns, ar] = counts;
    let words = [id, flags | u16::from(rcode & 0x0f), qd, an, ns, ar];
    for (to, word) in out.chunks_exact_mut(2).zip(words) {
        to.copy_from_slice(&word.to_be_bytes());
    }
}

/// Writes a reply that has nothing but a header.
pub(crate) fn bare_reply(id: u16, flags: u16, rcode: u8, out: &mut Vec<u8>) {
    out.clear();
    out.resize(HEADER, 0);
    let kept = flags & (flag::OPCODE | flag::RD | flag::CD);
    set_header(out, id, kept | flag::QR | flag::RA, rcode, [0; 4]);
}

/// A section of a reply, by its place in the header's counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Answer = 1,
    Authority = 2,
    Additional = 3,
}

/// Pointer to the question's name, which begins right after the header (RFC 1035 4.1.4).
pub(crate) const QUESTION_NAME: [u8; 2] = [0xc0, HEADER as u8];

/// A reply being written. Sections are written in their order.
pub(crate) struct Reply<'q, 'o> {
    query: &'q Query<'q>,
    out: &'o mut Vec<u8>,
    room: usize,
    counts: [u16; 4],
    full: bool,
}

impl<'q, 'o> Reply<'q, 'o> {
    pub(crate) fn new(query: &'q Query<'q>, transport: Transport, out: &'o mut Vec<u8>) -> Self {
        out.clear();
        out.resize(HEADER, 0);
        out.extend(query.question);
        let room = query.limit(transport) - query.edns.map_or(0, |_| OPT_LEN);
        Reply {
            query,
            out,
            room,
            counts: [1, 0, 0, 0],
            full: false,
        }
    }

    /// Adds a record; `false` (and nothing written) when it does not fit. `owner` is in wire form.
    pub(crate) fn record(&mut self, section: Section, owner: &[u8], rtype: u16, ttl: u32, rdata: &[&[u8]]) -> bool {
        let len: usize = rdata.iter().map(|part| part.len()).sum();
        let (true, Ok(len)) = (self.out.len() + owner.len() + 10 + len <= self.room, u16::try_from(len)) else {
            self.full = true;
            return false;
        };
        self.out.extend(owner);
        self.out.extend(rtype.to_be_bytes());
        self.out.extend(CLASS_IN.to_be_bytes());
        self.out.extend(ttl.to_be_bytes());
        self.out.extend(len.to_be_bytes());
        rdata.iter().for_each(|part| self.out.extend(*part));
        if let Some(count) = self.counts.get_mut(section as usize) {
            *count += 1;
        }
        true
    }

    /// Octets written so far: where the next record will begin.
    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    /// Ends the reply. TC is set by UDP alone, when an answer or authority record did not fit: by TCP there is no
    /// longer message to ask for, the client gets what fits.
    pub(crate) fn finish(mut self, transport: Transport, rcode: u8, authoritative: bool) {
        if let Some(edns) = self.query.edns {
            write_opt(self.out, rcode, edns.dnssec_ok);
            self.counts[Section::Additional as usize] += 1;
        }
        let tc = if self.full && transport == Transport::Udp {
            flag::TC
        } else {
            0
        };
        let aa = if authoritative { flag::AA } else { 0 };
        let kept = self.query.flags & (flag::RD | flag::CD);
        set_header(
            self.out,
            self.query.id,
            kept | flag::QR | flag::RA | aa | tc,
            rcode,
            self.counts,
        );
    }

    /// Forgets that something did not fit: it was an extra.
    pub(crate) fn not_missed(&mut self) {
        self.full = false;
    }
}
