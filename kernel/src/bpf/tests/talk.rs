//! Clients and servers of the lab: who answered, and whom it saw.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use super::world::{World, wait};
use crate::testing::hear;

const WAIT: Duration = Duration::from_secs(5);

/// Serves in a namespace until the test is over: says who it is and whom it sees, then echoes.
pub(super) fn serve(world: &World, netns: &'static str, port: u16) {
    let (tcp, udp) = world.within(netns, || {
        let any = (Ipv6Addr::UNSPECIFIED, port);
        (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
    });
    world.help(netns, move |stop| {
        let mut b = vec![0; 65_536];
        while wait(&udp, &stop) {
            // An error is what ICMP said of an earlier answer.
            let Ok((n, from)) = udp.recv_from(&mut b) else { continue };
            let mut answer = format!("{netns} {} ", canonical(from)).into_bytes();
            answer.extend_from_slice(&b[..n]);
            let _ = udp.send_to(&answer, from);
        }
    });
    world.help(netns, move |stop| {
        while wait(&tcp, &stop) {
            let (mut s, from) = tcp.accept().unwrap();
            // Ends with its client, which the test holds.
            std::thread::spawn(move || {
                let _ = s.write_all(format!("{netns} {} ", canonical(from)).as_bytes());
                let mut b = vec![0; 65_536];
                while let Ok(n) = s.read(&mut b) {
                    if n == 0 || s.write_all(&b[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

fn canonical(a: SocketAddr) -> SocketAddr {
    SocketAddr::new(a.ip().to_canonical(), a.port())
}

/// What a server said: who it was, and the client as it saw it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) who: String,
    pub(super) saw: SocketAddr,
    pub(super) mine: SocketAddr,
}

fn heard(text: &[u8], mine: SocketAddr) -> (Heard, usize) {
    let mut words = text.splitn(3, |c| *c == b' ');
    let who = String::from_utf8(words.next().unwrap().to_vec()).unwrap();
    let saw: SocketAddr = String::from_utf8(words.next().unwrap().to_vec())
        .unwrap()
        .parse()
        .unwrap();
    let head = text.len() - words.next().unwrap().len();
    (Heard { who, saw, mine }, head)
}

/// Connects from a namespace, sends `octets`, expects them back.
pub(super) fn tcp(world: &World, netns: &str, to: (IpAddr, u16), octets: usize) -> std::io::Result<Heard> {
    world.within(netns, || {
        exchange(TcpStream::connect_timeout(&to.into(), WAIT)?, octets)
    })
}

/// The talk on an open connection.
pub(super) fn exchange(mut s: TcpStream, octets: usize) -> std::io::Result<Heard> {
    s.set_read_timeout(Some(WAIT))?;
    s.set_write_timeout(Some(WAIT))?;
    let mine = s.local_addr()?;
    let sent: Vec<u8> = (0..octets).map(|i| (i * 7 % 251) as u8).collect();
    let mut writer = s.try_clone()?;
    let data = sent.clone();
    let writing = std::thread::spawn(move || {
        let _ = writer.write_all(&data);
        let _ = writer.shutdown(std::net::Shutdown::Write);
    });
    let mut text = Vec::new();
    s.read_to_end(&mut text)?;
    writing.join().unwrap();
    let (heard, head) = heard(&text, mine);
    assert_eq!(text.len() - head, octets, "octets came back");
    assert!(text[head..] == sent[..], "the octets that came back are those sent");
    Ok(heard)
}

/// Waits until the server of a port has no connection left: its clients' last acknowledgements have arrived, and no packet
/// is on its way any more.
pub(super) fn closed(world: &World, netns: &str, port: u16) {
    // linux/tcp_states.h; the server's socket is one of IPv6.
    const LISTEN: &str = "0A";
    let local = format!(":{port:04X}");
    let until = Instant::now() + WAIT;
    loop {
        let table = world.within(netns, || std::fs::read_to_string("/proc/thread-self/net/tcp6").unwrap());
        let open = table.lines().filter(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (here, state) = (fields.next(), fields.nth(1));
            here.is_some_and(|a| a.ends_with(&local)) && state != Some(LISTEN)
        });
        if open.count() == 0 {
            return;
        }
        assert!(Instant::now() < until, "a connection of {netns} stays:\n{table}");
        std::thread::yield_now();
    }
}

/// Asks by UDP from a namespace; asks again a few times, as UDP may lose the first to path MTU discovery.
pub(super) fn udp(world: &World, netns: &str, to: (IpAddr, u16), octets: usize) -> std::io::Result<Heard> {
    world.within(netns, || {
        let any: IpAddr = if to.0.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let s = UdpSocket::bind((any, 0))?;
        s.connect(to)?;
        s.set_read_timeout(Some(Duration::from_millis(700)))?;
        let sent: Vec<u8> = (0..octets).map(|i| (i * 7 % 251) as u8).collect();
        let mut b = vec![0; 65_536];
        let mut last = std::io::Error::other("never asked");
        for _ in 0..4 {
            let answer = s.send(&sent).and_then(|_| hear(&s, &mut b));
            match answer {
                Ok((n, _)) => {
                    let (heard, head) = heard(&b[..n], s.local_addr()?);
                    assert!(b[head..n] == sent[..], "the datagram came back as it was sent");
                    return Ok(heard);
                }
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => return Err(e),
                Err(e) => last = e,
            }
        }
        Err(last)
    })
}
