//! Managers are found: in registries that really run, in files, by names, by each other.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{DaemonOptions, Host, Lab, Options, eventually};
use model::api::NodeView;
use tests::{in_lab_with, status};

/// For what becomes so by itself; how long it took is printed where that is of interest.
const SOON: Duration = Duration::from_secs(20);

const ZK_CLASSES: &str = "/usr/share/java/zookeeper.jar";

fn plain(nodes: u8) -> Options {
    Options {
        nodes,
        daemon: DaemonOptions {
            no_addresses: true,
            ..DaemonOptions::default()
        },
        ..Options::default()
    }
}

/// What `netctl discover` finds; nothing is no error here.
fn found(host: &Host, url: &str) -> anyhow::Result<Vec<String>> {
    let out = host.netctl(&format!("discover {url} -q"))?;
    if out.code == 1 && out.all().contains("knows no managers") {
        return Ok(Vec::new());
    }
    Ok(out.ok()?.stdout.lines().map(str::to_owned).collect())
}

fn finds(host: &Host, url: &str, wanted: &[String], limit: Duration) -> anyhow::Result<Duration> {
    eventually(&format!("{url} to hold {wanted:?}"), limit, || {
        let now = found(host, url)?;
        ensure!(now == wanted, "it holds {now:?}");
        Ok(true)
    })
}

/// etcd and ZooKeeper on the client's host: their URLs.
fn registries(lab: &Lab) -> anyhow::Result<[String; 2]> {
    let host = lab.client()?;
    let (ip, folder) = (host.v4(), host.folder().display().to_string());
    let client = format!("http://{ip}:2379");
    let data = format!("{folder}/etcd");
    let argv = [
        "etcd",
        "--data-dir",
        &data,
        "--listen-client-urls",
        &client,
        "--advertise-client-urls",
        &client,
        "--listen-peer-urls",
        "http://127.0.0.1:2380",
        "--log-level",
        "error",
    ];
    host.keep(host.spawn("etcd", &argv)?)?;
    let data = format!("{folder}/zookeeper");
    let argv = [
        "java",
        "-Xmx128m",
        "-Dzookeeper.admin.enableServer=false",
        "-cp",
        ZK_CLASSES,
        "org.apache.zookeeper.server.ZooKeeperServerMain",
        "2181",
        &data,
    ];
    host.keep(host.spawn("zookeeper", &argv)?)?;
    let urls = [
        format!("etcd://{ip}/lab/one?ttl=3s"),
        format!("zk://{ip}/lab/two?ttl=5s"),
    ];
    let n1 = lab.host("n1")?;
    for url in &urls {
        eventually(&format!("{url} to answer"), Duration::from_secs(40), || {
            found(n1, url).map(|_| true)
        })?;
    }
    Ok(urls)
}

