//! Step 8: kill -9 netd on the ingress node under a transfer.

use std::time::Duration;

use anyhow::Context;
use lab::Lab;
use lab::wire::Transfer;
use model::api::Status;

use super::nodes::ms;
use super::show::Show;
use crate::ui;

/// 48 MB at 8 MB/s: 6 s.
const OCTETS: &str = "48000000";
const RATE: &str = "8000000";

pub(super) fn adopt(lab: &Lab, show: &mut Show) -> anyhow::Result<()> {
    let (n1, client) = (lab.host("n1")?, lab.client()?);
    let to = n1.at(80);
    let argv = ["lab-tool", "fetch", "--to", &to, "--octets", OCTETS, "--rate", RATE];
    let mut fetch = client.spawn("fetch", &argv)?;
    println!("  client# {} &", argv.join(" "));
    fetch.line("receiving", Duration::from_secs(10))?;
    n1.kill_netd()?;
    println!("  n1# kill -9 netd");
    let fresh = show.tally(client, None, &format!("--to {to} -n 100"))?;
    show.answered("new connections while netd on n1 is dead", &fresh);
    let took = ui::during("netd again", || n1.start_netd())?;
    let out = ui::during("the transfer", || fetch.wait(Duration::from_secs(60)))?;
    let json = out
        .stdout
        .lines()
        .find(|l| l.starts_with('{'))
        .context("the transfer left no report")?;
    let transfer: Transfer = serde_json::from_str(json).context("reading the report")?;
    println!("    {json}");
    show.expect(
        "octets lost over kill -9 and restart",
        "0",
        transfer.lost(),
        transfer.lost() == 0 && transfer.error.is_none(),
    );
    show.expect(
        "longest stall of the stream",
        "<= 500 ms",
        format!("{} ms", transfer.longest_gap_ms),
        transfer.longest_gap_ms <= 500,
    );
    show.expect("netd ready again", "<= 5000 ms", ms(took), took.as_secs() < 5);
    let status: Status = n1.netctl("status -o json")?.json()?;
    let writes = format!("{} in {} reconciles", status.writes.total, status.writes.runs);
    show.expect(
        "kernel writes of the restarted daemon",
        "0",
        writes,
        status.writes.total == 0 && status.writes.runs > 0,
    );
    n1.sees_ready(3, Duration::from_secs(20))?;
    Ok(())
}
