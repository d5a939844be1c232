//! Names of others: what forwarding a query takes, apart from sockets and time.
//!
//! A query is asked anew rather than passed on: own id, own EDNS, nothing of the client's but the question. So answers
//! can be shared between clients, and a client's options (a cookie, its subnet) go nowhere.

use crate::wire::{self, Edns, HEADER, OPT_LEN, Query, Reader, Transport, flag, rcode, rtype};

/// Longest time that an answer is kept, seconds: an hour, whatever its owner says.
pub const MAX_TTL: u32 = 3600;

/// A client's query for a foreign name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    id: u16,
    flags: u16,
    question: Vec<u8>,
    edns: Option<Edns>,
    limit: usize,
    key: Key,
}

/// Two queries with the same key have the same answer: name in lower case, type, class, and whether DNSSEC records or
/// unchecked data are wanted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(Vec<u8>);

/// An answer from upstream, without its OPT record and what followed that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What follows the question.
    records: Vec<u8>,
    /// Where TTLs stand in `records`.
    ttls: Vec<u16>,
    counts: [u16; 3],
    flags: u16,
    ttl: u32,
}

impl Answer {
    /// How long it may be kept, seconds; 0: not at all.
    pub fn ttl(&self) -> u32 {
        self.ttl
    }
    /// Upstream had more to say than fits a datagram: ask by TCP.
    pub fn truncated(&self) -> bool {
        self.flags & flag::TC != 0
    }
    /// Octets that it takes in memory, about.
    pub fn size(&self) -> usize {
        self.records.len() + 2 * self.ttls.len() + size_of::<Self>()
    }
}

/// What a message that came back is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reaction {
    /// Not the answer to our query (forged, late, garbage): keep waiting.
    Ignore,
    /// The server will not or cannot say: ask the next one.
    NextServer,
    /// The answer.
    Answer(Answer),
}

impl Foreign {
    /// Takes a query that [`crate::answer`] said to forward; none when it is no such query.
    pub fn parse(query: &[u8], transport: Transport) -> Option<Self> {
        let q = Query::parse(query).ok()?;
        let dnssec = q.edns.is_some_and(|e| e.dnssec_ok);
        let unchecked = q.flags & flag::CD != 0;
        let mut key = q.name.wire().to_vec();
        key.extend(q.qtype.to_be_bytes());
        key.extend(q.qclass.to_be_bytes());
        key.push(u8::from(dnssec) | u8::from(unchecked) << 1);
        Some(Foreign {
            id: q.id,
            flags: q.flags,
            question: q.question.to_vec(),
            edns: q.edns,
            limit: q.limit(transport),
            key: Key(key),
        })
    }

