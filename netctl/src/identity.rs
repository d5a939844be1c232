//! `netctl cluster token | ca | unlock | unlock-key | renew`: what proves who a node is.

use std::{
    io::{self, IsTerminal, Read},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand, ValueEnum};
use model::{
    ApiError, Code,
    api::{
        CaRotate, ClusterRenew, ClusterUnlock, CustodyView, MAX_SECRET_TEXT, RootView, TokenAnswer, TokenRotate,
        UnlockKeyAnswer,
    },
    intent::Role,
};
use tokio::time::sleep;

use crate::{
    Run,
    cli::{Context, WaitArgs, duration},
    output,
    progress::Progress,
};

/// Between two looks at a change of the CA.
const LOOK: Duration = Duration::from_millis(200);
/// Longest certificate that is read from a file, octets.
const MAX_PEM: u64 = 64 << 10;

#[derive(Debug, Args)]
pub(crate) struct Token {
    /// What the new node becomes.
    #[arg(value_enum)]
    role: TokenRole,
    /// Make the old token worthless first.
    #[arg(long)]
    rotate: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TokenRole {
    /// Runs tasks.
    Worker,
    /// Votes on the log.
    Manager,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// Show the CA, the gossip keys and how a change of them stands.
    #[command(after_help = "Example:\n  netctl cluster ca show")]
    Show,
    /// Change the CA without an outage: all nodes trust both, all renew, the old one is dropped.
    #[command(
        after_help = "Example:\n  netctl cluster ca rotate\n  netctl cluster ca rotate --ca-cert root.pem     its key is an external signer's (external-ca)\n\nTokens change with it. A node that is away meanwhile comes back by itself; if it was away for two changes:\n  netctl cluster renew TOKEN ADDR, on that node."
    )]
    Rotate {
        /// Certificate of a CA whose key the external signer has; without it managers make a new CA.
        #[arg(long, value_name = "FILE")]
        ca_cert: Option<PathBuf>,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Renew {
    /// Token of this node's role, from netctl cluster token; - reads it from standard input.
    token: String,
    /// A manager.
    #[arg(value_name = "IP[:PORT]")]
    addr: String,
    /// How long to wait for the manager.
    #[arg(long, default_value = "60s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct UnlockKey {
    /// Make another one: the old key is worth nothing on managers that are up.
    #[arg(long)]
    rotate: bool,
}

pub(crate) async fn token(cx: &Context, args: Token) -> Run {
    let (role, word) = match args.role {
        TokenRole::Worker => (Role::Worker, "worker"),
        TokenRole::Manager => (Role::Manager, "manager"),
    };
    let answer: TokenAnswer = match args.rotate {
        true => cx.client.post("/v1/cluster/token", &TokenRotate { role }).await?,
        false => cx.client.get(&format!("/v1/cluster/token?role={word}")).await?,
    };
    let done = if args.rotate {
        "the old token is worth nothing\n"
    } else {
        ""
    };
    let sentence = format!(
        "{done}to add a {word}, run on it:\n  netctl cluster join {} {}",
        answer.token, answer.addr
    );
    cx.out.done(&sentence, &answer.token, &answer)
}

pub(crate) async fn ca(cx: &Context, verb: Ca) -> Run {
    match verb {
        Ca::Show => {
            let view: CustodyView = cx.client.get("/v1/cluster/custody").await?;
            cx.out.done(&shown(&view), &view.ca.signs.fingerprint, &view)
        }
        Ca::Rotate { ca_cert, wait } => {
            let ca_cert = ca_cert.map(read_pem).transpose()?;
            let mut progress = Progress::new(cx.out);
            let mut view: CustodyView = cx.client.post("/v1/cluster/ca/rotate", &CaRotate { ca_cert }).await?;
            let begun = Instant::now();
            while let (Some(phase), false) = (&view.ca.phase, wait.detach) {
                let who: Vec<String> = view.ca.waits_for.iter().map(ToString::to_string).collect();
                let what = match phase.as_str() {
                    "trust" => "nodes learn to trust the new CA",
                    _ => "nodes renew their certificates",
                };
                if begun.elapsed() >= wait.timeout {
                    return Err(ApiError::new(
                        Code::NotConverged,
                        format!("the change of the CA goes on: {what}; waiting for {}", who.join(", ")),
                        "netctl cluster ca show",
                    ));
                }
                progress.say(&format!("{what} ({} to go)", who.len()));
                sleep(LOOK).await;
                view = cx.client.get("/v1/cluster/custody").await?;
            }
            drop(progress);
            let sentence = match &view.ca.phase {
                None => format!("all nodes have certificates of the CA {}", view.ca.signs.fingerprint),
                Some(_) => "the change of the CA has begun; netctl cluster ca show".to_owned(),
            };
            cx.out.done(&sentence, &view.ca.signs.fingerprint, &view)
        }
    }
}

fn read_pem(path: PathBuf) -> Result<String, ApiError> {
    let refused = |why: String| {
        ApiError::new(
            Code::Invalid,
            format!("the certificate {} cannot be read: {why}", path.display()),
            "netctl cluster ca rotate --ca-cert root.pem",
        )
    };
    let mut text = String::new();
    let file = std::fs::File::open(&path).map_err(|e| refused(e.to_string()))?;
    file.take(MAX_PEM)
        .read_to_string(&mut text)
        .map_err(|e| refused(e.to_string()))?;
    Ok(text)
}

fn shown(v: &CustodyView) -> String {
    let root = |r: &RootView| match r.key_here {
        true => r.fingerprint.clone(),
        false => format!("{} (its key is an external signer's, or forgotten)", r.fingerprint),
    };
    let mut text = format!("certificates come from  {}\n", root(&v.ca.signs));
    for other in v.ca.trusted.iter().filter(|r| r.fingerprint != v.ca.signs.fingerprint) {
        text.push_str(&format!("also trusted            {}\n", root(other)));
    }
    if let Some(line) = change_line(v) {
        text.push_str(&format!("{line}\n"));
    }
    let keys: Vec<String> = v.gossip.keys.iter().map(ToString::to_string).collect();
    text.push_str(&format!(
        "gossip keys             {} (the first seals), newest {} s old{}\n",
        keys.join(", "),
        v.gossip.age_s,
        v.gossip
            .phase
            .as_ref()
            .map(|p| format!(", change under way: {p}"))
            .unwrap_or_default()
    ));
    text.push_str(&format!(
        "managers' disks         {}\n",
        if v.autolock { "sealed (autolock)" } else { "not sealed" }
    ));
    text
}

/// How a change of the CA stands, if one is under way.
pub(crate) fn change_line(v: &CustodyView) -> Option<String> {
    let phase = match v.ca.phase.as_deref()? {
        "trust" => "nodes learn to trust the new CA",
        _ => "nodes renew their certificates",
    };
    let who: Vec<String> = v.ca.waits_for.iter().map(ToString::to_string).collect();
    Some(format!(
        "the CA is being changed: {phase}, for {} s, waiting for {}",
        v.ca.since_s.unwrap_or(0),
        if who.is_empty() {
            "nobody".to_owned()
        } else {
            who.join(", ")
        }
    ))
}

pub(crate) async fn renew(cx: &Context, args: Renew) -> Run {
    let mut progress = Progress::new(cx.out);
    progress.say(&format!("proving this node anew at {}", args.addr));
    let body = ClusterRenew {
        token: typed_token(args.token)?,
        addr: args.addr,
    };
    let client = cx.client.clone().with_timeout(args.timeout);
    let answer: serde_json::Value = client.post("/v1/cluster/renew", &body).await?;
    drop(progress);
    cx.out.done("this node has a new certificate", "", &answer)
}

pub(crate) async fn unlock(cx: &Context) -> Run {
    let key = secret("unlock key: ", "netctl cluster unlock < FILE")?;
    let answer: serde_json::Value = cx
        .client
        .clone()
        .with_timeout(Duration::from_secs(60))
        .post("/v1/cluster/unlock", &ClusterUnlock { key })
        .await?;
    cx.out.done("unlocked", "", &answer)
}

pub(crate) async fn unlock_key(cx: &Context, args: UnlockKey) -> Run {
    let path = "/v1/cluster/unlock-key";
    let answer: UnlockKeyAnswer = match args.rotate {
        true => cx.client.post(path, &serde_json::json!({})).await?,
        false => cx.client.get(path).await?,
    };
    let done = if args.rotate {
        "managers that are up are sealed with a new key; one that is down opens with the key of when it stopped\n"
    } else {
        ""
    };
    let sentence = format!(
        "{done}after a restart a manager is opened by: netctl cluster unlock\nkeep this key where no manager's disk is:\n  {}",
        answer.key
    );
    cx.out.done(&sentence, &answer.key, &answer)
}

/// A token as it was typed; `-`: from standard input, so that it is not seen in the list of processes.
pub(crate) fn typed_token(text: String) -> Result<String, ApiError> {
    match text.as_str() {
        "-" => secret("token: ", "netctl cluster join - ADDR < FILE"),
        _ => Ok(text),
    }
}

/// One line from standard input; typed, it is not shown. Never from the command line: others see that.
fn secret(prompt: &str, hint: &str) -> Result<String, ApiError> {
    let failed = |e: io::Error| ApiError::new(Code::Invalid, format!("nothing was read: {e}"), hint);
    let stdin = io::stdin();
    let hidden = stdin
        .is_terminal()
        .then(|| Hidden::new(&stdin))
        .transpose()
        .map_err(failed)?;
    if hidden.is_some() {
        output::stderr(prompt);
    }
    let mut text = String::new();
    let read = match hidden.is_some() {
        true => stdin.read_line(&mut text).map(|_| ()),
        false => {
            let limit = u64::try_from(MAX_SECRET_TEXT).unwrap_or(u64::MAX);
            stdin.lock().take(limit).read_to_string(&mut text).map(|_| ())
        }
    };
    if hidden.is_some() {
        output::stderr("\n");
    }
    drop(hidden);
    read.map_err(failed)?;
    match text.trim() {
        "" => Err(failed(io::ErrorKind::UnexpectedEof.into())),
        key => Ok(key.to_owned()),
    }
}

/// A terminal that does not show what is typed, until it is dropped.
struct Hidden {
    before: nix::sys::termios::Termios,
}

impl Hidden {
    fn new(stdin: &io::Stdin) -> io::Result<Hidden> {
        use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
        let before = tcgetattr(stdin)?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(stdin, SetArg::TCSAFLUSH, &quiet)?;
        Ok(Hidden { before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        use nix::sys::termios::{SetArg, tcsetattr};
        // When it fails the terminal is gone.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use model::{
        NodeId,
        api::{CaView, GossipKeysView},
    };

    use super::*;

    #[test]
    fn a_change_is_shown_with_whom_it_waits_for() {
        let root = |c: &str, key_here| RootView {
            fingerprint: c.repeat(8),
            key_here,
        };
        let mut view = CustodyView {
            ca: CaView {
                signs: root("a1", true),
                trusted: vec![root("a1", true), root("b2", false)],
                phase: Some("trust".into()),
                since_s: Some(7),
                waits_for: vec![NodeId(2), NodeId(3)],
            },
            gossip: GossipKeysView {
                keys: vec![4, 3],
                phase: None,
                age_s: 60,
                waits_for: Vec::new(),
            },
            autolock: true,
            certificates: Default::default(),
        };
        insta::assert_snapshot!(shown(&view));
        view.ca.phase = None;
        view.ca.trusted.pop();
        assert!(!shown(&view).contains("being changed"), "{}", shown(&view));
    }
}
