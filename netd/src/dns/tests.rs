//! Real sockets in namespaces of their own (root). A "host" namespace runs the server and a fake resolver on its
//! loopback, task namespaces ask.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use ::dns::{Table, View};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
    serialize::binary::BinDecodable,
};
use kernel::netns::{self, Netns, run_in};
use model::{
    EndpointRow, EndpointState, Intent, Vni,
    intent::{Network, Service, Vip},
    spec::ServiceSpec,
};
use std::io::{Read, Write};
use tokio::sync::watch;

use super::*;

/// Folders of tests: then come the process id and a number.
const LABS: &str = "/run/netd-test-dns-";

/// A folder with namespaces; all of it is gone when it goes out of scope.
struct Lab(PathBuf);

impl Lab {
    fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test needs root; try: sudo -E cargo test"
        );
        Self::sweep();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = PathBuf::from(format!("{LABS}{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst)));
        fs::create_dir_all(&path).unwrap();
        Lab(path)
    }
    /// Removes what runs that were killed have left.
    fn sweep() {
        for entry in fs::read_dir("/run").into_iter().flatten().flatten() {
            let path = entry.path();
            let owner = path
                .to_str()
                .and_then(|p| p.strip_prefix(LABS))
                .and_then(|p| p.split('-').next());
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                drop(Lab(path));
            }
        }
    }
    fn netns(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        netns::create(&path).unwrap();
        path
    }
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
    /// Runs `f` on a runtime whose only thread is in the host's namespace.
    fn host<T: Send, F: Future<Output = T>>(&self, f: impl FnOnce() -> F + Send) -> T {
        let host = Netns::open(&self.netns("host")).unwrap();
        run_in(&host, || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(f())
        })
        .unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if netns::remove(&entry.path()).is_err() {
                let _ = fs::remove_file(entry.path());
            }
        }
        let _ = fs::remove_dir(&self.0);
    }
}

const APP: u32 = 4096;
const SECRET: u32 = 4097;

fn view(networks: &[u32]) -> View {
    View {
        networks: networks.iter().map(|n| Vni::try_from(*n).unwrap()).collect(),
    }
}

/// Service `web` on app, with this many endpoints; network secret is internal.
fn table(endpoints: u8) -> Arc<Table> {
    let mut i = Intent::default();
    for (name, vni, subnet, internal) in [
        ("app", APP, "10.77.0.0/16", false),
        ("secret", SECRET, "10.78.0.0/16", true),
    ] {
        let network = Network {
            vni: Vni::try_from(vni).unwrap(),
            subnet: subnet.parse().unwrap(),
            subnet6: None,
            internal,
            mtu: None,
        };
        i.networks.insert(name.parse().unwrap(), network);
    }
    let vip = Vip {
        v4: "10.77.0.2".parse().unwrap(),
        v6: None,
    };
    let service = Service {
        index: 1,
        spec: ServiceSpec {
            networks: vec!["app".parse().unwrap()],
            ..ServiceSpec::default()
        },
        vips: BTreeMap::from([("app".parse().unwrap(), vip)]),
        ..Service::default()
    };
    i.services.insert("web".parse().unwrap(), service);
    let rows: Vec<EndpointRow> = (1..=endpoints)
        .map(|n| EndpointRow {
            vni: Vni::try_from(APP).unwrap(),
            v4: Some([10, 77, 1, n].into()),
            v6: None,
            mac: model::Mac([2, 0, 0, 0, 0, n]),
            service: Some("web".parse().unwrap()),
            slot: Some(n.into()),
            state: EndpointState::Ready,
            listening: vec![],
        })
        .collect();
    Arc::new(Table::new(&i, &rows))
}

fn question(name: &str, id: u16, size: u16) -> Vec<u8> {
    let mut m = Message::new(id, MessageType::Query, OpCode::Query);
    m.metadata.recursion_desired = true;
    m.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    m.edns = Some(edns);
    m.to_vec().unwrap()
}

/// A reply in short: the data, else the code.
fn short(message: &[u8]) -> String {
    let m = Message::from_bytes(message).unwrap();
    let data: Vec<String> = m.answers.iter().map(|r| r.data.to_string()).collect();
    if data.is_empty() {
        format!("{:?}", m.metadata.response_code)
    } else {
        data.join(" ")
    }
}

/// Does something blocking inside a namespace.
async fn inside<T: Send + 'static>(path: &Path, f: impl FnOnce() -> T + Send + 'static) -> T {
    let netns = Netns::open(path).unwrap();
    tokio::task::spawn_blocking(move || run_in(&netns, f).unwrap())
        .await
        .unwrap()
}

