use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
    routing::{get, put},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn read(url: &str) -> String {
    match url.parse::<Url>() {
        Ok(u) => format!("{:?} {} /{} {}s", u.scheme, u.hosts.join(","), u.path, u.ttl.as_secs()),
        Err(e) => format!("{e}; try: {}", e.hint),
    }
}

#[test]
fn urls_are_read_or_refused() {
    for (url, want) in [
        (
            "nodes://a,b:9,10.0.0.[1:3]:2377",
            "Nodes a:2377,b:9,10.0.0.1:2377,10.0.0.2:2377,10.0.0.3:2377 / 180s",
        ),
        ("10.0.0.[9:10]", "Nodes 10.0.0.9:2377,10.0.0.10:2377 / 180s"),
        (
            "nodes://[2001:db8::1]:99,2001:db8::2",
            "Nodes [2001:db8::1]:99,[2001:db8::2]:2377 / 180s",
        ),
        (
            "nodes://host[1:2].example.net",
            "Nodes host1.example.net:2377,host2.example.net:2377 / 180s",
        ),
        (
            "nodes://10.[1:2].0.[1:2]",
            "Nodes 10.1.0.1:2377,10.1.0.2:2377,10.2.0.1:2377,10.2.0.2:2377 / 180s",
        ),
        ("file:///etc/netd/managers", "File  //etc/netd/managers 180s"),
        ("file://etc", "\"etc\" is no absolute path"),
        ("etcd://127.0.0.1", "Etcd 127.0.0.1:2379 / 180s"),
        ("etcd://a,b:2380/some/path/", "Etcd a:2379,b:2380 /some/path 180s"),
        ("consul://[::1]/x?ttl=30s", "Consul [::1]:8500 /x 30s"),
        ("zk://h1,h2:2182/p", "Zk h1:2181,h2:2182 /p 180s"),
        ("dns://managers.example.net", "Dns managers.example.net:2377 / 180s"),
        ("token://h/NETD1-a-b", "Token h:2377 /NETD1-a-b 180s"),
        (
            "ftp://a",
            "\"ftp\" is no way to discover managers; try: nodes://, file://",
        ),
        ("zk://", "is neither an address nor a name"),
        ("zk://a/../b", "is no path"),
        ("zk://a/x y", "has blanks"),
        ("zk://a?ttl=1s", "is no time to live"),
        ("zk://a?tll=10s", "is not known behind the question mark"),
        ("nodes://10.0.0.[3:1]", "range that is empty or too wide"),
        ("nodes://10.0.[0:99].[0:99]", "more than 4096"),
        ("nodes://10.0.0.[1:300]", "is no IPv4 address"),
        ("nodes://a:0", "no port between"),
        ("nodes://a:b:c", "no port between"),
        ("nodes://a/b", "Nodes a:2377 / 180s"),
        ("nodes://a_b-c", "Nodes a_b-c:2377 / 180s"),
        ("nodes://a..b", "neither an address nor a name"),
    ] {
        let got = read(url);
        assert!(got.contains(want), "{url}: {got}");
    }
}

#[test]
fn a_token_is_not_shown() {
    let u: Url = "token://h/NETD1-secret-secret".parse().unwrap();
    assert!(!format!("{u} {u:?}").contains("secret"));
}

#[test]
fn a_file_may_have_comments_and_ranges() {
    let text = "# managers\n10.0.0.[1:2]\n\nhost.example.net:99 # the third, 10.0.0.9\na, b\n";
    let want = [
        "10.0.0.1:2377",
        "10.0.0.2:2377",
        "host.example.net:99",
        "a:2377",
        "b:2377",
    ];
    assert_eq!(file::lines(text).unwrap(), want);
    assert!(file::lines("10.0.0.1\nno good line").is_err());
}

proptest! {
    #[test]
    fn no_text_is_a_panic(text in ".{0,60}", hosts in "[a-z0-9\\[\\]:.,]{0,40}") {
        let _ = text.parse::<Url>();
        for s in ["nodes", "zk", "etcd", "file", "dns"] {
            let _ = format!("{s}://{hosts}").parse::<Url>();
        }
    }

    #[test]
    fn a_range_has_as_many_as_it_says(from in 0usize..250, more in 0usize..6, port in 1u16..) {
        let to = (from + more).min(255);
        let all = addresses(&format!("10.0.0.[{from}:{to}]:{port}")).unwrap();
        prop_assert_eq!(all.len(), to - from + 1);
        // What came out reads as itself.
        for a in &all {
            prop_assert_eq!(addresses(a).unwrap(), vec![a.clone()]);
        }
    }

    #[test]
    fn dns_garbage_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0u16..40) {
        let q = dns::query(7, "managers.example.net", kind).unwrap();
        let _ = dns::records(&q, &bytes, kind);
        let _ = dns::records(&q, &[q.as_slice(), &bytes].concat(), kind);
        let mut many = q.clone();
        many[7] = 9;
        many.extend(bytes);
        let _ = dns::records(&q, &many, kind);
    }
}

