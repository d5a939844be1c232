//! The sockets of one namespace.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use ::dns::{Table, Transport, Verdict, View, foreign::Foreign, rcode};
use arc_swap::ArcSwap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{forward::Forwarder, stats::Counters};

/// Longest query by UDP, octets; what is longer is cut, and so malformed. Real ones have at most some hundreds.
const QUERY_MAX: usize = 4096;
/// Foreign names that one namespace may have under way by UDP; more are answered SERVFAIL at once, so that one task
/// cannot use up the resolvers for the others.
const FOREIGN_MAX: usize = 64;
/// TCP connections that one namespace may have open; more are closed at once.
const CONNECTIONS_MAX: usize = 32;
/// How long a TCP connection may be idle, and how long one message may take (RFC 7766 6.2.3: seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Pause after an error of a socket that should have none, so that it cannot become a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// What all namespaces share.
pub(super) struct Context {
    table: watch::Receiver<Arc<Table>>,
    forwarder: Forwarder,
    spin: AtomicU32,
    pub(super) stats: Counters,
}

impl Context {
    pub(super) fn new(table: watch::Receiver<Arc<Table>>, forwarder: Forwarder) -> Self {
        Context {
            table,
            forwarder,
            spin: AtomicU32::new(0),
            stats: Counters::default(),
        }
    }

    fn answer(&self, view: &View, query: &[u8], transport: Transport, out: &mut Vec<u8>) -> Verdict {
        let table = self.table.borrow().clone();
        let verdict = ::dns::answer(&table, view, query, transport, self.spin.fetch_add(1, Relaxed), out);
        match verdict {
            Verdict::Reply => self.stats.reply(out),
            Verdict::Forward => Counters::add(&self.stats.foreign),
            Verdict::Drop => Counters::add(&self.stats.dropped),
        }
        verdict
    }

    async fn forward(&self, query: &Foreign, out: &mut Vec<u8>) {
        self.forwarder.resolve(query, &self.stats, out).await;
        self.stats.reply(out);
    }
}

/// The sockets of a namespace, opened inside it, usable anywhere.
pub(super) struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Sockets {
    /// Opens both on port 53; to be called inside the namespace.
    pub(super) fn open(address: Ipv4Addr) -> io::Result<Self> {
        let at = SocketAddr::from((address, 53));
        let udp = std::net::UdpSocket::bind(at)?;
        let tcp = std::net::TcpListener::bind(at)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Sockets { udp, tcp })
    }
}

/// A namespace being served; its sockets are closed when this is dropped.
pub(super) struct Serving {
    view: Arc<ArcSwap<View>>,
    tasks: [JoinHandle<()>; 2],
}

impl Serving {
    pub(super) fn start(context: Arc<Context>, view: Arc<ArcSwap<View>>, sockets: Sockets) -> io::Result<Self> {
        let udp = Arc::new(UdpSocket::from_std(sockets.udp)?);
        let tcp = TcpListener::from_std(sockets.tcp)?;
        let tasks = [
            tokio::spawn(datagrams(context.clone(), view.clone(), udp)),
            tokio::spawn(connections(context, view.clone(), tcp)),
        ];
        Ok(Serving { view, tasks })
    }

    /// Changes the view; queries from now on are answered by it.
    pub(super) fn see(&self, view: View) {
        if **self.view.load() != view {
            self.view.store(Arc::new(view));
        }
    }

    /// A task of it has ended, which only a fault can bring about.
    pub(super) fn is_dead(&self) -> bool {
        self.tasks.iter().any(JoinHandle::is_finished)
    }

    /// Closes the sockets; afterwards the addresses are free.
    pub(super) async fn close(mut self) {
        for task in &mut self.tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn datagrams(context: Arc<Context>, view: Arc<ArcSwap<View>>, socket: Arc<UdpSocket>) {
    let mut under_way = JoinSet::new();
    let mut query = vec![0; QUERY_MAX];
    let mut reply = Vec::with_capacity(QUERY_MAX);
    loop {
        let (query, from) = match socket.recv_from(&mut query).await {
            Ok((n, from)) => (query.get(..n).unwrap_or_default(), from),
            Err(e) => {
                tracing::debug!(error = %e, "receiving a query");
                sleep(PAUSE).await;
                continue;
            }
        };
        Counters::add(&context.stats.udp);
        match context.answer(&view.load(), query, Transport::Udp, &mut reply) {
            Verdict::Reply => send(&socket, &reply, from).await,
            Verdict::Drop => {}
            Verdict::Forward => {
                while under_way.try_join_next().is_some() {}
                let Some(foreign) = Foreign::parse(query, Transport::Udp) else {
                    continue;
                };
                if under_way.len() >= FOREIGN_MAX {
                    Counters::add(&context.stats.failed);
                    foreign.fail(rcode::SERVFAIL, &mut reply);
                    context.stats.reply(&reply);
                    send(&socket, &reply, from).await;
                    continue;
                }
                let (context, socket) = (context.clone(), socket.clone());
                under_way.spawn(async move {
                    let mut reply = Vec::new();
                    context.forward(&foreign, &mut reply).await;
                    send(&socket, &reply, from).await;
                });
            }
        }
    }
}

/// A reply that cannot be sent is lost, as datagrams may be: the client asks again.
async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(e) = socket.send_to(reply, to).await {
        tracing::debug!(error = %e, %to, "sending a reply");
    }
}

async fn connections(context: Arc<Context>, view: Arc<ArcSwap<View>>, listener: TcpListener) {
    let mut open = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::debug!(error = %e, "accepting a connection");
                sleep(PAUSE).await;
                continue;
            }
        };
        while open.try_join_next().is_some() {}
        if open.len() < CONNECTIONS_MAX {
            open.spawn(connection(context.clone(), view.clone(), stream));
        }
    }
}

/// Messages with their length before them (RFC 1035 4.2.2), one after the other.
async fn connection(context: Arc<Context>, view: Arc<ArcSwap<View>>, mut stream: TcpStream) {
    let mut reply = Vec::new();
    while let Ok(Ok(query)) = timeout(IDLE, read(&mut stream)).await {
        Counters::add(&context.stats.tcp);
        let verdict = context.answer(&view.load(), &query, Transport::Tcp, &mut reply);
        match (verdict, Foreign::parse(&query, Transport::Tcp)) {
            (Verdict::Reply, _) => {}
            (Verdict::Forward, Some(foreign)) => context.forward(&foreign, &mut reply).await,
            (Verdict::Forward | Verdict::Drop, _) => return,
        }
        if !matches!(timeout(IDLE, write(&mut stream, &reply)).await, Ok(Ok(()))) {
            return;
        }
    }
}

pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; len.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

pub(super) async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(io::Error::other)?;
    // One write, one segment: some clients read the length and the message in one go.
    let framed = [&len.to_be_bytes(), message].concat();
    stream.write_all(&framed).await
}
