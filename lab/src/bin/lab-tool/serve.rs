//! `lab-tool serve`: one server for everything that a demo, a test or a benchmark asks a backend.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use lab::wire::pattern;
use nix::sys::socket::{Backlog, listen, setsockopt, sockopt};

use crate::answer::Server;
use crate::guests;

/// Threads that accept at the start; one more is made whenever all are busy.
const THREADS: usize = 4;
/// At most so many connections at once.
const MOST_THREADS: usize = 1024;

/// Connections that wait to be accepted; the kernel allows no more (`net.core.somaxconn`).
const QUEUE: i32 = 4096;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Port, TCP and UDP.
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// SCTP on that port too.
    #[arg(long, conflicts_with = "one_thread")]
    sctp: bool,
    /// Name of the task in the answers; default: the one that netd-run's environment tells.
    #[arg(long)]
    task: Option<String>,
    /// All TCP connections that ask for an answer of one line wait in one thread.
    #[arg(long)]
    one_thread: bool,
    /// Wait so many milliseconds before listening: a service that starts slowly.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    std::thread::sleep(Duration::from_millis(args.delay_ms));
    let host = nix::unistd::gethostname().context("asking for the host name")?;
    let task = args
        .task
        .clone()
        .unwrap_or_else(|| task_of(|key| std::env::var(key).ok()));
    let server = Arc::new(Server {
        name: format!("{}/{task}", host.display()),
        pattern: pattern(),
    });
    let (tcp, udp) = sockets(args.port).with_context(|| format!("listening on port {}", args.port))?;
    let sctp = match args.sctp {
        true => Some(crate::sctp::listen(args.port, QUEUE).context("listening by SCTP")?),
        false => None,
    };
    println!("ready: {} on port {}", server.name, args.port);
    if args.one_thread {
        let of_tcp = server.clone();
        std::thread::spawn(move || {
            if let Err(error) = guests::serve(&of_tcp, &tcp) {
                eprintln!("lab-tool: {error:#}");
                std::process::exit(1);
            }
        });
        return datagrams(&server, &udp);
    }
    let tcp = Arc::new(tcp);
    let idle = Arc::new(AtomicUsize::new(0));
    let all = Arc::new(AtomicUsize::new(0));
    for _ in 0..THREADS {
        accept(&server, &tcp, &idle, &all);
    }
    if let Some(sctp) = sctp.map(Arc::new) {
        let idle = Arc::new(AtomicUsize::new(0));
        accept(&server, &sctp, &idle, &all);
    }
    datagrams(&server, &udp)
}

/// `web.1` from netd-run's variables; a dash for a server that is no task.
fn task_of(variable: impl Fn(&str) -> Option<String>) -> String {
    match (variable("NETD_SERVICE"), variable("NETD_SLOT")) {
        (Some(service), Some(slot)) => format!("{service}.{slot}"),
        _ => "-".to_owned(),
    }
}

/// Both families on one socket; IPv4 alone where the host has no IPv6.
fn sockets(port: u16) -> std::io::Result<(TcpListener, UdpSocket)> {
    let six = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let four = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let no_ipv6 = |e: &std::io::Error| {
        e.raw_os_error()
            .is_some_and(|n| n == nix::errno::Errno::EAFNOSUPPORT as i32)
            || e.kind() == std::io::ErrorKind::AddrNotAvailable
    };
    let (tcp, at) = match TcpListener::bind(six) {
        Ok(tcp) => (tcp, six),
        Err(error) if no_ipv6(&error) => (TcpListener::bind(four)?, four),
        Err(error) => return Err(error),
    };
    // The standard library's 128 are full after an eighth of a second of a busy machine's: the client's next try is a
    // second later, and would count as lost on the way.
    listen(&tcp, Backlog::new(QUEUE)?)?;
    // What is accepted has it too.
    setsockopt(&tcp, sockopt::TcpNoDelay, &true)?;
    Ok((tcp, UdpSocket::bind(at)?))
}

/// A thread that accepts and serves. Threads that wait in accept(2) cost a connection no thread of its own, so the
/// server is not what a benchmark measures.
fn accept(server: &Arc<Server>, tcp: &Arc<TcpListener>, idle: &Arc<AtomicUsize>, all: &Arc<AtomicUsize>) {
    if all.fetch_add(1, Ordering::Relaxed) >= MOST_THREADS {
        all.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    idle.fetch_add(1, Ordering::Relaxed);
    let (server, tcp, idle, all) = (server.clone(), tcp.clone(), idle.clone(), all.clone());
    std::thread::spawn(move || {
        loop {
            let Ok((stream, client)) = tcp.accept() else {
                continue;
            };
            if idle.fetch_sub(1, Ordering::Relaxed) == 1 {
                accept(&server, &tcp, &idle, &all);
            }
            // A client that went away is its own business.
            let _ = server.connection(&stream, client, &[]);
            drop(stream);
            idle.fetch_add(1, Ordering::Relaxed);
        }
    });
}

/// Each datagram is answered with who saw whom, a blank, and the datagram itself.
fn datagrams(server: &Server, udp: &UdpSocket) -> anyhow::Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        // An ICMP error for an earlier answer is reported here once: not ours to end for.
        let Ok((n, client)) = udp.recv_from(&mut buffer) else {
            continue;
        };
        let mut answer = server.answer(client).trim_end().as_bytes().to_vec();
        answer.push(b' ');
        answer.extend_from_slice(buffer.get(..n).unwrap_or_default());
        let _ = udp.send_to(&answer, client);
    }
}

#[cfg(test)]
mod tests {
    use super::task_of;

    #[test]
    fn a_task_knows_its_name() {
        let variables = |key: &str| match key {
            "NETD_SERVICE" => Some("web".to_owned()),
            "NETD_SLOT" => Some("2".to_owned()),
            _ => None,
        };
        assert_eq!(task_of(variables), "web.2");
        assert_eq!(task_of(|_| None), "-");
    }
}
