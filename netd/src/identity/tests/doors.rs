//! What comes from outside: any octets may, and nothing panics.

use proptest::prelude::*;
use rustls::pki_types::CertificateDer;

use super::*;

/// Octets of a real thing with some of them changed, cut or doubled.
fn spoil(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = good.len();
    let changes = prop::collection::vec((0..len, any::<u8>()), 0..8);
    (changes, 0..=len, any::<bool>()).prop_map(move |(changes, cut, double)| {
        let mut bytes = good.clone();
        for (at, to) in changes {
            bytes[at] = to;
        }
        bytes.truncate(cut.max(1));
        if double {
            bytes.extend_from_slice(&good);
        }
        bytes
    })
}

fn pem(kind: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .filter_map(|l| std::str::from_utf8(l).ok())
        .collect();
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"))
}

fn der(pem: &str) -> Vec<u8> {
    use base64::Engine;
    let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}

fn good_csr() -> Vec<u8> {
    der(&NodeKey::generate().unwrap().csr("host").unwrap())
}

fn good_certificate() -> Vec<u8> {
    let s = ClusterSecrets::create("c1").unwrap();
    der(&member(&s, 3, Role::Worker).1.certificate)
}

proptest! {
    #[test]
    fn tokens(text in ".{0,300}") {
        if let Ok(t) = text.parse::<Token>() {
            prop_assert_eq!(t.to_string(), text.trim().to_lowercase().replacen("netd1", "NETD1", 1));
        }
    }

    #[test]
    fn tokens_that_look_right(pin in "[a-z2-7]{0,60}", secret in "[a-z2-7]{0,40}") {
        let text = format!("NETD1-{pin}-{secret}");
        if let Ok(t) = text.parse::<Token>() {
            prop_assert_eq!(t.to_string(), text);
        }
    }

    #[test]
    fn unlock_keys(text in "(NETDKEY-1-)?.{0,140}") {
        // One in 2^32 has the right check.
        prop_assert!(text.parse::<UnlockKey>().is_err());
    }

    #[test]
    fn requests(bytes in spoil(good_csr())) {
        let _ = Csr::parse(&pem("CERTIFICATE REQUEST", &bytes));
    }

    #[test]
    fn requests_of_any_octets(bytes in prop::collection::vec(any::<u8>(), 0..400), text in ".{0,200}") {
        prop_assert!(Csr::parse(&pem("CERTIFICATE REQUEST", &bytes)).is_err());
        prop_assert!(Csr::parse(&text).is_err());
    }

    #[test]
    fn certificates(bytes in spoil(good_certificate())) {
        let _ = PeerId::read(&CertificateDer::from(bytes.clone()));
        let text = pem("CERTIFICATE", &bytes);
        let _ = Root::given(&text);
        let s = ClusterSecrets::create("c1").unwrap();
        // Whatever it says, this CA has not signed it.
        prop_assert!(former(&text, s.ca.known()).is_err());
        let _ = fingerprint(&text);
    }

    #[test]
    fn secrets_of_the_log(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(ClusterSecrets::from_map(|_| Some(bytes.as_slice())).is_err());
    }
}
