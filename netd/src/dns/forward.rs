//! Foreign names: asked of the host's resolvers, with ids and ports that nobody can guess.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::dns::{
    foreign::{Answer, Foreign, Key, Reaction},
    rcode,
};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    net::{TcpStream, UdpSocket},
    sync::{OnceCell, Semaphore},
    time::timeout,
};

use super::{
    cache::Cache,
    resolvers::Resolvers,
    serve::{read, write},
    stats::Counters,
};

/// How foreign names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardConfig {
    /// Where the host's resolvers are named; read again within a second after a change. Default `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// How long one resolver is given; the next one is asked then, three at most. Default 2 s.
    pub timeout: Duration,
    /// Foreign names under way at once, on this node; more are answered SERVFAIL. Default 1,024.
    pub under_way: usize,
    /// Answers kept. Default 8,192.
    pub cache_entries: usize,
    /// Octets that they may take. Default 8 MiB.
    pub cache_octets: usize,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        ForwardConfig {
            resolv_conf: "/etc/resolv.conf".into(),
            timeout: Duration::from_secs(2),
            under_way: 1024,
            cache_entries: 8192,
            cache_octets: 8 << 20,
        }
    }
}

/// Longest message read by UDP, octets: more than we say we take.
const MESSAGE_MAX: usize = 4096;

/// One question under way, which everybody waits for who asks the same.
type Question = Arc<OnceCell<Option<Arc<Answer>>>>;

/// The questions under way, and how many wait for each.
type Pending = Mutex<BTreeMap<Key, (Question, usize)>>;

pub(super) struct Forwarder {
    resolvers: Resolvers,
    timeout: Duration,
    permits: Semaphore,
    cache: Mutex<Cache>,
    /// Equal questions are asked once: many at a time would make forging an answer easier (RFC 5452 5).
    pending: Pending,
    random: SystemRandom,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in the queue for a question. The question is forgotten when it was answered, or when nobody waits for it any
/// more: also when the waiting was cancelled.
struct Waiting<'f> {
    pending: &'f Pending,
    key: &'f Key,
    question: Question,
}

impl<'f> Waiting<'f> {
    fn new(pending: &'f Pending, key: &'f Key) -> Self {
        let mut all = lock(pending);
        let (question, waiting) = all.entry(key.clone()).or_default();
        *waiting += 1;
        Waiting {
            pending,
            key,
            question: question.clone(),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut all = lock(self.pending);
        // After an answer the key may already stand for a new question.
        let Some((question, waiting)) = all.get_mut(self.key).filter(|(q, _)| Arc::ptr_eq(q, &self.question)) else {
            return;
        };
        *waiting -= 1;
        if *waiting == 0 || question.initialized() {
            all.remove(self.key);
        }
    }
}

impl Forwarder {
    pub(super) fn new(config: ForwardConfig) -> Self {
        Forwarder {
            resolvers: Resolvers::new(config.resolv_conf),
            timeout: config.timeout,
            permits: Semaphore::new(config.under_way.min(Semaphore::MAX_PERMITS)),
            cache: Mutex::new(Cache::new(config.cache_entries, config.cache_octets)),
            pending: Mutex::default(),
            random: SystemRandom::new(),
        }
    }

    /// Writes the reply to a foreign query: from the cache, from a resolver, or SERVFAIL.
    pub(super) async fn resolve(&self, query: &Foreign, stats: &Counters, out: &mut Vec<u8>) {
        let now = Instant::now();
        let cached = lock(&self.cache).get(query.key(), now);
        if let Some((answer, age)) = cached {
            Counters::add(&stats.cached);
            return query.reply(&answer, age, out);
        }
        match self.ask_once(query, stats).await {
            Some(answer) => query.reply(&answer, 0, out),
            None => {
                Counters::add(&stats.failed);
                query.fail(rcode::SERVFAIL, out);
            }
        }
    }

    async fn ask_once(&self, query: &Foreign, stats: &Counters) -> Option<Arc<Answer>> {
        let _permit = self.permits.try_acquire().ok()?;
        let waiting = Waiting::new(&self.pending, query.key());
        let answer = waiting.question.get_or_init(|| async {
            let answer = Arc::new(self.ask(query, stats).await?);
            lock(&self.cache).put(query.key().clone(), answer.clone(), Instant::now());
            Some(answer)
        });
        answer.await.clone()
    }

    /// Asks the resolvers one after the other.
    async fn ask(&self, query: &Foreign, stats: &Counters) -> Option<Answer> {
        for server in self.resolvers.get(Instant::now()) {
            match timeout(self.timeout, self.ask_udp(query, server, stats)).await {
                Ok(Ok(Some(answer))) if answer.truncated() => {
                    let whole = timeout(self.timeout, self.ask_tcp(query, server)).await;
                    // A resolver that does not speak TCP: the client is told that there is more.
                    return Some(whole.ok().and_then(Result::ok).flatten().unwrap_or(answer));
                }
                Ok(Ok(Some(answer))) => return Some(answer),
                Ok(Ok(None)) => tracing::debug!(%server, "the resolver has no answer"),
                Ok(Err(e)) => tracing::debug!(%server, error = %e, "the resolver cannot be asked"),
                Err(_) => tracing::debug!(%server, "the resolver is silent"),
            }
        }
        None
    }

    fn id(&self) -> io::Result<u16> {
        let mut id = [0; 2];
        self.random
            .fill(&mut id)
            .map_err(|_| io::Error::other("no random numbers"))?;
        Ok(u16::from_ne_bytes(id))
    }

    /// A socket of its own for each question: the kernel picks its port at random, and, connected, passes on what comes
    /// from that very resolver alone.
    async fn ask_udp(&self, query: &Foreign, server: SocketAddr, stats: &Counters) -> io::Result<Option<Answer>> {
        let any: IpAddr = if server.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        let id = self.id()?;
        socket.send(&query.ask(id)).await?;
        let mut message = vec![0; MESSAGE_MAX];
        loop {
            let n = socket.recv(&mut message).await?;
            match query.judge(id, message.get(..n).unwrap_or_default()) {
                Reaction::Answer(answer) => return Ok(Some(answer)),
                Reaction::NextServer => return Ok(None),
                Reaction::Ignore => Counters::add(&stats.forged),
            }
        }
    }

    async fn ask_tcp(&self, query: &Foreign, server: SocketAddr) -> io::Result<Option<Answer>> {
        let mut stream = TcpStream::connect(server).await?;
        let id = self.id()?;
        write(&mut stream, &query.ask(id)).await?;
        Ok(match query.judge(id, &read(&mut stream).await?) {
            Reaction::Answer(answer) => Some(answer),
            Reaction::NextServer | Reaction::Ignore => None,
        })
    }
}
