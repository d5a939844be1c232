//! One connection of the server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lab::wire::{Checker, PATTERN};

/// A request line longer than this is refused.
const LINE: u64 = 8 * 1024;

/// What a server says of itself, and the pattern that it sends.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) pattern: Vec<u8>,
}

impl Server {
    pub(crate) fn answer(&self, client: SocketAddr) -> String {
        format!("{} {}\n", self.name, plain(client.ip()))
    }

    /// Serves a connection to its end. An error ends it: the client tells. `before`: what was read of it already.
    pub(crate) fn connection(&self, stream: &TcpStream, client: SocketAddr, before: &[u8]) -> std::io::Result<()> {
        let mut reader = BufReader::new(before.chain(stream));
        let mut line = String::new();
        loop {
            line.clear();
            if reader.by_ref().take(LINE).read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut writer: &TcpStream = stream;
            let mut words = line.split_ascii_whitespace();
            match words.next().unwrap_or_default() {
                "WHO" => writer.write_all(self.answer(client).as_bytes())?,
                "BYE" => return writer.write_all(self.answer(client).as_bytes()),
                "SINK" => {
                    let mut checker = Checker::default();
                    let mut buffer = vec![0; 128 * 1024];
                    loop {
                        match reader.read(&mut buffer)? {
                            0 => break,
                            n => checker.take(buffer.get(..n).unwrap_or_default()),
                        }
                    }
                    return writeln!(writer, "{} {}", checker.received, checker.wrong);
                }
                "SOURCE" => {
                    let octets = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
                    let rate = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
                    return self.source(writer, octets, rate);
                }
                "GET" | "HEAD" | "POST" | "PUT" => {
                    let close = skip_headers(&mut reader)?;
                    let body = self.answer(client);
                    write!(
                        writer,
                        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    )?;
                    if close {
                        return Ok(());
                    }
                }
                other => return writeln!(writer, "unknown request {other:?}"),
            }
        }
    }

    fn source(&self, mut writer: &TcpStream, octets: u64, rate: u64) -> std::io::Result<()> {
        let start = Instant::now();
        let mut sent: u64 = 0;
        while sent < octets {
            let at = usize::try_from(sent % PATTERN as u64).unwrap_or(0);
            let rest = self.pattern.get(at..).unwrap_or_default();
            let mut n = rest.len().min(usize::try_from(octets - sent).unwrap_or(usize::MAX));
            if rate > 0 {
                // Portions of about 10 ms keep a stream steady, so that a gap in it is the network's.
                n = n.min(usize::try_from(rate / 100).unwrap_or(usize::MAX).max(1));
            }
            writer.write_all(rest.get(..n).unwrap_or_default())?;
            sent += n as u64;
            if let Some(due) = (sent * 1_000_000).checked_div(rate) {
                std::thread::sleep(Duration::from_micros(due).saturating_sub(start.elapsed()));
            }
        }
        Ok(())
    }
}

/// Reads to the blank line; answers whether the client wants the connection closed.
fn skip_headers(reader: &mut impl BufRead) -> std::io::Result<bool> {
    let mut close = false;
    let mut line = String::new();
    for _ in 0..100 {
        line.clear();
        if reader.by_ref().take(LINE).read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        close |= line.to_ascii_lowercase().trim() == "connection: close";
    }
    Ok(close)
}

/// An IPv4 client of a dual-stack socket under its own name.
pub(crate) fn plain(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}
