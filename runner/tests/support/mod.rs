//! A socket that plays netd, with real namespaces, and a netd-run beside it. All of it goes when the test ends, also by a
//! panic.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path as Segment, State},
    response::Response,
    routing::{get, post, put},
};
use futures_util::stream;
use kernel::netns;
use model::{
    EndpointId, EndpointState, NodeId, Vni,
    api::{Assignment, Assignments, EndpointCreate, EndpointView, TaskState, TaskStatus},
    spec::Restart,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{UnixListener, unix::pipe},
    sync::watch,
};

/// Longest that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// What netd was asked, in order.
#[derive(Default)]
pub(crate) struct Seen {
    /// `put web.1`, `drain web.1`, `delete web.1`.
    pub(crate) asked: Vec<String>,
    /// Reports, in order.
    pub(crate) reports: Vec<(String, TaskStatus)>,
}

struct Inner {
    folder: PathBuf,
    wanted: watch::Sender<Assignments>,
    seen: Mutex<Seen>,
    news: watch::Sender<u64>,
}

type Shared = Arc<Inner>;

/// A node: a played netd and a real netd-run.
pub(crate) struct Node {
    inner: Shared,
    /// A runtime of its own: when it goes, its connections go too.
    server: Option<tokio::runtime::Runtime>,
    runner: Option<Child>,
    lines: tokio::io::Lines<BufReader<pipe::Receiver>>,
}

impl Node {
    /// A node with netd and netd-run running.
    pub(crate) async fn new() -> Node {
        let mut node = Node::asleep();
        node.netd_up();
        node.runner_up(&[]);
        node
    }

    fn asleep() -> Node {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("netd-run-test-{}-{n}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let fifo = folder.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        // Also open for writing, so that it never ends between two writers.
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&fifo).unwrap();
        let empty = Assignments {
            revision: 1,
            node: NodeId(1),
            tasks: Vec::new(),
        };
        Node {
            inner: Arc::new(Inner {
                folder,
                wanted: watch::Sender::new(empty),
                seen: Mutex::default(),
                news: watch::Sender::new(0),
            }),
            server: None,
            runner: None,
            lines: BufReader::new(receiver).lines(),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.inner.folder
    }

    pub(crate) fn netns(&self, id: &str) -> PathBuf {
        self.inner.netns(id)
    }

    /// Starts the played netd.
    pub(crate) fn netd_up(&mut self) {
        let socket = self.inner.folder.join("netd.sock");
        let _ = fs::remove_file(&socket);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = {
            let _in = runtime.enter();
            UnixListener::bind(socket).unwrap()
        };
        let router = router(self.inner.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        self.server = Some(runtime);
    }

    /// Ends it, its connections too.
    pub(crate) async fn netd_down(&mut self) {
        fs::remove_file(self.inner.folder.join("netd.sock")).unwrap();
        let server = self.server.take().unwrap();
        tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    }

    /// Starts netd-run.
    pub(crate) fn runner_up(&mut self, flags: &[&str]) {
        let folder = &self.inner.folder;
        let child = Command::new(env!("CARGO_BIN_EXE_netd-run"))
            .arg("--socket")
            .arg(folder.join("netd.sock"))
            .arg("--log-dir")
            .arg(folder.join("log"))
            .arg("--state-dir")
            .arg(folder.join("state"))
            .args(flags)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.runner = Some(child);
    }

    /// Signals netd-run and waits for its end.
    pub(crate) async fn runner_down(&mut self, signal: Signal) -> std::process::ExitStatus {
        let mut child = self.runner.take().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        kill(pid, signal).unwrap();
        tokio::task::spawn_blocking(move || child.wait().unwrap())
            .await
            .unwrap()
    }

    /// A task whose command is a shell script; `$FIFO` is where [`Node::line`] reads.
    pub(crate) fn task(&self, id: &str, generation: u64, script: &str) -> Assignment {
        let (service, slot) = id.split_once('.').unwrap();
        Assignment {
            id: id.parse().unwrap(),
            service: service.parse().unwrap(),
            slot: slot.parse().unwrap(),
            networks: vec!["app".parse().unwrap()],
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: BTreeMap::from([("FIFO".to_owned(), self.folder().join("fifo").display().to_string())]),
            hostname: None,
            restart: Restart::default(),
            health: None,
            stop_grace_ms: 10_000,
            drain_timeout_ms: 10_000,
            generation,
        }
    }

    /// What the log wants from now on.
    pub(crate) fn want(&self, tasks: &[Assignment]) {
        self.inner.wanted.send_modify(|a| {
            a.revision += 1;
            a.tasks = tasks.to_vec();
        });
    }

    /// This node has left its cluster.
    pub(crate) fn leave(&self) {
        self.inner.wanted.send_modify(|a| {
            a.revision = 0;
            a.node = NodeId(0);
            a.tasks.clear();
        });
    }

    /// The next line that a task wrote.
    pub(crate) async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        line.expect("no line from a task").unwrap().unwrap()
    }

    /// Waits until `found` finds something in what netd saw.
    pub(crate) async fn until<T>(&self, what: &str, found: impl Fn(&Seen) -> Option<T>) -> T {
        let mut news = self.inner.news.subscribe();
        let wait = async {
            loop {
                if let Some(t) = found(&self.inner.seen.lock().unwrap()) {
                    return t;
                }
                news.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(t) => t,
            Err(_) => {
                let seen = self.inner.seen.lock().unwrap();
                panic!("{what}: not seen; asked {:?}, reports {:#?}", seen.asked, seen.reports)
            }
        }
    }

    /// Waits for a report of a state; gives it back.
    pub(crate) async fn report(&self, id: &str, state: TaskState) -> TaskStatus {
        self.until(&format!("{id} {state:?}"), |s| {
            let mut reports = s.reports.iter();
            reports
                .find(|(i, r)| i == id && r.state == state)
                .map(|(_, r)| r.clone())
        })
        .await
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.inner.seen.lock().unwrap().asked.clone()
    }

    /// Forgets what was seen so far.
    pub(crate) fn fresh(&self) {
        *self.inner.seen.lock().unwrap() = Seen::default();
    }

    /// Living processes in a namespace.
    pub(crate) fn inside(&self, id: &str) -> Vec<i32> {
        match netns::Netns::open(&self.netns(id)) {
            Ok(n) => processes(n.id().inode),
            Err(_) => Vec::new(),
        }
    }
}

/// Whether a process lives (a zombie does not).
pub(crate) fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|s| {
        let state = s.trim_start().chars().next();
        !matches!(state, None | Some('Z' | 'X'))
    })
}