#[test]
fn srv_records_are_read_through_pointers() {
    use hickory_proto::{
        op::Message,
        rr::{Name, RData, Record, rdata},
    };
    let q = dns::query(7, "_netd._tcp.example.net", 33).unwrap();
    let mut m = Message::from_vec(&q).unwrap();
    m.metadata.message_type = hickory_proto::op::MessageType::Response;
    let name = Name::from_ascii("_netd._tcp.example.net.").unwrap();
    for (host, port) in [("m1.example.net.", 2377), ("m2.example.net.", 12377)] {
        let srv = rdata::SRV::new(1, 1, port, Name::from_ascii(host).unwrap());
        m.add_answer(Record::from_rdata(name.clone(), 60, RData::SRV(srv)));
    }
    let bytes = m.to_vec().unwrap();
    let found = dns::records(&q, &bytes, 33).unwrap();
    assert_eq!(
        found,
        (0, vec!["m1.example.net:2377".into(), "m2.example.net:12377".into()])
    );
    for cut in 0..bytes.len() {
        let _ = dns::records(&q, &bytes[..cut], 33);
    }
    // A pointer to itself ends.
    let mut round = q.clone();
    round[7] = 1;
    let at = round.len() as u8;
    round.extend([0xc0, at]);
    assert_eq!(dns::records(&q, &round, 33), None);
}

/// A Consul that follows its documented HTTP API, as far as it is used: sessions with `Behavior: delete`, keys that are
/// acquired, `recurse`.
#[derive(Default)]
struct Played {
    sessions: BTreeMap<String, Value>,
    keys: BTreeMap<String, (Vec<u8>, Option<String>)>,
    next: u32,
}

type Shared = Arc<Mutex<Played>>;