fn exchange(query: &[u8], at: SocketAddr) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.connect(at)?;
    socket.send(query)?;
    let mut out = vec![0; 65535];
    let n = socket.recv(&mut out)?;
    out.truncate(n);
    assert_eq!(out[..2], query[..2], "its id");
    Ok(out)
}

async fn udp(path: &Path, name: &str) -> String {
    let query = question(name, 7, 1232);
    inside(path, move || {
        exchange(&query, (ADDRESS, 53).into()).map_or_else(|e| e.kind().to_string(), |m| short(&m))
    })
    .await
}

fn connect() -> io::Result<TcpStream> {
    let stream = TcpStream::connect((ADDRESS, 53))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

async fn tcp(path: &Path, names: &[&str]) -> Vec<String> {
    let queries: Vec<Vec<u8>> = names.iter().map(|n| question(n, 9, 1232)).collect();
    inside(path, move || {
        let mut stream = connect().unwrap();
        for q in &queries {
            stream.write_all(&(q.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(q).unwrap();
        }
        let mut read = || {
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            let mut message = vec![0; u16::from_be_bytes(len).into()];
            stream.read_exact(&mut message).unwrap();
            short(&message)
        };
        queries.iter().map(|_| read()).collect()
    })
    .await
}

fn server(resolv_conf: PathBuf) -> (DnsServer, watch::Sender<Arc<Table>>) {
    let (send, receive) = watch::channel(table(2));
    let config = ForwardConfig {
        resolv_conf,
        timeout: Duration::from_secs(1),
        ..ForwardConfig::default()
    };
    (DnsServer::new(receive, config), send)
}

fn wanted(all: &[(&Path, &[u32])]) -> BTreeMap<EndpointNs, View> {
    all.iter()
        .map(|(path, networks)| (EndpointNs::new(*path), view(networks)))
        .collect()
}

/// Names that the fake resolver was asked for, by protocol.
type Log = Arc<Mutex<Vec<String>>>;

/// A resolver on 127.0.0.1:53 of the host's namespace. Any name is 192.0.2.1, but: `big.` has 60 addresses (by TCP),
/// `forged.` comes after three forgeries, `silent.` never, `broken.` is refused.
async fn resolver() -> Log {
    let log = Log::default();
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:53").await.unwrap();
    let seen = log.clone();
    tokio::spawn(async move {
        let mut buf = [0; 4096];
        loop {
            let (n, from) = socket.recv_from(&mut buf).await.unwrap();
            let (mut reply, name) = fake(&buf[..n]);
            seen.lock().unwrap().push(format!("udp {name}"));
            if name.starts_with("silent.") {
                continue;
            }
            if name.starts_with("big.") {
                reply.answers.clear();
                reply.metadata.truncation = true;
            }
            if name.starts_with("forged.") {
                let mut other = reply.clone();
                other.metadata.id = !reply.metadata.id;
                let mut another = reply.clone();
                another.queries[0].set_name(Name::from_ascii("elsewhere.example.com.").unwrap());
                for forgery in [other.to_vec().unwrap(), another.to_vec().unwrap(), b"x".to_vec()] {
                    socket.send_to(&forgery, from).await.unwrap();
                }
            }
            socket.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:53").await.unwrap();
    let seen = log.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (reply, name) = fake(&serve::read(&mut stream).await.unwrap());
            seen.lock().unwrap().push(format!("tcp {name}"));
            serve::write(&mut stream, &reply.to_vec().unwrap()).await.unwrap();
        }
    });
    log
}

fn fake(query: &[u8]) -> (Message, String) {
    let q = Message::from_bytes(query).unwrap();
    let name = q.queries[0].name().clone();
    let mut m = Message::new(q.metadata.id, MessageType::Response, OpCode::Query);
    m.add_query(q.queries[0].clone());
    let text = name.to_ascii().to_lowercase();
    let addresses = if text.starts_with("big.") { 1..=60 } else { 1..=1 };
    m.add_answers(addresses.map(|n| Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, 2, n)))));
    if text.starts_with("broken.") {
        m.metadata.response_code = ResponseCode::Refused;
    }
    (m, text)
}

