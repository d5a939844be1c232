//! URLs that people type, and what registries answer.

use super::{Context, Url, addresses, consul, dns, etcd, file, http, open, ranges, zk};

pub(crate) fn url(octets: &[u8]) {
    let text = String::from_utf8_lossy(octets);
    let context = Context {
        resolv_conf: "/dev/null".into(),
    };
    if let Ok(url) = text.parse::<Url>() {
        // As it is shown it means the same.
        let _ = url.to_string();
    }
    let _ = open(&text, &context);
    let _ = addresses(&text);
    let _ = ranges(&text);
    let _ = file::lines(&text);
}

pub(crate) fn url_seeds() -> Vec<Vec<u8>> {
    [
        "nodes://192.0.2.1,192.0.2.2:2377,10.0.0.[1:9]",
        "nodes://[2001:db8::1]:2377,host-[01:12].example.net",
        "file:///etc/netd/managers?ttl=30s",
        "token://NETD1-aaaa-bbbb@192.0.2.1:2377",
        "dns://managers.example.net:2377",
        "dns://_netd._tcp.example.net",
        "etcd://192.0.2.1:2379,192.0.2.2/one/two?ttl=10s",
        "consul://127.0.0.1:8500/netd",
        "zk://127.0.0.1:2181/a/b",
        "10.0.0.1\n# a comment\n10.0.0.[2:5]:99, host\n",
    ]
    .map(|t| t.as_bytes().to_vec())
    .into()
}

/// The first octet says whose answer it is.
pub(crate) fn answer(octets: &[u8]) {
    let Some((what, rest)) = octets.split_first() else {
        return;
    };
    let Ok(url) = "etcd://192.0.2.1/netd".parse::<Url>() else {
        return;
    };
    let body = http::Answer {
        status: 200,
        body: rest.to_vec().into(),
    };
    match what % 4 {
        0 => drop(consul::listed(&body, &url)),
        1 => drop(etcd::listed(&body, &url)),
        2 => zk::look_at(rest),
        _ => {
            for kind in [1, 28, 33] {
                if let Some(query) = dns::query(0x1234, "managers.example.net", kind) {
                    let _ = dns::records(&query, rest, kind);
                    // Behind the very question, as a resolver sends it.
                    let _ = dns::records(&query, &[query.as_slice(), rest].concat(), kind);
                }
            }
        }
    }
    let _ = body.odd(&url);
}

pub(crate) fn answer_seeds() -> Vec<Vec<u8>> {
    let mut srv = dns::query(0x1234, "managers.example.net", 33).unwrap_or_default();
    if let Some(head) = srv.get_mut(2..8) {
        head.copy_from_slice(&[0x81, 0x80, 0, 1, 0, 2]);
    }
    for target in [&b"\x02m1\xc0\x15"[..], b"\xc0\x0c"] {
        srv.extend_from_slice(&[0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 60]);
        srv.extend_from_slice(&u16::try_from(6 + target.len()).unwrap_or(6).to_be_bytes());
        srv.extend_from_slice(&[0, 1, 0, 1, 9, 73]);
        srv.extend_from_slice(target);
    }
    let strings = [
        &[0, 0, 0, 1][..],
        &[0; 8],
        &[0; 4],
        &[0, 0, 0, 2, 0, 0, 0, 4],
        b"a:23",
        &[0xff; 4],
    ]
    .concat();
    vec![
        [
            &[0][..],
            br#"[{"Key":"netd/a","Value":"MTkyLjAuMi4xOjIzNzc="},{"Value":null}]"#,
        ]
        .concat(),
        [
            &[1][..],
            br#"{"header":{},"kvs":[{"key":"YQ==","value":"MTkyLjAuMi4xOjIzNzc="}],"count":"1"}"#,
        ]
        .concat(),
        [&[2][..], &strings].concat(),
        [&[3][..], &srv].concat(),
    ]
}