    /// What its answer is kept under.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The query to ask upstream, under an id that nobody can guess.
    pub fn ask(&self, id: u16) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        wire::set_header(
            &mut out,
            id,
            flag::RD | self.flags & (flag::CD | flag::AD),
            0,
            [1, 0, 0, 1],
        );
        out.extend(&self.question);
        wire::write_opt(&mut out, 0, self.edns.is_some_and(|e| e.dnssec_ok));
        out
    }

    /// Judges a message that came from the server that was asked under `id`.
    pub fn judge(&self, id: u16, message: &[u8]) -> Reaction {
        let mut r = Reader::new(message, 0);
        let (Some(got), Some(flags)) = (r.u16(), r.u16()) else {
            return Reaction::Ignore;
        };
        if got != id || flags & flag::QR == 0 || flags & flag::OPCODE != 0 {
            return Reaction::Ignore;
        }
        let code = (flags & 0x0f) as u8;
        let failed = !matches!(code, rcode::NOERROR | rcode::NXDOMAIN);
        let Some(counts) = (|| Some([r.u16()?, r.u16()?, r.u16()?, r.u16()?]))() else {
            return Reaction::Ignore;
        };
        let [questions, counts @ ..] = counts;
        // Servers that cannot read a query may leave the question out of their refusal.
        if questions == 0 && failed {
            return Reaction::NextServer;
        }
        if questions != 1 || !r.take(self.question.len()).is_some_and(|q| self.same_question(q)) {
            return Reaction::Ignore;
        }
        if failed {
            return Reaction::NextServer;
        }
        Answer::read(message, r, flags, counts).map_or(Reaction::NextServer, Reaction::Answer)
    }

    /// The name in any case, type and class exactly. Length octets are no letters, so the name can be compared whole.
    fn same_question(&self, other: &[u8]) -> bool {
        let split = self.question.len() - 4;
        other.len() == self.question.len()
            && match (self.question.split_at_checked(split), other.split_at_checked(split)) {
                (Some((name, end)), Some((other, other_end))) => name.eq_ignore_ascii_case(other) && end == other_end,
                _ => false,
            }
    }

    /// Writes the client's reply from an answer that is `age` seconds old. What is too long for the client's datagram
    /// becomes "ask by TCP".
    pub fn reply(&self, answer: &Answer, age: u32, out: &mut Vec<u8>) {
        let opt = self.edns.map_or(0, |_| OPT_LEN);
        let fits = HEADER + self.question.len() + answer.records.len() + opt <= self.limit;
        out.clear();
        out.resize(HEADER, 0);
        out.extend(&self.question);
        let start = out.len();
        let mut counts = [0; 3];
        let mut flags = answer.flags & (flag::AA | flag::AD | flag::TC | 0x0f);
        if fits {
            out.extend(&answer.records);
            counts = answer.counts;
            for at in &answer.ttls {
                let at = start + usize::from(*at);
                if let Some(Ok(field)) = out.get_mut(at..at + 4).map(<&mut [u8; 4]>::try_from) {
                    *field = u32::from_be_bytes(*field).saturating_sub(age).to_be_bytes();
                }
            }
        } else {
            flags |= flag::TC;
        }
        self.finish(flags, counts, out);
    }

    /// Writes a reply that says `code` alone, e.g. SERVFAIL when nobody answered.
    pub fn fail(&self, code: u8, out: &mut Vec<u8>) {
        out.clear();
        out.resize(HEADER, 0);
        out.extend(&self.question);
        self.finish(u16::from(code & 0x0f), [0; 3], out);
    }

    fn finish(&self, flags: u16, [an, ns, ar]: [u16; 3], out: &mut Vec<u8>) {
        let flags = flags | flag::QR | flag::RA | self.flags & (flag::RD | flag::CD);
        let opt = u16::from(self.edns.is_some());
        if let Some(edns) = self.edns {
            wire::write_opt(out, 0, edns.dnssec_ok);
        }
        wire::set_header(out, self.id, flags, 0, [1, an, ns, ar + opt]);
    }
}

impl Answer {
    /// Reads the records after the question. None: malformed, or more records than a message can hold.
    fn read(message: &[u8], mut r: Reader<'_>, flags: u16, counts: [u16; 3]) -> Option<Self> {
        let start = r.at;
        let mut end = start;
        let mut ttls = Vec::new();
        let mut kept = [0u16; 3];
        let mut least = u32::MAX;
        let mut negative = None;
        'sections: for (section, (count, kept)) in counts.into_iter().zip(&mut kept).enumerate() {
            for _ in 0..count {
                r.skip_name()?;
                let (rtype, _class) = (r.u16()?, r.u16()?);
                // What follows OPT is hints, and may point into it: it is left out.
                if rtype == rtype::OPT {
                    break 'sections;
                }
                let at = r.at;
                let ttl = r.u32()?;
                // RFC 2181 8: the highest bit set means 0.
                let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
                let len = r.u16()?;
                let rdata = r.take(len.into())?;
                ttls.push(u16::try_from(at - start).ok()?);
                *kept += 1;
                end = r.at;
                if section == 0 {
                    least = least.min(ttl);
                }
                if section == 1 && rtype == rtype::SOA {
                    let minimum = rdata.last_chunk::<4>().map_or(0, |m| u32::from_be_bytes(*m));
                    negative = Some(ttl.min(minimum));
                }
            }
        }
        // Without a SOA nobody says how long "no" holds (RFC 2308 5); what is cut short is not kept.
        let no = flags & 0x0f == u16::from(rcode::NXDOMAIN) || kept[0] == 0;
        let ttl = if no { negative.unwrap_or(0).min(least) } else { least };
        let ttl = if flags & flag::TC != 0 { 0 } else { ttl.min(MAX_TTL) };
        Some(Answer {
            records: message.get(start..end)?.to_vec(),
            ttls,
            counts: kept,
            flags,
            ttl,
        })
    }
}