fn pids() -> impl Iterator<Item = i32> {
    let list = fs::read_dir("/proc").unwrap().flatten();
    list.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
}

fn processes(inode: u64) -> Vec<i32> {
    let wanted = format!("net:[{inode}]");
    pids()
        .filter(|pid| {
            let link = fs::read_link(format!("/proc/{pid}/ns/net"));
            link.is_ok_and(|l| l.as_os_str() == wanted.as_str())
        })
        .collect()
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
        if let Some(mut child) = self.runner.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Tasks bear the folder in their environment, wherever they live.
        let mark = self.inner.folder.join("fifo").display().to_string();
        let ours = |pid: &i32| {
            let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            env.split(|b| *b == 0)
                .any(|v| v.strip_prefix(b"FIFO=") == Some(mark.as_bytes()))
        };
        // Until two looks find none: one may have been about to fork, or to become a task, at the first.
        let mut clean = 0;
        while clean < 2 {
            let left: Vec<i32> = pids().filter(ours).collect();
            clean = if left.is_empty() { clean + 1 } else { 0 };
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for entry in fs::read_dir(self.inner.folder.join("netns"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = netns::remove(&entry.path());
        }
        let _ = fs::remove_dir_all(&self.inner.folder);
    }
}

impl Inner {
    fn netns(&self, id: &str) -> PathBuf {
        self.folder.join("netns").join(id)
    }

    fn see(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap());
        self.news.send_modify(|n| *n += 1);
    }
}

fn router(inner: Shared) -> Router {
    Router::new()
        .route("/v1/watch", get(assignments))
        .route("/v1/tasks/{id}/status", put(report))
        .route("/v1/endpoints/{id}", put(attach).delete(detach))
        .route("/v1/endpoints/{id}/drain", post(drain))
        .with_state(inner)
}

async fn assignments(State(inner): State<Shared>) -> Response {
    let receiver = inner.wanted.subscribe();
    let lines = stream::unfold((inner, receiver, true), |(inner, mut receiver, first)| async move {
        if !first {
            receiver.changed().await.ok()?;
        }
        let mut line = serde_json::to_vec(&*receiver.borrow_and_update()).unwrap();
        line.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(line), (inner, receiver, false)))
    });
    Response::new(Body::from_stream(lines))
}

async fn report(
    State(inner): State<Shared>,
    Segment(id): Segment<String>,
    Json(status): Json<TaskStatus>,
) -> Json<serde_json::Value> {
    inner.see(|s| s.reports.push((id, status)));
    Json(serde_json::json!({}))
}

async fn attach(
    State(inner): State<Shared>,
    Segment(id): Segment<EndpointId>,
    Json(body): Json<EndpointCreate>,
) -> Json<EndpointView> {
    let path = inner.netns(id.as_str());
    netns::open_or_create(&path).expect("a namespace; these tests need root");
    let view = EndpointView {
        id: id.clone(),
        node: NodeId(1),
        network: body.network,
        vni: Vni::try_from(4096).unwrap(),
        netns: path.display().to_string(),
        interface: "eth0".into(),
        v4: Some(std::net::Ipv4Addr::LOCALHOST),
        v6: None,
        mac: "02:6e:00:00:00:01".parse().unwrap(),
        mtu: 1450,
        service: body.service,
        part_of: None,
        state: EndpointState::Starting,
        resolv_conf: "nameserver 127.0.0.11\n".into(),
        problem: None,
    };
    let further: Vec<String> = body.further.iter().map(|n| format!(" and {n}")).collect();
    inner.see(|s| s.asked.push(format!("put {id}{}", further.concat())));
    Json(view)
}

async fn drain(State(inner): State<Shared>, Segment(id): Segment<String>) -> Json<serde_json::Value> {
    inner.see(|s| s.asked.push(format!("drain {id}")));
    Json(serde_json::json!({ "acknowledged": true }))
}

async fn detach(State(inner): State<Shared>, Segment(id): Segment<String>) -> Json<serde_json::Value> {
    let path = inner.netns(&id);
    let left = match netns::Netns::open(&path) {
        Ok(n) => processes(n.id().inode).len(),
        Err(_) => 0,
    };
    let _ = netns::remove(&path);
    inner.see(|s| {
        s.asked.push(match left {
            0 => format!("delete {id}"),
            n => format!("delete {id} from under {n} processes"),
        });
    });
    Json(serde_json::json!({}))
}
