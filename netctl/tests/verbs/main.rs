//! The binary against a socket that plays netd: what is asked, what is printed, and the exit codes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod ssh;

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::{net::UnixListener, runtime::Runtime};

/// Answers to one request, one after the other; the last is repeated.
type Answers = VecDeque<(u16, Value)>;

#[derive(Default)]
struct Play {
    answers: BTreeMap<String, Answers>,
    asked: Vec<(String, Value)>,
}

/// A played netd.
struct Netd {
    folder: PathBuf,
    play: Arc<Mutex<Play>>,
    _runtime: Runtime,
}

impl Netd {
    fn new() -> Netd {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("netctl-test-{}-{n}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let play = Arc::new(Mutex::new(Play::default()));
        let router = Router::new().fallback(answer).with_state(play.clone());
        let listener = {
            let _in = runtime.enter();
            UnixListener::bind(folder.join("netd.sock")).unwrap()
        };
        runtime.spawn(async move { axum::serve(listener, router).await });
        Netd {
            folder,
            play,
            _runtime: runtime,
        }
    }

    /// Answers `request`, e.g. `GET /v1/nodes`, with each of `answers` in turn.
    fn on(&self, request: &str, answers: &[(u16, Value)]) -> &Self {
        let answers = answers.iter().cloned().collect();
        self.play.lock().unwrap().answers.insert(request.to_owned(), answers);
        self
    }

    fn run(&self, line: &str) -> Outcome {
        let output = Command::new(env!("CARGO_BIN_EXE_netctl"))
            .args(line.split_whitespace())
            .env("NETD_SOCKET", self.folder.join("netd.sock"))
            .env_remove("NO_COLOR")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Outcome::from(output)
    }

    fn count(&self, request: &str) -> usize {
        let play = self.play.lock().unwrap();
        play.asked.iter().filter(|(r, _)| r == request).count()
    }

    fn asked(&self, request: &str) -> Option<Value> {
        let play = self.play.lock().unwrap();
        let mut asked = play.asked.iter();
        asked.find(|(r, _)| r == request).map(|(_, b)| b.clone())
    }
}

impl Drop for Netd {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

async fn answer(State(play): State<Arc<Mutex<Play>>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let request = format!("{method} {uri}");
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut play = play.lock().unwrap();
    play.asked.push((request.clone(), body));
    let (status, body) = match play.answers.get_mut(&request) {
        Some(a) if a.len() > 1 => a.pop_front().unwrap(),
        Some(a) => a.front().unwrap().clone(),
        None => (404, error("not_found", &format!("{request} is not played"), "")),
    };
    (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response()
}

struct Outcome {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Outcome {
    fn from(o: Output) -> Self {
        Outcome {
            code: o.status.code().unwrap(),
            out: String::from_utf8(o.stdout).unwrap(),
            err: String::from_utf8(o.stderr).unwrap(),
        }
    }
}

fn error(code: &str, message: &str, hint: &str) -> Value {
    let retryable = code == "unavailable";
    json!({ "code": code, "message": message, "hint": hint, "retryable": retryable })
}

fn progress(id: u64, living: bool, applied: u64, problems: &[&str]) -> Value {
    json!({ "id": id, "hostname": format!("host{id}"), "living": living, "applied": applied, "problems": problems })
}

fn convergence(converged: bool, nodes: &[Value]) -> (u16, Value) {
    (200, json!({ "revision": 7, "converged": converged, "nodes": nodes }))
}

fn everywhere() -> (u16, Value) {
    convergence(
        true,
        &[
            progress(1, true, 7, &[]),
            progress(2, true, 8, &[]),
            progress(3, true, 7, &[]),
        ],
    )
}

fn service(replicas: u32, ready: &[bool]) -> (u16, Value) {
    let backends: Vec<Value> = ready
        .iter()
        .enumerate()
        .map(|(n, ready)| {
            json!({
                "endpoint": format!("web.{}", n + 1), "node": 1, "hostname": "host1", "vni": 4096,
                "v4": "10.77.16.2", "v6": null, "state": if *ready { "ready" } else { "starting" },
                "in_use": ready, "why": if *ready { Value::Null } else { json!("port 80/tcp is not listened on") },
                "listening": [],
            })
        })
        .collect();
    let body = json!({
        "name": "web", "index": 1,
        "spec": { "networks": ["app"], "replicas": replicas, "command": ["srv"] },
        "vips": { "app": { "v4": "10.77.0.2", "v6": null } },
        "ports": {}, "generation": 1, "problem": null,
        "ready": ready.iter().filter(|r| **r).count(), "backends": backends,
    });
    (200, body)
}

fn tasks(states: &[&str]) -> (u16, Value) {
    let all: Vec<Value> = states
        .iter()
        .enumerate()
        .map(|(n, state)| {
            json!({
                "id": format!("web.{}", n + 1), "service": "web", "slot": n + 1, "node": 1, "hostname": "host1",
                "desired": true, "state": state, "since_s": 1, "message": "", "addresses": [], "restarts": 0,
            })
        })
        .collect();
    (200, Value::Array(all))
}

fn me() -> (u16, Value) {
    let node = json!({
        "id": 1, "hostname": "host1", "role": "manager", "availability": "active", "health": "ready", "leader": true,
        "me": true, "addr": "198.18.0.1", "datapath": "ebpf", "version": "0.1.0", "applied": 7, "tasks": 2, "problems": [],
    });
    (200, json!([node]))
}

fn changed(message: &str) -> (u16, Value) {
    (200, json!({ "revision": 7, "message": message }))
}

const CONVERGENCE: &str = "GET /v1/convergence?revision=7";

#[test]
fn publish_80_ends_with_a_line_to_try() {
    let netd = Netd::new();
    let answer = json!({ "revision": 7, "service": "web", "port": { "published": 80, "target": 80, "proto": "tcp" } });
    netd.on("POST /v1/publish", &[(200, answer)])
        .on(
            CONVERGENCE,
            &[
                convergence(false, &[progress(1, true, 7, &[]), progress(2, true, 6, &[])]),
                everywhere(),
            ],
        )
        .on(
            "GET /v1/services/web",
            &[service(2, &[true, false]), service(2, &[true, true])],
        )
        .on("GET /v1/services/web/tasks", &[tasks(&["running", "running"])])
        .on("GET /v1/nodes", &[me()]);
    let o = netd.run("service publish 80");
    assert_eq!(
        (o.code, o.out.as_str()),
        (
            0,
            ":80 on 3 nodes -> web (2/2 healthy)\ntry: curl http://198.18.0.1:80/\n"
        ),
        "{}",
        o.err
    );
    // Off a terminal each change is a line.
    assert_eq!(
        o.err,
        "revision 7: 1 of 2 living nodes\nweb: 1 of 2 ready (web.2 on host1: port 80/tcp is not listened on)\n"
    );
    assert_eq!(
        netd.asked("POST /v1/publish").unwrap(),
        json!({ "service": null, "port": { "published": 80, "target": 80, "proto": "tcp", "mode": "ingress", "on": "" } })
    );
}

#[test]
fn publish_that_fits_several_services_lists_the_commands() {
    let netd = Netd::new();
    let message = "80/tcp fits several services:\n  netctl service publish api 80\n  netctl service publish web 80";
    netd.on(
        "POST /v1/publish",
        &[(409, error("ambiguous", message, "netctl service publish api 80"))],
    );
    let o = netd.run("service publish 80");
    assert_eq!(o.code, 2);
    assert_eq!(o.out, "");
    assert_eq!(o.err, format!("error: {message}\ntry: netctl service publish api 80\n"));
}

#[test]
fn living_nodes_that_lag_are_named_and_the_exit_code_is_3() {
    let netd = Netd::new();
    netd.on(
        "PUT /v1/networks/app",
        &[changed("network app: VNI 4096, 10.77.0.0/16")],
    )
    .on(
        CONVERGENCE,
        &[convergence(
            false,
            &[
                progress(1, true, 7, &[]),
                progress(2, true, 5, &["no room in a map"]),
                progress(3, false, 1, &[]),
            ],
        )],
    );
    let o = netd.run("network create app --subnet 10.77.0.0/16 --timeout 200ms");
    assert_eq!(o.code, 3, "{}", o.err);
    assert!(
        o.err.contains("n2 (host2) has applied 5 of 7: no room in a map"),
        "{}",
        o.err
    );
    assert!(!o.err.contains("n3"), "{}", o.err);
    assert!(o.err.ends_with("try: netctl status\n"), "{}", o.err);
}

#[test]
fn an_interrupt_ends_the_waiting_and_says_what_was_accepted() {
    let netd = Netd::new();
    netd.on("DELETE /v1/networks/app", &[changed("network app is removed")])
        .on(CONVERGENCE, &[convergence(false, &[progress(2, true, 5, &[])])]);
    let child = Command::new(env!("CARGO_BIN_EXE_netctl"))
        .args(["network", "rm", "app"])
        .env("NETD_SOCKET", netd.folder.join("netd.sock"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The second question shows that it waits.
    while netd.count(CONVERGENCE) < 2 {
        std::thread::yield_now();
    }
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let o = Outcome::from(child.wait_with_output().unwrap());
    assert_eq!(o.code, 3, "{}", o.err);
    assert!(o.err.contains("accepted as revision 7"), "{}", o.err);
}

#[test]
fn dead_nodes_are_named_and_not_waited_for() {
    let netd = Netd::new();
    netd.on(
        "PUT /v1/networks/app",
        &[changed("network app: VNI 4096, 10.77.0.0/16")],
    )
    .on(
        CONVERGENCE,
        &[
            (503, error("unavailable", "no leader", "")),
            convergence(true, &[progress(1, true, 7, &[]), progress(3, false, 1, &[])]),
        ],
    );
    let o = netd.run("network create app --ipv6");
    assert_eq!((o.code, o.out.as_str()), (0, "network app: VNI 4096, 10.77.0.0/16\n"));
    assert!(
        o.err.contains("note: n3 (host3) is down and was not waited for"),
        "{}",
        o.err
    );
    assert_eq!(netd.asked("PUT /v1/networks/app").unwrap()["ipv6"], json!(true));
}

#[test]
fn services_wait_for_their_tasks() {
    let netd = Netd::new();
    netd.on("PUT /v1/services/web", &[changed("service web")])
        .on("POST /v1/services/web/scale", &[changed("")])
        .on(CONVERGENCE, &[everywhere()])
        .on("GET /v1/services/web", &[service(2, &[]), service(2, &[true, true])])
        .on(
            "GET /v1/services/web/tasks",
            &[tasks(&["assigned", "starting"]), tasks(&["running", "running"])],
        );
    let o = netd.run("service create web --network app --replicas 2 --env A=1 -- srv -v");
    assert_eq!(
        (o.code, o.out.as_str()),
        (0, "service web is made (2/2 healthy)\n"),
        "{}",
        o.err
    );
    let spec = netd.asked("PUT /v1/services/web").unwrap();
    assert_eq!(spec["command"], json!(["srv", "-v"]));
    assert_eq!(spec["env"], json!({ "A": "1" }));

    // Half of it: degraded. Nothing of it: not converged.
    netd.on("GET /v1/services/web", &[service(2, &[true, false])]);
    let o = netd.run("service scale web=2 --timeout 100ms");
    assert_eq!(o.code, 5, "{}", o.err);
    assert!(
        o.err.contains("web.2 on host1: port 80/tcp is not listened on"),
        "{}",
        o.err
    );
    netd.on("GET /v1/services/web", &[service(2, &[])]);
    assert_eq!(netd.run("service scale web=2 --timeout 100ms").code, 3);
    let o = netd.run("service scale web=2 --detach");
    assert_eq!(
        (o.code, o.out.as_str()),
        (0, "web scaled to 2, not waited for (revision 7)\n")
    );
}

#[test]
fn netd_that_is_not_there_is_4() {
    let netd = Netd::new();
    for line in ["status", "node ls", "service publish 80"] {
        let o = netd.run(&format!("{line} --socket /nonexistent/netd.sock"));
        assert_eq!(o.code, 4, "{line}: {}", o.err);
        assert!(o.err.contains("cannot reach netd"), "{}", o.err);
        assert!(o.err.ends_with("try: systemctl status netd\n"), "{}", o.err);
    }
}

#[test]
fn slips_are_usage_errors_with_a_way_out() {
    let netd = Netd::new();
    for (line, word) in [
        ("servcie ls", "try: netctl service ls\n"),
        ("service publsh 80", "try: netctl service publish 80\n"),
        ("service publish", "netctl service publish 80"),
        ("service publish web", "netctl service publish web 80"),
        ("service publish 80/dccp", "tcp nor udp nor sctp"),
        ("network create a_b", "DNS label"),
        ("network create app --subnet 10.77.0.1/16", "10.77.0.0/16"),
        ("endpoint add --network app", "--netns"),
        ("endpoint add --network app --netns /a --pid 1", "cannot be used with"),
        ("service scale web", "web=5"),
        ("service create web --timeout soon -- x", "not a time"),
        ("cluster token boss", "worker"),
        ("node inspect a/b", "netctl node ls"),
    ] {
        let o = netd.run(line);
        assert_eq!(o.code, 2, "{line}: {}{}", o.out, o.err);
        assert!(o.err.contains(word), "{line}: {}", o.err);
    }
    assert!(netd.play.lock().unwrap().asked.is_empty(), "nothing reached netd");
}

#[test]
fn lists_filter_and_print_for_scripts() {
    let netd = Netd::new();
    netd.on("GET /v1/nodes", &[me()]);
    let o = netd.run("node ls");
    assert!(o.out.starts_with("ID   HOSTNAME  ROLE"), "{}", o.out);
    assert!(!o.out.contains('\x1b'), "no colours in a pipe");
    assert_eq!(netd.run("node ls -q").out, "n1\n");
    assert_eq!(netd.run("node ls -q --filter health=down").out, "");
    let all: Value = serde_json::from_str(&netd.run("node ls -o json").out).unwrap();
    assert_eq!(all[0]["hostname"], "host1");
    let o = netd.run("node ls --filter colour=red");
    assert_eq!(o.code, 2);
    assert!(o.err.contains("health"), "{}", o.err);
}

#[test]
fn a_cluster_is_made_and_joined() {
    let netd = Netd::new();
    let made = json!({ "cluster": "abc", "node": 1, "addr": "198.18.0.1:2377", "worker_token": "TOKEN" });
    netd.on("POST /v1/cluster/init", &[(200, made)])
        .on(
            "POST /v1/cluster/join",
            &[(200, json!({ "cluster": "abc", "node": 2, "role": "worker" }))],
        )
        .on(
            "POST /v1/cluster/leave",
            &[(
                409,
                error("conflict", "this is the last manager", "netctl cluster leave --force"),
            )],
        )
        .on(
            "GET /v1/cluster/token?role=worker",
            &[(200, json!({ "token": "TOKEN", "addr": "198.18.0.1:2377" }))],
        );
    let o = netd.run("cluster init --advertise-addr 198.18.0.1");
    assert_eq!(o.code, 0, "{}", o.err);
    assert!(
        o.out.ends_with("  netctl cluster join TOKEN 198.18.0.1:2377\n"),
        "{}",
        o.out
    );
    assert_eq!(
        netd.asked("POST /v1/cluster/init").unwrap()["advertise_addr"],
        json!("198.18.0.1")
    );
    let o = netd.run("cluster join TOKEN 198.18.0.1:2377");
    assert_eq!(o.out, "this node is n2, a worker of cluster abc\n");
    assert_eq!(netd.run("cluster token worker -q").out, "TOKEN\n");
    let o = netd.run("cluster leave");
    assert_eq!(o.code, 1);
    assert_eq!(
        o.err,
        "leaving\nerror: this is the last manager\ntry: netctl cluster leave --force\n"
    );
}

#[test]
fn an_endpoint_is_added_and_an_unknown_one_is_not_removed_in_silence() {
    let netd = Netd::new();
    let view = json!({
        "id": "db", "node": 1, "network": "app", "vni": 4096, "netns": "/run/netns/db", "interface": "eth0",
        "v4": "10.77.16.2", "v6": "fd00::2", "mac": "02:6e:0a:4d:10:02", "mtu": 1450, "service": "web", "state": "starting",
        "resolv_conf": "", "problem": null,
    });
    netd.on("PUT /v1/endpoints/db", &[(200, view)]).on(
        "GET /v1/endpoints/nope",
        &[(
            404,
            error("not_found", "no endpoint nope on this node", "netctl endpoint ls"),
        )],
    );
    let o = netd.run("endpoint add --netns /run/netns/db --network app --service web");
    assert_eq!(
        o.out, "endpoint db is 10.77.16.2,fd00::2 on app (eth0 in /run/netns/db), backend of web\n",
        "{}",
        o.err
    );
    let o = netd.run("endpoint rm nope");
    assert_eq!(
        (o.code, o.err.as_str()),
        (1, "error: no endpoint nope on this node\ntry: netctl endpoint ls\n")
    );
    assert!(netd.asked("DELETE /v1/endpoints/nope").is_none());
}

#[test]
fn completion_scripts_name_the_nouns() {
    let netd = Netd::new();
    let o = netd.run("completion bash");
    assert_eq!(o.code, 0);
    assert!(o.out.contains("network") && o.out.contains("publish"));
}

#[test]
fn settings_are_changed_by_key_and_value() {
    let netd = Netd::new();
    netd.on(
        "POST /v1/cluster/update",
        &[(200, json!({"revision": 7, "message": "node-grace=30s"}))],
    );
    let done = netd.run("cluster update node-grace=30s autolock=false --detach");
    assert_eq!((done.code, done.out.trim()), (0, "node-grace=30s"), "{}", done.err);
    let asked = netd.asked("POST /v1/cluster/update").unwrap();
    assert_eq!(asked, json!({"set": {"node-grace": "30s", "autolock": "false"}}));
    assert_eq!(netd.run("cluster update node-grace").code, 2);
    assert_eq!(netd.run("cluster update").code, 2);
    netd.on(
        "POST /v1/discover",
        &[(200, json!({"addresses": ["a:2377", "b:2377"]}))],
    );
    let found = netd.run("discover nodes://a,b -q");
    assert_eq!(
        (found.code, found.out.as_str()),
        (0, "a:2377\nb:2377\n"),
        "{}",
        found.err
    );
    // An address or a way to discover one, not both, not neither.
    assert_eq!(netd.run("cluster join TOKEN").code, 2);
    assert_eq!(netd.run("cluster join TOKEN a --discover nodes://a").code, 2);
}