#[test]
fn names_by_udp_and_tcp_follow_table_and_view() {
    let lab = Lab::new();
    let task = lab.netns("task");
    lab.host(|| async {
        let (server, tables) = server(lab.file("resolv.conf", ""));
        assert!(server.sync(wanted(&[(&task, &[APP])])).await.is_empty());
        assert_eq!(udp(&task, "web.").await, "10.77.0.2");
        assert_eq!(udp(&task, "nobody.").await, "NXDomain");
        let mut both: Vec<_> = udp(&task, "tasks.web.").await.split(' ').map(str::to_owned).collect();
        both.sort();
        assert_eq!(both, ["10.77.1.1", "10.77.1.2"]);
        assert_eq!(
            tcp(&task, &["web.", "1.web.app.", "nobody."]).await,
            ["10.77.0.2", "10.77.1.1", "NXDomain"]
        );
        // More than a datagram holds.
        tables.send(table(200)).unwrap();
        assert!(udp(&task, "tasks.web.").await.split(' ').count() < 80);
        assert_eq!(tcp(&task, &["tasks.web."]).await[0].split(' ').count(), 200);
        tables.send(table(0)).unwrap();
        assert_eq!(udp(&task, "tasks.web.").await, "NoError");
        // Another view, the same sockets.
        assert!(server.sync(wanted(&[(&task, &[SECRET])])).await.is_empty());
        assert_eq!(udp(&task, "web.").await, "NXDomain");
        let stats = server.stats();
        assert_eq!((stats.namespaces, stats.udp, stats.tcp, stats.foreign), (1, 6, 4, 0));
        assert_eq!(stats.replies, BTreeMap::from([("NOERROR", 7), ("NXDOMAIN", 3)]));
    });
}

#[test]
fn foreign_names_are_asked_of_the_hosts_resolvers() {
    let lab = Lab::new();
    let (task, other) = (lab.netns("task"), lab.netns("other"));
    lab.host(|| async {
        let log = resolver().await;
        // Nobody listens on the second one: it is passed over at once.
        let (server, _tables) = server(lab.file(
            "resolv.conf",
            "nameserver 127.0.0.11\nnameserver 127.0.0.2\nnameserver 127.0.0.1\n",
        ));
        assert!(
            server
                .sync(wanted(&[(&task, &[APP]), (&other, &[APP])]))
                .await
                .is_empty()
        );
        assert_eq!(udp(&task, "www.example.com.").await, "192.0.2.1");
        // From the cache, for everybody.
        assert_eq!(udp(&other, "WWW.example.com.").await, "192.0.2.1");
        assert_eq!(tcp(&task, &["www.Example.com."]).await, ["192.0.2.1"]);
        assert_eq!(
            log.lock().unwrap().drain(..).collect::<Vec<_>>(),
            ["udp www.example.com."]
        );
        assert_eq!(server.stats().cached, 2);
        // Forgeries are waited past.
        assert_eq!(udp(&task, "forged.example.com.").await, "192.0.2.1");
        assert_eq!(server.stats().forged, 3);
        // Cut short: asked again by TCP.
        log.lock().unwrap().clear();
        assert_eq!(udp(&task, "big.example.com.").await.split(' ').count(), 60);
        assert_eq!(*log.lock().unwrap(), ["udp big.example.com.", "tcp big.example.com."]);
        assert_eq!(udp(&task, "broken.example.com.").await, "ServFail");
        let began = Instant::now();
        assert_eq!(udp(&task, "silent.example.com.").await, "ServFail");
        assert!(began.elapsed() >= Duration::from_secs(1));
        assert_eq!(server.stats().failed, 2);
        // Ours are never asked of others.
        log.lock().unwrap().clear();
        for name in [
            "nobody.",
            "x.app.",
            "tasks.nobody.",
            "vault.secret.",
            "9.1.77.10.in-addr.arpa.",
        ] {
            assert_eq!(udp(&task, name).await, "NXDomain", "{name}");
        }
        assert_eq!(*log.lock().unwrap(), Vec::<String>::new());
    });
}

/// Many clients, one question: the resolver sees it once.
#[test]
fn equal_questions_are_asked_once() {
    let lab = Lab::new();
    let task = lab.netns("task");
    lab.host(|| async {
        let log = resolver().await;
        let (server, _tables) = server(lab.file("resolv.conf", "nameserver 127.0.0.1\n"));
        server.sync(wanted(&[(&task, &[APP])])).await;
        let answers = inside(&task, || {
            let sockets: Vec<UdpSocket> = (0..40).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
            for s in &sockets {
                s.send_to(&question("silent.example.com.", 3, 1232), (ADDRESS, 53))
                    .unwrap();
            }
            sockets.iter().filter(|s| s.recv(&mut [0; 512]).is_ok()).count()
        });
        assert_eq!(answers.await, 40);
        assert_eq!(log.lock().unwrap().len(), 1);
    });
}

