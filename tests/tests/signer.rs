//! An external signer: its CA's key is on no manager, and every certificate comes from it over HTTPS.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Host, Lab, eventually};
use model::api::CustodyView;
use tests::in_lab;
use tests::managers::{SETTLED, all_reached, leader};

/// A signer as an operator may have one: cfssl's JSON, and openssl to sign.
const SIGNER: &str = include_str!("signer.py");

#[test]
fn every_certificate_comes_from_a_signer_outside() {
    in_lab("signer", 5, |lab| {
        let (n1, n4, n5, client) = (lab.host("n1")?, lab.host("n4")?, lab.host("n5")?, lab.client()?);
        for node in lab.nodes() {
            node.start_netd()?;
        }
        n1.netctl(&format!("cluster init --advertise-addr {}", n1.v4()))?.ok()?;
        let token = n1.join_token()?;
        for node in lab.nodes().iter().skip(1).take(3) {
            join(n1, node, &token)?.ok()?;
        }
        n1.netctl("node promote n2 n3")?.ok()?;
        all_reached(n1, 3)?;

        // It knows the managers by the cluster's root, and later by its own.
        let dir = client.folder();
        fs::write(dir.join("signer.py"), SIGNER)?;
        make_ca(lab)?;
        let roots = [root_of(n1)?, fs::read_to_string(dir.join("ca.pem"))?].concat();
        fs::write(dir.join("clients.pem"), roots)?;
        let (script, at) = (dir.join("signer.py").display().to_string(), dir.display().to_string());
        let mut signer = client.spawn("signer", &["python3", "-u", &script, &client.v4().to_string(), &at])?;
        signer.line("ready", Duration::from_secs(10))?;

        let before = custody(n1)?.ca.signs.fingerprint;
        n1.netctl(&format!(
            "cluster update external-ca=url=https://{}/sign,cacert={at}/ca.pem",
            client.at(8443)
        ))?
        .ok()?;
        n1.netctl(&format!("cluster ca rotate --ca-cert {at}/ca.pem"))?.ok()?;
        let view = custody(n1)?;
        ensure!(
            view.ca.signs.fingerprint != before && !view.ca.signs.key_here && view.ca.phase.is_none(),
            "{:?}",
            view.ca
        );
        let signed = signer.output();
        for who in ["n1/manager", "n2/manager", "n3/manager", "n4/worker"] {
            ensure!(signed.contains(who), "no certificate for {who}: {signed}");
        }
        for node in lab.nodes().iter().take(4) {
            ensure!(is_outside(node)?, "{} holds a certificate of another CA", node.name());
        }

        // The leader dies: another one asks the signer for whoever comes.
        let leads = leader(lab, n4)?;
        leads.kill_netd()?;
        let other = lab.nodes().iter().take(3).find(|n| n.name() != leads.name());
        let other = other.context("no other manager")?;
        eventually("another leader", SETTLED, || {
            Ok(other.netctl("network create later --detach")?.success())
        })?;
        join(other, n5, &other.join_token()?)?.ok()?;
        ensure!(is_outside(n5)?, "n5's certificate is from elsewhere");
        leads.start_netd()?;
        all_reached(other, 3)?;

        // Without the signer nobody comes in, which is said; who is in goes on.
        signer.kill();
        n5.netctl("cluster leave")?.ok()?;
        let refused = join(other, n5, &other.join_token()?)?;
        ensure!(
            refused.code == 1 && refused.stderr.contains(&client.at(8443)) && refused.stderr.contains("reached"),
            "{refused:?}"
        );
        other.netctl("network create goes-on")?.ok()?;
        Ok(())
    });
}

fn custody(host: &Host) -> anyhow::Result<CustodyView> {
    host.netctl("cluster ca show -o json")?.json()
}

fn join(manager: &Host, node: &Host, token: &str) -> anyhow::Result<lab::Output> {
    let line = format!(
        "cluster join {token} {} --advertise-addr {}",
        manager.at(2377),
        node.v4()
    );
    node.netctl(&line)
}

fn credentials(host: &Host, what: &str) -> anyhow::Result<String> {
    let text = fs::read_to_string(host.folder().join("state/identity/credentials.json"))?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    Ok(json
        .get(what)
        .and_then(|v| v.as_str())
        .context("no such credential")?
        .to_owned())
}

fn root_of(host: &Host) -> anyhow::Result<String> {
    credentials(host, "ca")
}

/// Whether a node's certificate is the outer CA's, by openssl.
fn is_outside(host: &Host) -> anyhow::Result<bool> {
    let file = host.folder().join("leaf.pem");
    fs::write(&file, credentials(host, "certificate")?)?;
    let said = host
        .sh(&format!("openssl x509 -noout -issuer -in {}", file.display()))?
        .ok()?;
    Ok(said.stdout.contains("CN = Outside"))
}

/// A CA, and a certificate for the signer's own HTTPS.
fn make_ca(lab: &Lab) -> anyhow::Result<()> {
    let client = lab.client()?;
    let dir = client.folder().display();
    let key = "ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let line = format!(
        "cd {dir} && openssl req -x509 -newkey {key} -keyout ca.key -out ca.pem -subj /CN=Outside -days 2 \
             && openssl req -newkey {key} -keyout server.key -out server.csr -subj /CN=signer \
             && echo subjectAltName=IP:{ip} > server.ext \
             && openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -set_serial 1 -days 2 -extfile server.ext \
                -out server.pem",
        ip = client.v4()
    );
    client.run(&["sh", "-c", &line])?.ok()?;
    Ok(())
}
