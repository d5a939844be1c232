//! Managers, and writes whose acknowledgements the client keeps a record of.
#![allow(clippy::disallowed_methods, reason = "acknowledgements are timed")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::{Host, Lab, eventually, until};
use model::api::{MemberView, QuorumView, STALE_HEADER, ServiceView, Vote};

/// Longest wait for anything that managers do among themselves.
pub const SETTLED: Duration = Duration::from_secs(30);

/// A cluster of all nodes whose first `managers` are managers with a vote.
///
/// # Errors
///
/// When a step fails.
pub fn form(lab: &Lab, managers: usize) -> anyhow::Result<()> {
    lab.form_cluster()?;
    let more: Vec<&str> = lab.nodes().iter().take(managers).skip(1).map(Host::name).collect();
    if !more.is_empty() {
        lab.host("n1")?
            .netctl(&format!("node promote {}", more.join(" ")))?
            .ok()?;
    }
    all_reached(lab.host("n1")?, managers)
}

/// What a host tells of the members.
///
/// # Errors
///
/// When netctl fails.
pub fn members(host: &Host) -> anyhow::Result<Vec<MemberView>> {
    host.netctl("cluster members -o json")?.json()
}

/// What a manager tells of the majority.
///
/// # Errors
///
/// When netd does not answer.
pub fn quorum(host: &Host) -> anyhow::Result<QuorumView> {
    let answer = http(&socket(host), "GET", "/v1/cluster/quorum", None, "")?;
    ensure!(answer.0 == 200, "{answer:?}");
    Ok(serde_json::from_str(&answer.1)?)
}

/// Waits until a manager reaches so many voters, itself counted, and knows a leader.
///
/// # Errors
///
/// When the time is over.
pub fn all_reached(host: &Host, voters: usize) -> anyhow::Result<()> {
    eventually(&format!("{} to reach {voters} voters", host.name()), SETTLED, || {
        let q = quorum(host)?;
        let want = u32::try_from(voters)?;
        ensure!(
            (q.voters, q.reachable, q.learners) == (want, want, 0) && q.leader.is_some(),
            "{q:?}"
        );
        Ok(true)
    })?;
    Ok(())
}

/// The host that leads, as another one sees it.
///
/// # Errors
///
/// When nobody does within [`SETTLED`].
pub fn leader<'a>(lab: &'a Lab, seen_by: &Host) -> anyhow::Result<&'a Host> {
    let (name, _) = until("a leader", SETTLED, || {
        Ok(members(seen_by)?.into_iter().find(|m| m.leader).map(|m| m.hostname))
    })?;
    lab.host(&name)
}

/// Names of the nodes that vote, as a host sees them.
///
/// # Errors
///
/// When netctl fails.
pub fn voters(host: &Host) -> anyhow::Result<BTreeSet<String>> {
    let all = members(host)?.into_iter().filter(|m| m.vote == Some(Vote::Voter));
    Ok(all.map(|m| m.hostname).collect())
}

/// Path of a host's socket, from outside.
pub fn socket(host: &Host) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root/run/netd/netd.sock", host.init_pid()))
}

/// One request on a socket: status and body.
///
/// # Errors
///
/// When no whole answer comes within 5 s.
pub fn http(
    socket: &Path,
    method: &str,
    path: &str,
    request: Option<u64>,
    body: &str,
) -> anyhow::Result<(u16, String)> {
    http_within(Duration::from_secs(5), socket, method, path, request, body)
}

/// As [`http`], with a limit of its own.
///
/// # Errors
///
/// When no whole answer comes in time.
pub fn http_within(
    limit: Duration,
    socket: &Path,
    method: &str,
    path: &str,
    request: Option<u64>,
    body: &str,
) -> anyhow::Result<(u16, String)> {
    let (head, body) = exchange(limit, socket, method, path, request, body)?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body))
}

/// Head and body of an answer.
fn exchange(
    limit: Duration,
    socket: &Path,
    method: &str,
    path: &str,
    request: Option<u64>,
    body: &str,
) -> anyhow::Result<(String, String)> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(limit))?;
    let id = request.map(|r| format!("netd-request: {r:x}\r\n")).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: netd\r\nconnection: close\r\n{id}content-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer broke off")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// What a manager answers holds all that was acknowledged before, whether it leads or not.
///
/// # Errors
///
/// When it says that it may not.
pub fn fresh(host: &Host, path: &str) -> anyhow::Result<String> {
    let (head, body) = exchange(Duration::from_secs(5), &socket(host), "GET", path, None, "")?;
    let whole = head.starts_with("HTTP/1.1 200 ") && !head.contains(STALE_HEADER);
    ensure!(whole, "{}: {head} {body}", host.name());
    Ok(body)
}