async fn consul() -> (String, Shared) {
    let played = Shared::default();
    let router = Router::new()
        .route("/v1/session/create", put(create))
        .route("/v1/session/renew/{id}", put(renew))
        .route("/v1/session/destroy/{id}", put(destroy))
        .route("/v1/kv/{*key}", get(list).put(acquire).delete(delete))
        .with_state(played.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (addr, played)
}

async fn create(State(p): State<Shared>, body: Bytes) -> Result<Json<Value>, StatusCode> {
    let asked: Value = serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    let mut p = p.lock().unwrap();
    p.next += 1;
    let id = format!("adf4238a-882b-9ddc-4a9d-{:012}", p.next);
    p.sessions.insert(id.clone(), asked);
    Ok(Json(json!({ "ID": id })))
}

async fn renew(State(p): State<Shared>, Path(id): Path<String>) -> Result<Json<Value>, StatusCode> {
    let p = p.lock().unwrap();
    let session = p.sessions.get(&id).ok_or(StatusCode::NOT_FOUND)?;
    Ok(Json(json!([{ "ID": id, "TTL": session["TTL"] }])))
}

fn end(p: &mut Played, id: &str) {
    p.sessions.remove(id);
    p.keys.retain(|_, (_, holder)| holder.as_deref() != Some(id));
}

async fn destroy(State(p): State<Shared>, Path(id): Path<String>) -> Json<bool> {
    end(&mut p.lock().unwrap(), &id);
    Json(true)
}

async fn acquire(
    State(p): State<Shared>,
    Path(key): Path<String>,
    Query(q): Query<BTreeMap<String, String>>,
    body: Bytes,
) -> Json<bool> {
    let mut p = p.lock().unwrap();
    let session = q.get("acquire").cloned();
    let held = p.keys.get(&key).and_then(|(_, s)| s.clone());
    let good = session.as_ref().is_some_and(|s| p.sessions.contains_key(s)) && (held.is_none() || held == session);
    if good {
        p.keys.insert(key, (body.to_vec(), session));
    }
    Json(good)
}

async fn delete(State(p): State<Shared>, Path(key): Path<String>) -> Json<bool> {
    p.lock().unwrap().keys.remove(&key);
    Json(true)
}

async fn list(State(p): State<Shared>, Path(prefix): Path<String>) -> Result<Json<Value>, StatusCode> {
    let p = p.lock().unwrap();
    let found: Vec<Value> = p
        .keys
        .iter()
        .filter(|(k, _)| k.starts_with(&prefix))
        .map(|(k, (v, s))| json!({ "Key": k, "Value": STANDARD.encode(v), "Session": s, "Flags": 0 }))
        .collect();
    match found.is_empty() {
        true => Err(StatusCode::NOT_FOUND),
        false => Ok(Json(found.into())),
    }
}

fn context() -> Context {
    Context {
        resolv_conf: "/etc/resolv.conf".into(),
    }
}

#[tokio::test]
async fn consul_holds_an_address_as_long_as_its_session() {
    let (addr, played) = consul().await;
    let url = format!("consul://{addr}/production?ttl=30s");
    assert!(matches!(
        find(&url, &context()).await,
        Err(DiscoverError::Nothing { .. })
    ));
    let mut a = open(&url, &context()).unwrap();
    let mut b = open(&url, &context()).unwrap();
    a.announce("198.51.100.1:2377").await.unwrap();
    b.announce("[2001:db8::1]:2377").await.unwrap();
    let both = ["198.51.100.1:2377", "[2001:db8::1]:2377"];
    assert_eq!(find(&url, &context()).await.unwrap(), both);
    {
        let p = played.lock().unwrap();
        assert!(
            p.keys.contains_key("production/netd/nodes/198.51.100.1:2377"),
            "{:?}",
            p.keys.keys()
        );
        let session = p.sessions.values().next().unwrap();
        assert_eq!(
            (&session["TTL"], &session["Behavior"]),
            (&json!("30s"), &json!("delete"))
        );
        assert_eq!(p.sessions.len(), 2);
    }
    // Renewed, not made anew.
    a.announce("198.51.100.1:2377").await.unwrap();
    assert_eq!(played.lock().unwrap().next, 2);
    // A session that has ended takes its key along; the next announcement makes both anew.
    end(&mut played.lock().unwrap(), "adf4238a-882b-9ddc-4a9d-000000000001");
    assert_eq!(find(&url, &context()).await.unwrap(), both[1..]);
    a.announce("198.51.100.1:2377").await.unwrap();
    assert_eq!(find(&url, &context()).await.unwrap(), both);
    // After a crash the former life's session still holds the key.
    drop(a);
    let mut a = open(&url, &context()).unwrap();
    a.announce("198.51.100.1:2377").await.unwrap();
    // Another address takes the place of the old one.
    a.announce("198.51.100.9:2377").await.unwrap();
    assert_eq!(find(&url, &context()).await.unwrap(), ["198.51.100.9:2377", both[1]]);
    a.withdraw().await.unwrap();
    b.withdraw().await.unwrap();
    assert!(played.lock().unwrap().keys.is_empty());
}

#[tokio::test]
async fn who_does_not_answer_is_named() {
    // A port that nobody listens on, and one where somebody says nothing of sense.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let odd = silent.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((mut s, _)) = silent.accept().await else { return };
            let _ = tokio::io::AsyncWriteExt::write_all(&mut s, b"\x7f\xff\xff\xffgarbage\r\n\r\n").await;
        }
    });
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = free.local_addr().unwrap();
    drop(free);
    for scheme in ["etcd", "consul", "zk"] {
        let e = find(&format!("{scheme}://{closed},{odd}"), &context())
            .await
            .unwrap_err();
        let text = e.to_string();
        assert!(matches!(e, DiscoverError::Unreachable { .. }), "{text}");
        assert!(
            text.contains(&format!("{closed}: ")) && text.contains(&format!("{odd}: ")),
            "{text}"
        );
    }
    let e = find("file:///nowhere/managers", &context()).await.unwrap_err();
    assert!(
        e.to_string().contains("file:///nowhere/managers cannot be asked"),
        "{e}"
    );
    for url in ["nodes://a", "file:///x", "dns://a.example.net"] {
        let e = open(url, &context()).unwrap().announce("b:1").await.unwrap_err();
        assert!(matches!(e, DiscoverError::ReadOnly { .. }), "{e}");
    }
}

#[tokio::test]
async fn an_announcer_keeps_an_address_and_takes_it_away() {
    let (addr, played) = consul().await;
    let url = format!("consul://{addr}?ttl=3s");
    let a = Announcer::start(&url, &context()).unwrap();
    a.say(Some("198.51.100.1:2377".into()));
    let there = |want: bool| {
        let played = played.clone();
        async move {
            for _ in 0..500 {
                if played.lock().unwrap().keys.is_empty() != want {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("wanted: {want}");
        }
    };
    there(true).await;
    // Forgotten by the registry: it is put there again within a third of the time to live.
    end(&mut played.lock().unwrap(), "adf4238a-882b-9ddc-4a9d-000000000001");
    there(true).await;
    assert_eq!(a.problem(), None);
    a.say(None);
    there(false).await;
    a.say(Some("198.51.100.1:2377".into()));
    there(true).await;
    a.end().await;
    assert!(played.lock().unwrap().keys.is_empty());
    // A registry that is away is a problem that is told.
    let a = Announcer::start("zk://127.0.0.1:1", &context()).unwrap();
    a.say(Some("198.51.100.1:2377".into()));
    let mut told = a.problem.clone();
    let told = told.wait_for(Option::is_some).await.unwrap().clone();
    assert!(
        told.unwrap().contains("zk://127.0.0.1:1 cannot be asked"),
        "{:?}",
        a.problem()
    );
    assert!(Announcer::start("nonsense://", &context()).is_err());
}
