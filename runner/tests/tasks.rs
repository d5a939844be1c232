//! netd-run with real processes in real namespaces, against a socket that plays netd. Needs root.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{fs, time::Duration};

use model::{
    api::TaskState,
    spec::{Condition, Health, Probe},
};
use nix::sys::signal::Signal;
use support::{Node, alive};

/// Says that it runs, then runs until it is asked to end.
const SERVE: &str = "sleep 1000 & trap 'echo term > $FIFO; kill $! 2>/dev/null; exit 0' TERM; \
     echo run $NETD_TASK $$ > $FIFO; wait";

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_in_its_namespace_and_is_drained_before_it_is_stopped() {
    let mut node = Node::new().await;
    let script = "exec > $FIFO; sleep 1000 & trap 'echo term; kill $! 2>/dev/null; exit 0' TERM; \
         echo $NETD_TASK $NETD_SERVICE $NETD_SLOT $NETD_NODE $LEVEL; \
         cat /etc/resolv.conf; readlink /proc/self/ns/net; echo logged >&2; echo said; wait";
    let mut task = node.task("web.1", 1, script);
    task.env.insert("LEVEL".into(), "debug".into());
    node.want(&[task]);
    assert_eq!(node.line().await, "web.1 web 1 n1 debug");
    assert_eq!(node.line().await, "nameserver 127.0.0.11");
    let netns = kernel::netns::Netns::open(&node.netns("web.1")).unwrap();
    assert_eq!(node.line().await, format!("net:[{}]", netns.id().inode));
    assert_eq!(node.line().await, "said");
    let pid = node.report("web.1", TaskState::Running).await.pid.unwrap();
    assert!(alive(pid));

    node.want(&[]);
    assert_eq!(node.line().await, "term");
    node.report("web.1", TaskState::Shutdown).await;
    assert_eq!(node.asked(), ["put web.1", "drain web.1", "delete web.1"]);
    assert!(!alive(pid));
    let log = fs::read_to_string(node.folder().join("log/web.1.log")).unwrap();
    assert_eq!(log, "logged\n");
    let states: Vec<TaskState> = node
        .until("reports", |s| Some(s.reports.iter().map(|(_, r)| r.state).collect()))
        .await;
    use TaskState::*;
    assert_eq!(states, [Preparing, Starting, Running, Running, Shutdown]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_listen_is_killed_with_all_its_children() {
    let mut node = Node::new().await;
    let script = "trap '' TERM; (setsid sleep 1000 &); sleep 1000 & echo run > $FIFO; while :; do sleep 1000; done";
    let mut task = node.task("web.1", 1, script);
    task.stop_grace_ms = 300;
    node.want(&[task]);
    node.line().await;
    node.report("web.1", TaskState::Running).await;
    assert!(node.inside("web.1").len() >= 3);
    node.want(&[]);
    node.report("web.1", TaskState::Shutdown).await;
    // The played netd looks for processes before it takes the namespace away.
    assert_eq!(node.asked().last().unwrap(), "delete web.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_met_with_pauses_that_grow() {
    let mut node = Node::new().await;
    let script = "echo run > $FIFO; sleep 1000 & exit 3";
    node.want(&[node.task("web.1", 1, script)]);
    let begun = tokio::time::Instant::now();
    for _ in 0..4 {
        node.line().await;
    }
    // 0.1 + 0.2 + 0.4 s lie between the first and the fourth.
    assert!(begun.elapsed() >= Duration::from_millis(700));
    let messages: Vec<String> = node
        .until("three failures", |s| {
            let failed = s.reports.iter().filter(|(_, r)| r.state == TaskState::Failed);
            let messages: Vec<String> = failed.map(|(_, r)| r.message.clone()).collect();
            (messages.len() >= 3).then_some(messages)
        })
        .await;
    assert_eq!(
        messages[..3],
        [
            "exit status 3, next try in 0.1 s",
            "exit status 3, next try in 0.2 s",
            "exit status 3, next try in 0.4 s"
        ]
    );
    // What a crashed leader left is gone before the next one starts.
    assert!(node.inside("web.1").len() <= 3, "{:?}", node.inside("web.1"));
    assert_eq!(node.asked(), ["put web.1"], "the endpoint stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_does_not_exist_is_told() {
    let node = Node::new().await;
    let mut task = node.task("web.1", 1, "");
    task.command = vec!["no-such-program".into()];
    node.want(&[task]);
    let report = node.report("web.1", TaskState::Rejected).await;
    assert!(report.message.contains("no-such-program"), "{}", report.message);
    assert!(report.message.contains("next try in 0.1 s"), "{}", report.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_generation_is_stopped_then_started() {
    let mut node = Node::new().await;
    node.want(&[node.task("web.1", 1, SERVE)]);
    let first = node.line().await;
    node.want(&[node.task("web.1", 2, SERVE)]);
    assert_eq!(node.line().await, "term");
    assert_ne!(node.line().await, first);
    assert_eq!(node.asked(), ["put web.1", "drain web.1", "delete web.1", "put web.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_outlive_a_killed_netd_run_and_are_found_again() {
    let mut node = Node::new().await;
    node.want(&[node.task("web.1", 1, SERVE), node.task("db.1", 1, SERVE)]);
    node.line().await;
    node.line().await;
    let web = node.report("web.1", TaskState::Running).await.pid.unwrap();
    let db = node.report("db.1", TaskState::Running).await.pid.unwrap();
    node.runner_down(Signal::SIGKILL).await;
    assert!(alive(web) && alive(db));
    // db.1 is no longer wanted by the time netd-run is back.
    node.want(&[node.task("web.1", 1, SERVE)]);
    node.fresh();
    node.runner_up(&[]);
    assert_eq!(node.report("web.1", TaskState::Running).await.pid, Some(web));
    node.report("db.1", TaskState::Shutdown).await;
    assert_eq!(node.line().await, "term", "db.1 was stopped, nothing was started");
    assert!(alive(web) && !alive(db));
    node.want(&[]);
    assert_eq!(node.line().await, "term");
    node.report("web.1", TaskState::Shutdown).await;
    assert!(!alive(web));
    let left: Vec<_> = fs::read_dir(node.folder().join("state"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["lock"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_killed_between_start_and_record_finds_its_task_in_the_namespace() {
    let mut node = Node::new().await;
    node.want(&[node.task("web.1", 1, SERVE)]);
    node.line().await;
    let pid = node.report("web.1", TaskState::Running).await.pid;
    node.runner_down(Signal::SIGKILL).await;
    let path = node.folder().join("state/web.1.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["process"] = serde_json::Value::Null;
    fs::write(&path, record.to_string()).unwrap();
    node.fresh();
    node.runner_up(&[]);
    assert_eq!(node.report("web.1", TaskState::Running).await.pid, pid);
    node.want(&[]);
    assert_eq!(node.line().await, "term", "nothing else was started");
}

/// Start time of a process: field 22 of proc(5).
fn start_of(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(19).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_ended_while_netd_run_was_away_is_started_again() {
    let mut node = Node::new().await;
    node.want(&[node.task("web.1", 1, SERVE)]);
    node.line().await;
    let first = node.report("web.1", TaskState::Running).await.pid.unwrap();
    node.runner_down(Signal::SIGKILL).await;
    let marks = kernel::netns::Process::find(first, start_of(first))
        .unwrap()
        .expect("it runs");
    marks.signal(Signal::SIGKILL).unwrap();
    assert!(marks.ended(Duration::from_secs(20)).unwrap());
    node.fresh();
    node.runner_up(&[]);
    node.line().await;
    let again = node.report("web.1", TaskState::Running).await;
    assert_ne!(again.pid, Some(first));
    assert_eq!(again.restarts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_go_on_and_are_restarted_while_netd_is_away() {
    let mut node = Node::new().await;
    node.want(&[node.task("web.1", 1, SERVE)]);
    node.line().await;
    let first = node.report("web.1", TaskState::Running).await.pid.unwrap();
    node.netd_down().await;
    assert!(alive(first));
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(first as i32), Signal::SIGKILL).unwrap();
    assert!(node.line().await.starts_with("run web.1"));
    node.fresh();
    node.netd_up();
    let again = node
        .until("the report that waited", |s| {
            let last = s.reports.iter().rev().find(|(_, r)| r.state == TaskState::Running);
            last.map(|(_, r)| r.clone())
        })
        .await;
    assert_ne!(again.pid, Some(first));
    node.until("the endpoint is asked for again", |s| {
        s.asked.contains(&"put web.1".into()).then_some(())
    })
    .await;
    assert!(alive(again.pid.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_namespace_was_replaced_moves() {
    let mut node = Node::new().await;
    node.want(&[node.task("web.1", 1, SERVE)]);
    node.line().await;
    let first = node.report("web.1", TaskState::Running).await.pid.unwrap();
    node.netd_down().await;
    kernel::netns::remove(&node.netns("web.1")).unwrap();
    node.netd_up();
    assert!(node.line().await.starts_with("run web.1"));
    let second = node
        .until("another process", |s| {
            let mut running = s.reports.iter().filter(|(_, r)| r.state == TaskState::Running);
            running.find(|(_, r)| r.pid != Some(first)).map(|(_, r)| r.pid.unwrap())
        })
        .await;
    assert!(!alive(first));
    assert!(node.inside("web.1").contains(&(second as i32)));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_leaves_the_tasks_alone_unless_told_otherwise() {
    let mut node = Node::new().await;
    node.want(&[node.task("web.1", 1, SERVE)]);
    node.line().await;
    let pid = node.report("web.1", TaskState::Running).await.pid.unwrap();
    assert!(node.runner_down(Signal::SIGTERM).await.success());
    assert!(alive(pid));
    node.fresh();
    node.runner_up(&["--stop-tasks"]);
    node.report("web.1", TaskState::Running).await;
    assert!(node.runner_down(Signal::SIGTERM).await.success());
    assert_eq!(node.line().await, "term");
    assert!(!alive(pid));
    node.report("web.1", TaskState::Shutdown).await;
    assert_eq!(node.asked(), ["put web.1", "drain web.1", "delete web.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_left_its_cluster_runs_nothing() {
    let mut node = Node::new().await;
    node.want(&[node.task("web.1", 1, SERVE), node.task("db.1", 1, SERVE)]);
    node.line().await;
    node.line().await;
    node.report("web.1", TaskState::Running).await;
    node.report("db.1", TaskState::Running).await;
    node.leave();
    node.report("web.1", TaskState::Shutdown).await;
    node.report("db.1", TaskState::Shutdown).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_without_a_command_belong_to_somebody_else() {
    let mut node = Node::new().await;
    let mut foreign = node.task("db.1", 1, "");
    foreign.command.clear();
    node.want(&[foreign, node.task("web.1", 1, SERVE)]);
    node.line().await;
    node.report("web.1", TaskState::Running).await;
    assert_eq!(node.asked(), ["put web.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_on_one_state_folder_are_refused() {
    let node = Node::new().await;
    node.want(&[node.task("web.1", 1, SERVE)]);
    node.report("web.1", TaskState::Running).await;
    let folder = node.folder().to_owned();
    let second = tokio::task::spawn_blocking(move || {
        std::process::Command::new(env!("CARGO_BIN_EXE_netd-run"))
            .arg("--state-dir")
            .arg(folder.join("state"))
            .arg("--log-dir")
            .arg(folder.join("log"))
            .output()
            .unwrap()
    })
    .await
    .unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains("another netd-run"), "{text}");
}

/// A health check by a command, asked often.
fn check(words: &[&str], timeout_ms: u64) -> Health {
    Health {
        interval_ms: 100,
        timeout_ms,
        retries: 2,
        ..Health::of(Probe::Command(words.iter().map(|w| (*w).to_owned()).collect()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_command_sees_what_its_task_sees() {
    let node = Node::new().await;
    let mut task = node.task("web.1", 1, "sleep 1000 & wait");
    task.hostname = Some("web-1".into());
    let script =
        "test $NETD_TASK.$(uname -n) = web.1.web-1 && grep -q 127.0.0.11 /etc/resolv.conf || { uname -n; exit 1; }";
    task.health = Some(check(&["sh", "-c", script], 5000));
    node.want(&[task]);
    let healthy = node
        .until("a verdict", |s| {
            s.reports
                .iter()
                .find_map(|(_, r)| r.health.map(|h| (h, r.message.clone())))
        })
        .await;
    assert_eq!(healthy, (true, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_command_that_hangs_is_killed_and_so_is_what_it_started() {
    let mut node = Node::new().await;
    let mut task = node.task("web.1", 1, SERVE);
    task.health = Some(check(&["sh", "-c", "yes & sleep 1000"], 200));
    node.want(&[task]);
    node.line().await;
    // Its output has no end either: it fills nothing.
    let failed = node.report("web.1", TaskState::Failed).await;
    assert!(
        failed.message.contains("did not end within 0.2 s"),
        "{}",
        failed.message
    );
    assert_eq!(node.line().await, "term", "the unhealthy task is asked to end");
    let again = node.line().await;
    assert!(again.starts_with("run web.1"), "{again}");
    node.want(&[]);
    node.report("web.1", TaskState::Shutdown).await;
    assert_eq!(
        node.asked().last().unwrap(),
        "delete web.1",
        "nothing is left in its namespace"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn http_and_connections_are_asked_for_inside_the_namespace() {
    let node = Node::new().await;
    let server = |status: &str| {
        format!(
            "import socket\ns=socket.create_server(('127.0.0.1',8080))\nwhile True:\n c=s.accept()[0]\n c.recv(99)\n \
             c.send(b'HTTP/1.1 {status}\\r\\n\\r\\n')\n c.close()\n"
        )
    };
    let http = |path: &str| Probe::Http {
        port: 8080,
        path: path.into(),
    };
    let of = |id: &str, status: &str, probe: Probe| {
        let mut task = node.task(id, 1, "");
        task.command = vec!["python3".into(), "-c".into(), server(status)];
        task.health = Some(Health {
            interval_ms: 200,
            retries: 3,
            // Four interpreters begin at once.
            start_period_ms: 5_000,
            ..Health::of(probe)
        });
        task
    };
    node.want(&[
        of("good.1", "204 No Content", http("/x")),
        of("bad.1", "500 No", http("/x")),
        of("tcp.1", "500 No", Probe::Tcp { port: 8080 }),
        of("deaf.1", "200 OK", Probe::Tcp { port: 9 }),
    ]);
    for (id, well, why) in [
        ("good.1", true, ""),
        ("tcp.1", true, ""),
        ("bad.1", false, "/x answers 500"),
        ("deaf.1", false, "refused"),
    ] {
        let (health, message) = node
            .until(id, |s| {
                let mut of_task = s.reports.iter().filter(|(i, _)| i == id);
                of_task.find_map(|(_, r)| r.health.map(|h| (h, r.message.clone())))
            })
            .await;
        assert!(health == well && message.contains(why), "{id}: {health} {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_for_good_stays_ended_over_a_restart_of_netd_run() {
    let mut node = Node::new().await;
    let mut job = node.task("job.1", 1, "echo done > $FIFO");
    job.restart.condition = Condition::OnFailure;
    let mut used_up = node.task("bad.1", 1, "exit 3");
    used_up.restart.max_attempts = Some(1);
    used_up.restart.delay_ms = 0;
    node.want(&[job.clone(), used_up.clone()]);
    assert_eq!(node.line().await, "done");
    node.report("job.1", TaskState::Complete).await;
    let gone = |s: &support::Seen| {
        let mut reports = s.reports.iter();
        reports.find(|(_, r)| r.exhausted).map(|(_, r)| (r.state, r.restarts))
    };
    assert_eq!(node.until("used up", gone).await, (TaskState::Failed, 1));
    for id in ["job.1", "bad.1"] {
        node.until("its endpoint to go", |s| {
            s.asked.contains(&format!("delete {id}")).then_some(())
        })
        .await;
    }
    node.runner_down(Signal::SIGTERM).await;
    node.fresh();
    node.runner_up(&[]);
    assert_eq!(node.until("used up", gone).await, (TaskState::Failed, 1));
    node.report("job.1", TaskState::Complete).await;
    assert_eq!(node.asked(), [""; 0], "nothing is begun anew");
    // Until there is something else to do.
    job.generation = 2;
    node.want(&[job, used_up]);
    assert_eq!(node.line().await, "done");
}