#[derive(Default)]
struct Record {
    /// Objects whose creation was acknowledged, and when.
    acknowledged: Vec<(String, Instant)>,
    /// Answers that make no sense.
    odd: Vec<String>,
}

/// Clients that create one object after the other, each with the next manager when one does not answer, under the same id
/// until it is acknowledged.
pub struct Writers {
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
    tries: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Starts `count` clients of these hosts, each with `pause` between two writes.
    pub fn start(hosts: &[&Host], count: usize, pause: Duration) -> Writers {
        let sockets: Vec<PathBuf> = hosts.iter().map(|h| socket(h)).collect();
        let record: Arc<Mutex<Record>> = Arc::default();
        let (stop, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..count).map(|client| {
            let (sockets, record, stop, tries) = (sockets.clone(), record.clone(), stop.clone(), tries.clone());
            std::thread::spawn(move || {
                let mut at = client;
                for n in 0u64.. {
                    let name = format!("w{client}-{n}");
                    let id = (u64::try_from(client).unwrap_or(0) + 1) << 32 | n;
                    loop {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        tries.fetch_add(1, Ordering::Relaxed);
                        let Some(socket) = sockets.get(at % sockets.len()) else {
                            return;
                        };
                        match http(socket, "PUT", &format!("/v1/services/{name}"), Some(id), "{}") {
                            Ok((200, _)) => break,
                            // No leader yet, a worker by now, or a daemon that is down: the next one may know better.
                            Ok((503 | 421, _)) | Err(_) => at += 1,
                            Ok(other) => {
                                if let Ok(mut r) = record.lock() {
                                    r.odd.push(format!("{name}: {other:?}"));
                                }
                                return;
                            }
                        }
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    if let Ok(mut r) = record.lock() {
                        r.acknowledged.push((name, Instant::now()));
                    }
                    std::thread::sleep(pause);
                }
            })
        });
        let threads = threads.collect();
        Writers {
            record,
            stop,
            tries,
            threads,
        }
    }

    /// Waits for the next acknowledgement after a moment; answers how long after it that came.
    ///
    /// # Errors
    ///
    /// When none comes within [`SETTLED`].
    pub fn next_after(&self, moment: Instant) -> anyhow::Result<Duration> {
        let (took, _) = until("an acknowledged write", SETTLED, || {
            let record = self.record.lock().map_err(|_| anyhow::anyhow!("a client panicked"))?;
            if let Some(odd) = record.odd.first() {
                bail!("an answer that makes no sense: {odd}");
            }
            let next = record
                .acknowledged
                .iter()
                .map(|(_, at)| *at)
                .filter(|at| *at > moment)
                .min();
            Ok(next.map(|at| at - moment))
        })?;
        Ok(took)
    }

    /// Ends the clients, and looks for everything that was acknowledged. Answers how much that was.
    ///
    /// # Errors
    ///
    /// When something is lost, or nothing was written.
    pub fn none_lost(self, host: &Host) -> anyhow::Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
        }
        let record = self.record.lock().map_err(|_| anyhow::anyhow!("a client panicked"))?;
        ensure!(record.odd.is_empty(), "answers that make no sense: {:?}", record.odd);
        ensure!(!record.acknowledged.is_empty(), "nothing was written");
        // A manager that has just begun may not know yet whether it holds all, and says so: it is asked again.
        let (there, _) = until("a list of all that there is", SETTLED, || {
            Ok(Some(serde_json::from_str::<Vec<ServiceView>>(&fresh(
                host,
                "/v1/services",
            )?)?))
        })?;
        let there: BTreeSet<&str> = there.iter().map(|s| s.name.as_str()).collect();
        let lost: Vec<&str> = record
            .acknowledged
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !there.contains(name))
            .collect();
        ensure!(
            lost.is_empty(),
            "{} of {} acknowledged writes are lost: {lost:?}",
            lost.len(),
            record.acknowledged.len()
        );
        eprintln!(
            "{} writes acknowledged ({} tries), 0 lost",
            record.acknowledged.len(),
            self.tries.load(Ordering::Relaxed)
        );
        Ok(record.acknowledged.len())
    }
}

/// `p50 0.4 s, max 0.9 s of 5`.
pub fn spread(mut all: Vec<Duration>) -> String {
    all.sort_unstable();
    let at = |i: usize| all.get(i).copied().unwrap_or_default().as_secs_f64();
    format!(
        "p50 {:.2} s, max {:.2} s of {}: {:.2?}",
        at(all.len() / 2),
        at(all.len().saturating_sub(1)),
        all.len(),
        all
    )
}
