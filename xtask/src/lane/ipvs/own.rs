//! A verb of this very program, run in a guest: benches and the demo are the same there as here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::uml;
use crate::build;
use crate::lane::init::quoted;

/// Which data path the daemons of a lab are told to use: what the lane is for, unless whoever runs it says otherwise.
const DATAPATH: &str = "NETD_LAB_DATAPATH";

/// The mode that the lane is for.
const MODE: &str = "ipvs";

/// What daemons of a lab are told.
fn datapath() -> String {
    std::env::var(DATAPATH).unwrap_or_else(|_| MODE.to_owned())
}

/// Lines of a script that make the surroundings of a lab: where the programs under test are, and their data path.
pub(super) fn environment(programs: &Path) -> String {
    let programs = quoted(&programs.display().to_string());
    format!("export NETD_BIN_DIR={programs} {DATAPATH}={}\n", quoted(&datapath()))
}

/// Runs `cargo xtask` with these words in a guest; calls `each` with every line that it writes. `programs` are those that
/// were built for it. Answers its status.
///
/// # Errors
///
/// When the guest does not start, or ends before its work is done.
pub(crate) fn own(words: &[&str], programs: &Path, limit: Duration, each: &mut dyn FnMut(&str)) -> anyhow::Result<i32> {
    let visible = visible()?;
    let visible: Vec<&Path> = visible.iter().map(PathBuf::as_path).collect();
    uml::run(&script(words, programs)?, &visible, limit, each)
}

/// The script that does so.
pub(super) fn script(words: &[&str], programs: &Path) -> anyhow::Result<String> {
    let exe = std::env::current_exe().context("asking for this program's path")?;
    let mut script = environment(programs);
    script.push_str(&quoted(&exe.display().to_string()));
    for word in words {
        let _ = write!(script, " {}", quoted(word));
    }
    Ok(script)
}

/// The folders of this machine that a guest's work needs.
pub(in crate::lane) fn visible() -> anyhow::Result<Vec<PathBuf>> {
    let mut all = vec![build::root().to_owned(), build::target_dir()?];
    // This program may lie elsewhere than where cargo builds now.
    let exe = std::env::current_exe().context("asking for this program's path")?;
    all.extend(
        exe.parent()
            .filter(|dir| !all.iter().any(|d| dir.starts_with(d)))
            .map(Path::to_owned),
    );
    Ok(all)
}
