//! `lab-tool names`: the resolver that stands behind a host, so that forwarding has somewhere to go.
//!
//! Every A question is answered with one address, AAAA with another; names that begin with `missing` do not exist.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Context;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to listen, UDP and TCP.
    #[arg(long)]
    listen: SocketAddr,
    /// Answer to A.
    #[arg(long, default_value_t = Ipv4Addr::new(192, 0, 2, 53))]
    v4: Ipv4Addr,
    /// Answer to AAAA.
    #[arg(long, default_value_t = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53))]
    v6: Ipv6Addr,
}

const A: u16 = 1;
const AAAA: u16 = 28;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let udp = UdpSocket::bind(args.listen).with_context(|| format!("listening on {}", args.listen))?;
    let tcp = TcpListener::bind(args.listen).with_context(|| format!("listening on {}", args.listen))?;
    println!("ready: names on {}", args.listen);
    let (v4, v6) = (args.v4, args.v6);
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let _ = over_tcp(stream, v4, v6);
        }
    });
    let mut buffer = [0; 1500];
    loop {
        let Ok((n, client)) = udp.recv_from(&mut buffer) else {
            continue;
        };
        if let Some(reply) = reply(buffer.get(..n).unwrap_or_default(), v4, v6) {
            let _ = udp.send_to(&reply, client);
        }
    }
}

fn over_tcp(mut stream: TcpStream, v4: Ipv4Addr, v6: Ipv6Addr) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut query)?;
    if let Some(reply) = reply(&query, v4, v6) {
        let length = u16::try_from(reply.len()).unwrap_or(u16::MAX);
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(&reply)?;
    }
    Ok(())
}

/// RFC 1035, section 4: one question, one answer whose name points at the question.
fn reply(query: &[u8], v4: Ipv4Addr, v6: Ipv6Addr) -> Option<Vec<u8>> {
    let id = query.get(..2)?;
    let recursion = query.get(2)? & 1;
    let mut end = 12;
    let first = query.get(13..13 + usize::from(*query.get(12)?))?;
    loop {
        match *query.get(end)? {
            0 => break,
            n @ 1..=63 => end += 1 + usize::from(n),
            _ => return None,
        }
    }
    let question = query.get(12..end + 5)?;
    let kind = u16::from_be_bytes(query.get(end + 1..end + 3)?.try_into().ok()?);
    let missing = first.to_ascii_lowercase().starts_with(b"missing");
    let data = match kind {
        _ if missing => None,
        A => Some(v4.octets().to_vec()),
        AAAA => Some(v6.octets().to_vec()),
        _ => None,
    };
    let mut out = id.to_vec();
    out.extend_from_slice(&[0x80 | recursion, if missing { 0x83 } else { 0x80 }]);
    out.extend_from_slice(&[0, 1, 0, u8::from(data.is_some()), 0, 0, 0, 0]);
    out.extend_from_slice(question);
    if let Some(data) = data {
        out.extend_from_slice(&[0xc0, 12]);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1, 0, 0, 0, 30]);
        out.extend_from_slice(&u16::try_from(data.len()).ok()?.to_be_bytes());
        out.extend_from_slice(&data);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut q = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            q.push(u8::try_from(label.len()).unwrap());
            q.extend_from_slice(label.as_bytes());
        }
        q.push(0);
        q.extend_from_slice(&kind.to_be_bytes());
        q.extend_from_slice(&[0, 1]);
        q
    }

    #[test]
    fn addresses_are_answered_and_missing_names_are_not() {
        let a = reply(&query("example.org", A), V4, V6).unwrap();
        assert!(a.ends_with(&V4.octets()));
        assert_eq!((&a[..2], a[3] & 0xf, a[7]), (&[0xab, 0xcd][..], 0, 1));
        let missing = reply(&query("missing.org", A), V4, V6).unwrap();
        assert_eq!((missing[3] & 0xf, missing[7]), (3, 0));
        let text = reply(&query("example.org", 16), V4, V6).unwrap();
        assert_eq!((text[3] & 0xf, text[7]), (0, 0), "no data of that kind");
    }

    #[test]
    fn a_cut_query_gets_no_answer() {
        let whole = query("example.org", AAAA);
        for n in 0..whole.len() {
            assert_eq!(reply(&whole[..n], V4, V6), None, "{n} octets");
        }
    }
}