#[test]
fn managers_are_found_and_nodes_join_by_themselves() {
    in_lab_with("discovery", plain(3), |lab| {
        let (n1, n2, n3) = (lab.host("n1")?, lab.host("n2")?, lab.host("n3")?);
        for node in lab.nodes() {
            node.start_netd()?;
        }
        let [etcd, zk] = registries(lab)?;
        let (at1, at3) = (vec![n1.at(2377)], vec![n3.at(2377)]);

        // A manager is announced where it was told to, and found there by who joins.
        ensure!(found(n2, &etcd)?.is_empty(), "nobody is announced yet");
        let refused = n2.netctl(&format!("cluster join NETD1-a-b --discover {etcd}"))?;
        ensure!(refused.code == 1 || refused.code == 2, "{}", refused.all());
        n1.netctl(&format!("cluster init --announce {etcd}"))?.ok()?;
        finds(n2, &etcd, &at1, SOON)?;
        let token = n1.join_token()?;
        n2.netctl(&format!("cluster join {token} --discover {etcd}"))?.ok()?;
        n1.sees_ready(2, Duration::from_secs(20))?;

        // A daemon that dies is forgotten after the time to live, and announced again when it is back.
        n1.kill_netd()?;
        let gone = finds(n2, &etcd, &[], SOON)?;
        eprintln!(
            "etcd forgot a dead manager after {} ms (time to live 3 s)",
            gone.as_millis()
        );
        n1.start_netd()?;
        finds(n2, &etcd, &at1, SOON)?;
        // So is its new address.
        n1.run(&[
            "sh",
            "-c",
            "ip address del 198.18.0.11/24 dev eth0 && ip address add 198.18.0.211/24 dev eth0",
        ])?
        .ok()?;
        let moved = vec!["198.18.0.211:2377".to_owned()];
        finds(n2, &etcd, &moved, SOON)?;
        // n2 looks for it there too, should neither have had the time to write down where the other is.
        n1.sees_ready(2, Duration::from_secs(40))?;

        // The same with ZooKeeper, in a cluster of its own; it is taken away at leave.
        n3.netctl(&format!("cluster init --announce {zk}"))?.ok()?;
        finds(n2, &zk, &at3, SOON)?;
        n3.kill_netd()?;
        let gone = finds(n2, &zk, &[], Duration::from_secs(30))?;
        eprintln!(
            "ZooKeeper forgot a dead manager after {} ms (session 5 s)",
            gone.as_millis()
        );
        n3.start_netd()?;
        finds(n2, &zk, &at3, SOON)?;
        n3.kill_netd()?;
        n3.start_netd()?;
        finds(n2, &zk, &at3, SOON).context("the former life's node is replaced")?;
        n3.netctl("cluster leave --force")?.ok()?;
        ensure!(found(n2, &zk)?.is_empty(), "who left is not found");

        // Without a registry.
        let list = n2.folder().join("managers");
        std::fs::write(&list, "# the lab\n198.18.0.[210:212] # three\nn9.example.net:99\n")?;
        let all = [
            "198.18.0.210:2377",
            "198.18.0.211:2377",
            "198.18.0.212:2377",
            "n9.example.net:99",
        ];
        ensure!(found(n2, &format!("file://{}", list.display()))? == all, "file://");
        ensure!(
            found(n2, "nodes://198.18.0.[210:212],n9.example.net:99")? == all,
            "nodes://"
        );
        ensure!(
            found(n2, &format!("token://198.18.0.211/{token}"))? == moved,
            "token://"
        );
        lab.switch().serve(
            "names",
            &["lab-tool", "names", "--listen", "198.18.0.1:53", "--v4", "198.18.0.211"],
        )?;
        let named = found(n2, "dns://managers.example.net")?;
        ensure!(named.contains(&moved[0]) && named.len() == 2, "dns://: {named:?}");
        let last = if token.ends_with('x') { 'y' } else { 'x' };
        let other = format!("{}{last}", &token[..token.len() - 1]);
        for (url, why) in [
            ("ftp://a", "no way to discover managers"),
            ("zk://198.18.0.250", "cannot be asked"),
            ("etcd://198.18.0.101:2181", "cannot be asked"),
            ("dns://missing.example.net", "knows no managers"),
            (&format!("token://198.18.0.211/{other}"), "cannot be asked"),
        ] {
            let refused = n2.netctl(&format!("discover {url}"))?;
            ensure!(
                refused.code != 0 && refused.all().contains(why),
                "{url}: {}",
                refused.all()
            );
            ensure!(
                !refused.all().contains(&other),
                "a token is no text for errors: {}",
                refused.all()
            );
        }

        // Most of what was found does not answer; one does.
        n3.netctl(&format!("cluster join {token} --discover nodes://198.18.0.[208:214]"))?
            .ok()?;
        n1.sees_ready(3, Duration::from_secs(20))?;
        n3.netctl("cluster leave")?.ok()?;
        let refused = n3.netctl(&format!("cluster join {token} --discover nodes://198.18.0.[240:241]"))?;
        ensure!(
            refused.code == 1 && refused.all().contains("none of 2 addresses let this node in"),
            "{}",
            refused.all()
        );
        let json: Vec<String> = n2.netctl(&format!("discover {etcd} -o json"))?.json()?;
        ensure!(json == moved, "{json:?}");
        Ok(())
    });
}

#[test]
fn a_node_joins_at_its_first_boot() {
    in_lab_with("autojoin", plain(3), |lab| {
        let (n1, n2, n3) = (lab.host("n1")?, lab.host("n2")?, lab.host("n3")?);
        let file = n3.folder().join("token");
        n3.configure(&format!(
            "[cluster]\njoin = [\"198.18.0.250:2377\", \"nodes://198.18.0.[10:12]\"]\ntoken_file = \"{}\"\n",
            file.display()
        ))?;
        for node in lab.nodes() {
            node.start_netd()?;
        }
        let says = |part: &str| {
            eventually(&format!("a problem with {part:?}"), Duration::from_secs(20), || {
                let problems = status(n3)?.problems;
                ensure!(problems.iter().any(|p| p.contains(part)), "{problems:?}");
                Ok(true)
            })
        };
        // No token, then no manager, then both.
        says("not joined yet: the token in")?;
        n1.netctl("cluster init")?.ok()?;
        n2.netctl("cluster init")?.ok()?;
        std::fs::write(&file, n2.join_token()?)?;
        n2.stop_netd()?;
        says("not joined yet")?;
        std::fs::write(&file, format!("{}\n", n1.join_token()?))?;
        n1.sees_ready(2, Duration::from_secs(60))?;
        eventually("n3 to have no problem", SOON, || {
            ensure!(status(n3)?.problems.is_empty(), "{:?}", status(n3)?.problems);
            Ok(true)
        })?;
        let me = status(n3)?.me;

        // It is there: nothing happens at the next start.
        n3.kill_netd()?;
        n3.start_netd()?;
        n1.sees_ready(2, Duration::from_secs(20))?;
        // It is ready with its last view, before it has reached a manager.
        eventually("n3 to be what it was", SOON, || {
            let seen = status(n3)?;
            ensure!(seen.me == me && seen.problems.is_empty(), "{seen:?}");
            Ok(true)
        })?;
        let nodes: Vec<NodeView> = n1.netctl("node ls -o json")?.json()?;
        ensure!(nodes.len() == 2, "{nodes:?}");

        // The token of another cluster: said, and left alone.
        n2.start_netd()?;
        std::fs::write(&file, n2.join_token()?)?;
        n3.kill_netd()?;
        n3.start_netd()?;
        says("[cluster] join names another one")?;
        ensure!(status(n3)?.me == me, "it stays where it is");
        Ok(())
    });
}
