//! Autolock with several managers: each is locked by itself, one key opens all, and the others go on without the one that
//! waits for it.

use std::fs;

use anyhow::{Context, ensure};
use lab::{Host, eventually};
use tests::managers::{SETTLED, all_reached, form, leader, quorum};
use tests::{address_kept, create_web, in_lab, running};

#[test]
fn managers_are_locked_and_opened_one_by_one() {
    in_lab("locked", 4, |lab| {
        form(lab, 3)?;
        let (n4, client) = (lab.host("n4")?, lab.client()?);
        let managers: Vec<&Host> = lab.nodes().iter().take(3).collect();
        let leads = leader(lab, n4)?;
        let others: Vec<&Host> = managers.iter().copied().filter(|m| m.name() != leads.name()).collect();
        let [one, two] = others.as_slice() else {
            anyhow::bail!("three managers: {others:?}");
        };
        leads.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        create_web(lab, "app", 3)?;
        leads.netctl("service publish 80")?.ok()?;

        // Asked for at one, done at all.
        one.netctl("cluster update autolock=true")?.ok()?;
        let first = key(leads)?;
        for m in &managers {
            eventually(&format!("{} to be sealed", m.name()), SETTLED, || {
                Ok(m.folder().join("state/identity/lock").exists() && m.netctl("cluster unlock-key -q")?.success())
            })?;
            ensure!(key(m)? == first, "one key for all");
        }

        // One is restarted: it is locked, and the other two go on.
        one.kill_netd()?;
        leads.netctl("cluster update task-history-limit=6")?.ok()?;
        one.start_netd()?;
        is_locked(one)?;
        address_kept(client, None, &format!("--to {} -n 30", one.at(80)))?;
        eventually("two of three to be reached", SETTLED, || {
            Ok(quorum(leads)?.reachable == 2)
        })?;
        leads.netctl("cluster update task-history-limit=7")?.ok()?;
        unlock(one, &first)?.ok()?;
        all_reached(leads, 3)?;
        eventually("it to have caught up", SETTLED, || {
            let seen = one.netctl("cluster inspect")?.ok()?.stdout;
            Ok(seen
                .lines()
                .any(|l| l.contains("task-history-limit") && l.split_whitespace().any(|w| w == "7")))
        })?;

        // The key is changed at one that does not lead; it opens all, and the old one none.
        let sealed = |m: &Host| fs::read(m.folder().join("state/identity/lock")).map_err(anyhow::Error::from);
        let before: Vec<Vec<u8>> = managers.iter().map(|m| sealed(m)).collect::<anyhow::Result<_>>()?;
        let second = two
            .netctl("cluster unlock-key --rotate -q")?
            .ok()?
            .stdout
            .trim()
            .to_owned();
        ensure!(second != first, "another key");
        // The log has it at once, each manager's disk when that manager has sealed it anew.
        for (m, before) in managers.iter().zip(&before) {
            eventually(&format!("{} to be sealed anew", m.name()), SETTLED, || {
                Ok(key(m)? == second && sealed(m)? != *before)
            })?;
        }
        for m in &managers {
            m.kill_netd()?;
        }
        for m in &managers {
            m.start_netd()?;
            is_locked(m)?;
            address_kept(client, None, &format!("--to {} -n 20", m.at(80)))?;
        }
        ensure!(unlock(leads, &first)?.code == 1, "the old key opens nothing");
        unlock(leads, &second)?.ok()?;
        // One of three is no majority; two are.
        let refused = leads.netctl("cluster update task-history-limit=8")?;
        ensure!(refused.code == 1 && refused.stderr.contains("1 of 3"), "{refused:?}");
        unlock(one, &second)?.ok()?;
        eventually("a majority", SETTLED, || {
            Ok(leads.netctl("cluster update task-history-limit=9")?.success())
        })?;
        unlock(two, &second)?.ok()?;
        for m in &managers {
            all_reached(m, 3)?;
        }
        running(leads, 3)?;
        address_kept(client, None, &format!("--to {} -n 20", n4.at(80)))?;
        Ok(())
    });
}

fn key(host: &Host) -> anyhow::Result<String> {
    Ok(host.netctl("cluster unlock-key -q")?.ok()?.stdout.trim().to_owned())
}

fn is_locked(host: &Host) -> anyhow::Result<()> {
    let said = host.netctl("status")?;
    ensure!(
        said.code == 1 && said.stderr.contains("locked"),
        "{}: {said:?}",
        host.name()
    );
    Ok(())
}

fn unlock(host: &Host, key: &str) -> anyhow::Result<lab::Output> {
    let file = host.folder().join("key");
    fs::write(&file, key).context("writing the key")?;
    let line = format!("netctl cluster unlock < {}", file.display());
    let said = host.run(&["sh", "-c", &line])?;
    fs::remove_file(&file)?;
    Ok(said)
}
