//! `netctl cluster inspect` and `update`: settings of the cluster.

use std::collections::BTreeMap;

use clap::Args;
use model::{
    ApiError, Code,
    api::{Changed, ClusterUpdate, ClusterView, CustodyView, SettingView},
};

use crate::{
    Run,
    cli::{Context, ListArgs, WaitArgs},
    output::{self, Column, Format, Table, cell, column, wide},
    progress::Progress,
    wait,
};

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Settings and their new values.
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Reads `KEY=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE; try: node-grace=30s")),
    }
}

/// Pairs as a request carries them: each key once, certificates by their text.
pub(crate) fn collect(pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>, ApiError> {
    let mut out = BTreeMap::new();
    for (key, value) in pairs {
        let value = match key.as_str() {
            "external-ca" => with_certificates(&value)?,
            _ => value,
        };
        if out.insert(key.clone(), value).is_some() {
            return Err(ApiError::new(
                Code::Invalid,
                format!("{key} is given twice"),
                format!("{key}=VALUE once"),
            ));
        }
    }
    Ok(out)
}

/// netd may run elsewhere: files are read here.
fn with_certificates(value: &str) -> Result<String, ApiError> {
    let signers = value.split(';').map(|signer| {
        let parts = signer.split(',').map(|part| match part.strip_prefix("cacert=") {
            Some(path) if !path.starts_with("-----BEGIN") => {
                let pem = std::fs::read_to_string(path).map_err(|e| {
                    ApiError::new(
                        Code::Invalid,
                        format!("the certificate {path} cannot be read: {e}"),
                        "external-ca=url=https://ca.example.net/sign,cacert=/etc/ssl/ca.pem",
                    )
                })?;
                Ok(format!("cacert={}", pem.trim()))
            }
            _ => Ok(part.to_owned()),
        });
        Ok(parts.collect::<Result<Vec<_>, ApiError>>()?.join(","))
    });
    Ok(signers.collect::<Result<Vec<_>, ApiError>>()?.join(";"))
}

pub(crate) async fn inspect(cx: &Context, list: ListArgs) -> Run {
    let view: ClusterView = cx.client.get("/v1/cluster").await?;
    match cx.out.format {
        Format::Json => cx.out.one(&view.id, &view),
        _ => {
            if cx.out.format != Format::Name {
                output::stderr(&format!(
                    "cluster {}: nodes {}, managers {}\n",
                    view.id, view.nodes, view.managers
                ));
                // Only managers know, and only while there is a leader.
                if let Ok(custody) = cx.client.get::<CustodyView>("/v1/cluster/custody").await
                    && let Some(line) = crate::identity::change_line(&custody)
                {
                    output::stderr(&format!("{line}\n"));
                }
            }
            cx.out.table(&table(&view.table), &list.filter)
        }
    }
}

pub(crate) async fn update(cx: &Context, args: Update) -> Run {
    let body = ClusterUpdate {
        set: collect(args.set)?,
    };
    let keys: Vec<&str> = body.set.keys().map(String::as_str).collect();
    let changed: Changed = cx.client.post("/v1/cluster/update", &body).await?;
    if !args.wait.detach {
        let mut progress = Progress::new(cx.out);
        wait::everywhere(cx, &args.wait, changed.revision, &mut progress).await?;
    }
    cx.out.done(&changed.message, &keys.join(" "), &changed)
}

const COLUMNS: &[Column] = &[
    column("KEY"),
    column("VALUE"),
    column("DEFAULT"),
    wide("RANGE"),
    wide("WHAT"),
];

fn table(settings: &[SettingView]) -> Table {
    let mut table = Table::new(COLUMNS);
    for s in settings {
        // A certificate is read in -o json.
        let value = match s.value.split_once(",cacert=") {
            Some((url, _)) => format!("{url},cacert=..."),
            None => s.value.clone(),
        };
        let cells = vec![
            cell(&s.key),
            cell(value),
            cell(&s.default),
            cell(&s.range),
            cell(&s.help),
        ];
        table.row(&s.key, cells, s);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn settings() {
        let mut settings = model::ClusterSettings {
            default_addr_pool6: "fd12:3456:789a::/48".parse().ok(),
            ..Default::default()
        };
        settings.external_ca.push(model::settings::ExternalCa {
            url: "https://ca/sign".into(),
            ca: Some("-----BEGIN CERTIFICATE-----".into()),
        });
        let views = settings.list().into_iter().map(|(key, value)| SettingView {
            key: key.name().to_owned(),
            value,
            default: key.default_text(),
            range: key.range(),
            help: key.help().to_owned(),
        });
        insta::assert_snapshot!(fixture::show(&table(&views.collect::<Vec<_>>())));
    }

    #[test]
    fn each_key_once_and_certificates_by_their_text() {
        let pairs = |v: &[&str]| v.iter().map(|t| pair(t)).collect::<Result<Vec<_>, _>>();
        assert!(pairs(&["node-grace"]).is_err());
        assert!(pairs(&["=3s"]).is_err());
        let twice = pairs(&["node-grace=3s", "node-grace=4s"]).unwrap();
        assert!(
            collect(twice)
                .unwrap_err()
                .message
                .contains("node-grace is given twice")
        );
        let missing = pairs(&["external-ca=url=https://a,cacert=/nowhere/ca.pem"]).unwrap();
        assert!(collect(missing).unwrap_err().message.contains("/nowhere/ca.pem"));
        let file = std::env::temp_dir().join(format!("netctl-ca-{}", std::process::id()));
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nx\n").unwrap();
        let given = format!("external-ca=url=https://a,cacert={};url=https://b", file.display());
        let got = collect(pairs(&[&given]).unwrap()).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(
            got["external-ca"],
            "url=https://a,cacert=-----BEGIN CERTIFICATE-----\nx;url=https://b"
        );
    }
}
