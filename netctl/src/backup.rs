//! `netctl cluster backup | restore`, and a new beginning from one survivor.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use clap::Args;
use model::{
    ApiError, Code,
    api::{AloneAnswer, Backup, BackupAnswer, Restore},
};

use crate::{
    Run,
    cli::{Context, duration},
    progress::Progress,
};

/// Variable that holds the passphrase.
const PASSPHRASE: &str = "NETD_BACKUP_PASSPHRASE";
/// Longest key file, octets.
const MAX_KEY: u64 = 64 << 10;

/// What a backup is sealed with.
#[derive(Debug, Clone, Args)]
pub(crate) struct Secret {
    /// File whose octets are the key, e.g. 32 random ones.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    key_file: Option<PathBuf>,
    /// File whose first line is the passphrase; - is standard input. Without it: the variable NETD_BACKUP_PASSPHRASE.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BackupArgs {
    /// File to write; it must not be there yet.
    file: PathBuf,
    #[command(flatten)]
    secret: Secret,
    /// How long to wait for netd.
    #[arg(long, default_value = "60s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RestoreArgs {
    /// File that netctl cluster backup wrote.
    file: PathBuf,
    #[command(flatten)]
    secret: Secret,
    /// Address that the others reach this node by; needed where it has several.
    #[arg(long, value_name = "IP[:PORT]")]
    advertise_addr: Option<String>,
    /// Also if a manager of that cluster answers. Two clusters then claim the same nodes.
    #[arg(long)]
    force: bool,
    /// How long to wait for netd.
    #[arg(long, default_value = "60s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
}

fn failed(what: &str, path: &Path, e: &io::Error) -> ApiError {
    ApiError::new(
        Code::Invalid,
        format!("cannot {what} {}: {e}", path.display()),
        "another path",
    )
}

impl Secret {
    /// Base64.
    fn read(&self) -> Result<String, ApiError> {
        if let Some(path) = &self.key_file {
            let mut key = Vec::new();
            let file = File::open(path).map_err(|e| failed("read", path, &e))?;
            file.take(MAX_KEY)
                .read_to_end(&mut key)
                .map_err(|e| failed("read", path, &e))?;
            return Ok(BASE64.encode(key));
        }
        let text = match &self.passphrase_file {
            Some(path) if path.as_os_str() == "-" => {
                let mut line = String::new();
                io::stdin().read_line(&mut line).map_err(|e| failed("read", path, &e))?;
                line
            }
            Some(path) => fs::read_to_string(path).map_err(|e| failed("read", path, &e))?,
            None => std::env::var(PASSPHRASE).map_err(|_| {
                ApiError::new(
                    Code::Invalid,
                    "a backup holds the cluster's keys: it is sealed with a passphrase or a key file, and none is given",
                    format!("--key-file FILE, --passphrase-file FILE, or {PASSPHRASE}"),
                )
            })?,
        };
        Ok(BASE64.encode(text.lines().next().unwrap_or_default()))
    }
}

pub(crate) async fn backup(cx: &Context, args: BackupArgs) -> Run {
    if args.file.exists() {
        return Err(ApiError::new(
            Code::Invalid,
            format!("{} is there already", args.file.display()),
            "another name: a backup is never overwritten",
        ));
    }
    let secret = args.secret.read()?;
    let mut progress = Progress::new(cx.out);
    progress.say("sealing a backup");
    let client = cx.client.clone().with_timeout(args.timeout);
    let answer: BackupAnswer = client.post("/v1/cluster/backup", &Backup { secret }).await?;
    let octets = decode(&answer.file)?;
    write(&args.file, &octets).map_err(|e| failed("write", &args.file, &e))?;
    let sentence = format!(
        "{} octets of cluster {}, as of entry {}, are in {}\nit is worth nothing without its passphrase or key file: keep that elsewhere",
        octets.len(),
        answer.cluster,
        answer.index,
        args.file.display()
    );
    let told = serde_json::json!({ "cluster": answer.cluster, "index": answer.index, "octets": octets.len() });
    cx.out.done(&sentence, &args.file.display().to_string(), &told)
}

fn decode(text: &str) -> Result<Vec<u8>, ApiError> {
    BASE64
        .decode(text)
        .map_err(|e| ApiError::new(Code::Internal, format!("netd's answer is no base64: {e}"), ""))
}

/// Whole or not at all, and for its owner alone.
fn write(path: &Path, octets: &[u8]) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(octets)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
}

pub(crate) async fn restore(cx: &Context, args: RestoreArgs) -> Run {
    let file = fs::read(&args.file).map_err(|e| failed("read", &args.file, &e))?;
    let body = Restore {
        secret: args.secret.read()?,
        file: BASE64.encode(file),
        advertise_addr: args.advertise_addr,
        force: args.force,
    };
    let mut progress = Progress::new(cx.out);
    progress.say("restoring");
    let client = cx.client.clone().with_timeout(args.timeout);
    let answer: AloneAnswer = client.post("/v1/cluster/restore", &body).await?;
    alone(cx, &answer)
}

pub(crate) async fn force_new(cx: &Context, timeout: Duration) -> Run {
    let mut progress = Progress::new(cx.out);
    progress.say("looking for a majority");
    let client = cx.client.clone().with_timeout(timeout);
    let nothing = serde_json::json!({});
    let answer: AloneAnswer = client.post("/v1/cluster/recover", &nothing).await?;
    alone(cx, &answer)
}

fn alone(cx: &Context, answer: &AloneAnswer) -> Run {
    let mut sentence = format!(
        "cluster {} goes on with {} as its only manager, from revision {}; its nodes come back by themselves",
        answer.cluster, answer.node, answer.revision
    );
    if !answer.former.is_empty() {
        sentence.push_str(&format!(
            "\nformer managers are workers now: {}\nto make managers of them again: netctl node promote NODE",
            answer.former.join(", ")
        ));
    }
    cx.out.done(&sentence, &answer.node.to_string(), answer)
}