#[test]
fn internal_networks_ask_nobody() {
    let lab = Lab::new();
    let task = lab.netns("task");
    lab.host(|| async {
        let log = resolver().await;
        let (server, _tables) = server(lab.file("resolv.conf", "nameserver 127.0.0.1\n"));
        assert!(server.sync(wanted(&[(&task, &[SECRET])])).await.is_empty());
        for n in 0..200 {
            assert_eq!(udp(&task, &format!("secret{n}.example.com.")).await, "Refused");
        }
        assert_eq!(tcp(&task, &["www.example.com."]).await, ["Refused"]);
        assert!(log.lock().unwrap().is_empty());
    });
}

#[test]
fn exactly_the_wanted_namespaces_are_served() {
    let lab = Lab::new();
    let (one, two) = (lab.netns("one"), lab.netns("two"));
    lab.host(|| async {
        let (server, _tables) = server(lab.file("resolv.conf", ""));
        let both = || wanted(&[(&one, &[APP]), (&two, &[APP])]);
        assert!(server.sync(both()).await.is_empty());
        assert!(server.sync(both()).await.is_empty(), "again: nothing happens");
        assert_eq!(udp(&two, "web.").await, "10.77.0.2");

        // A path that leads to a namespace twice: one set of sockets, both networks.
        let alias = lab.file("alias", "");
        let twice = || wanted(&[(&alias, &[SECRET]), (&one, &[APP]), (&two, &[APP])]);
        nix::mount::mount(
            Some(&one),
            &alias,
            None::<&str>,
            nix::mount::MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        assert!(server.sync(twice()).await.is_empty());
        assert_eq!(udp(&one, "web.").await, "10.77.0.2");
        assert_eq!(server.stats().namespaces, 2);
        netns::remove(&alias).unwrap();

        // One vanishes, the other goes on. Once the name is gone, our sockets alone would keep the namespace alive.
        netns::remove(&two).unwrap();
        let problems = server.sync(both()).await;
        assert!(
            matches!(problems.as_slice(), [(path, Problem::Namespace(e))] if *path == two && e.is_absent()),
            "{problems:?}"
        );
        assert_eq!(udp(&one, "web.").await, "10.77.0.2");
        assert_eq!(server.stats().namespaces, 1);

        // Another namespace under the same name.
        netns::create(&two).unwrap();
        assert!(server.sync(both()).await.is_empty());
        assert_eq!(udp(&two, "web.").await, "10.77.0.2");

        // Not wanted any more: the address is free when sync returns.
        assert!(server.sync(wanted(&[(&one, &[APP])])).await.is_empty());
        let taken = inside(&two, || {
            (
                UdpSocket::bind((ADDRESS, 53)).unwrap(),
                std::net::TcpListener::bind((ADDRESS, 53)).unwrap(),
            )
        })
        .await;
        let problems = server.sync(both()).await;
        assert!(
            matches!(problems.as_slice(), [(_, Problem::Listen { .. })]),
            "{problems:?}"
        );
        assert!(problems[0].1.to_string().contains("try: "));
        drop(taken);
        assert!(server.sync(both()).await.is_empty());
        assert_eq!(udp(&two, "web.").await, "10.77.0.2");

        // Docker's containers: the other address.
        let docker = EndpointNs {
            path: two.clone(),
            address: DOCKER_ADDRESS,
        };
        assert!(server.sync(BTreeMap::from([(docker, view(&[APP]))])).await.is_empty());
        let reply = inside(&two, || {
            exchange(&question("web.", 7, 1232), (DOCKER_ADDRESS, 53).into()).unwrap()
        })
        .await;
        assert_eq!(short(&reply), "10.77.0.2");
    });
}

#[test]
fn connections_are_bounded_in_number_and_idle_time() {
    let lab = Lab::new();
    let task = lab.netns("task");
    lab.host(|| async {
        let (server, _tables) = server(lab.file("resolv.conf", ""));
        server.sync(wanted(&[(&task, &[APP])])).await;
        let began = Instant::now();
        let (first, last) = inside(&task, move || {
            let mut open: Vec<TcpStream> = (0..33).map(|_| connect().unwrap()).collect();
            let mut closed = |n: usize| open[n].read(&mut [0]).map(|n| (n, began.elapsed())).unwrap();
            let last = closed(32);
            (closed(0), last)
        })
        .await;
        assert!(
            last.0 == 0 && last.1 < Duration::from_secs(9),
            "one too many is closed at once: {last:?}"
        );
        assert!(
            first.0 == 0 && first.1 > Duration::from_secs(9),
            "an idle one after 10 s: {first:?}"
        );
        assert_eq!(udp(&task, "web.").await, "10.77.0.2");
    });
}
