//! An external signer: it gets a node's request over HTTPS and answers with a certificate, in the JSON of cfssl's `/sign`
//! that Swarm's external CAs speak.
//!
//! Its HTTPS must be certified by the cluster's own CA, or by the certificate that is set beside its URL; this manager
//! shows its own certificate. What comes back counts only if it is what was asked for: this key, these names, this role,
//! signed by the root that the cluster trusts.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use model::settings::ExternalCa;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{
    Ca, Csr, IdentityError, Issued, Subject, Tls,
    ca::role_name,
    tls::{SERVER_NAME, check_issued},
};

/// Longest wait for one signer.
const PATIENCE: Duration = Duration::from_secs(8);
/// Longest answer, octets.
const MAX_ANSWER: usize = 64 << 10;

/// `signer.SignRequest` of cfssl.
#[derive(Serialize)]
struct Sign<'a> {
    certificate_request: &'a str,
    hosts: [&'a str; 2],
    subject: Name<'a>,
}

#[derive(Serialize)]
struct Name<'a> {
    #[serde(rename = "CN")]
    common: &'a str,
    names: [Names<'a>; 1],
}

#[derive(Serialize)]
struct Names<'a> {
    #[serde(rename = "O")]
    cluster: &'a str,
    #[serde(rename = "OU")]
    role: &'a str,
}

/// `api.Response` of cfssl.
#[derive(Deserialize)]
struct Signed {
    success: bool,
    #[serde(default)]
    result: Option<Certificate>,
    #[serde(default)]
    errors: Vec<Complaint>,
}

#[derive(Deserialize)]
struct Certificate {
    certificate: String,
}

#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    message: String,
}

/// What became of a request.
enum Outcome {
    /// A certificate of the root that signs now.
    Good(String),
    /// A good certificate of another root.
    Other,
}

/// Has a certificate signed outside; the signers are asked one after the other until one signs. `None`: they sign for
/// another root than the cluster's, whose key is here: the change to theirs has yet to come.
pub async fn sign_outside(
    signers: &[ExternalCa],
    tls: &Tls,
    ca: &Ca,
    csr: &Csr,
    who: &Subject,
) -> Result<Option<Issued>, IdentityError> {
    let mut last = IdentityError::Outside {
        url: "(none)".into(),
        why: "none is set, and the CA's key is not here; try: netctl cluster update external-ca=url=https://...".into(),
    };
    for signer in signers {
        let asked = timeout(PATIENCE, ask(signer, tls, ca, csr, who)).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
        match asked {
            Ok(Outcome::Good(pem)) => return Ok(Some(ca.issued(&pem, who.role))),
            Ok(Outcome::Other) if ca.root().signs() => return Ok(None),
            Ok(Outcome::Other) => {
                last = IdentityError::Outside {
                    url: signer.url.clone(),
                    why: format!("it signs for another root than {}", ca.root().fingerprint()),
                }
            }
            Err(why) => {
                last = IdentityError::Outside {
                    url: signer.url.clone(),
                    why,
                }
            }
        }
        tracing::warn!("{last}");
    }
    Err(last)
}

async fn ask(signer: &ExternalCa, tls: &Tls, ca: &Ca, csr: &Csr, who: &Subject) -> Result<Outcome, String> {
    let uri: Uri = signer.url.parse().map_err(|e| format!("its URL cannot be read: {e}"))?;
    let host = uri.host().ok_or("its URL has no host")?;
    if uri.scheme_str() != Some("https") {
        return Err("its URL is not https".into());
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned()).map_err(|e| format!("its host: {e}"))?;
    let config = match &signer.ca {
        Some(pem) => tls.client_of(pem).map_err(|e| e.to_string())?,
        None => tls.client(),
    };
    let tcp = TcpStream::connect((bare, uri.port_u16().unwrap_or(443)))
        .await
        .map_err(|e| format!("it cannot be reached: {e}"))?;
    let stream = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|e| format!("its HTTPS is not trusted: {e}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let answer = exchange(&mut sender, &uri, csr, who).await;
    connection.abort();
    let pem = answer?;
    let trusted = ca.root().cert();
    match check_issued(&pem, [trusted].into_iter(), who, csr.key()) {
        Ok(()) => Ok(Outcome::Good(pem)),
        // Is it all right but for the root?
        Err(e) => {
            let theirs = signer.ca.as_deref().unwrap_or_default();
            let roots = ca.known().chain(std::iter::once(theirs)).filter(|r| !r.is_empty());
            match check_issued(&pem, roots, who, csr.key()) {
                Ok(()) => Ok(Outcome::Other),
                Err(_) => Err(format!("what it signed is not what was asked for: {e}")),
            }
        }
    }
}

async fn exchange(
    sender: &mut http1::SendRequest<Full<Bytes>>,
    uri: &Uri,
    csr: &Csr,
    who: &Subject,
) -> Result<String, String> {
    let (node, named) = (who.node.to_string(), who.uri());
    let sign = Sign {
        certificate_request: csr.pem(),
        hosts: [SERVER_NAME, &named],
        subject: Name {
            common: &node,
            names: [Names {
                cluster: &who.cluster,
                role: role_name(who.role),
            }],
        },
    };
    let body = serde_json::to_vec(&sign).map_err(|e| e.to_string())?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| refused(&e))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|e| format!("its answer: {e}"))?.to_bytes();
    let signed: Signed = match serde_json::from_slice(&body) {
        Ok(s) => s,
        Err(_) if status != StatusCode::OK => return Err(format!("it answered {status}")),
        Err(e) => return Err(format!("its answer cannot be read: {e}")),
    };
    match signed.result {
        Some(r) if signed.success => Ok(r.certificate),
        _ => {
            let why: Vec<String> = signed.errors.into_iter().map(|c| c.message).collect();
            // What it says is shown to people: bounded, and no control characters.
            let why: String = why.join("; ").chars().filter(|c| !c.is_control()).take(200).collect();
            Err(format!("it refused ({status}): {why}"))
        }
    }
}

fn refused(e: &hyper::Error) -> String {
    format!("it ended the connection (it may not take this manager's certificate): {e}")
}

/// Where the managers' own signatures and those of external signers come together.
pub struct Signer<'a> {
    /// The CA.
    pub ca: &'a Ca,
    /// This manager's TLS settings.
    pub tls: &'a Arc<Tls>,
    /// External signers, from the settings.
    pub outside: &'a [ExternalCa],
    /// Life of a certificate that is signed here.
    pub life: Duration,
}

impl Signer<'_> {
    /// Certifies a node.
    pub async fn certify(&self, csr: &Csr, who: &Subject) -> Result<Issued, IdentityError> {
        if !self.outside.is_empty() || !self.ca.root().signs() {
            if let Some(issued) = sign_outside(self.outside, self.tls, self.ca, csr, who).await? {
                return Ok(issued);
            }
            tracing::warn!("the external signer signs for another root; try: netctl cluster ca rotate --ca-cert FILE");
        }
        self.ca.sign(csr, who, self.life)
    }
}
