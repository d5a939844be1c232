//! Output of tasks: a file each, bounded.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use model::EndpointId;

/// Size from which a log is moved to `<id>.log.1`, octets. Between two looks it may grow beyond.
const MAX: u64 = 16 << 20;

/// The log folder.
#[derive(Debug, Clone)]
pub(crate) struct Logs {
    folder: PathBuf,
}

impl Logs {
    /// Opens the folder, made when missing.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the log folder {}; try: --log-dir", folder.display()))?;
        Ok(Logs {
            folder: folder.to_owned(),
        })
    }

    /// A task's file.
    pub(crate) fn path(&self, id: &EndpointId) -> PathBuf {
        self.folder.join(format!("{id}.log"))
    }

    /// Copies a log that is too long aside and empties it. Tasks hold the file open for appending, so that it cannot be
    /// renamed; what they write between copy and cut is lost. Readers tell by the file aside that it was cut: it is put in
    /// its place whole, right before.
    pub(crate) fn trim(&self, id: &EndpointId) -> io::Result<()> {
        trim(&self.path(id), MAX)
    }
}

fn trim(path: &Path, max: u64) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(m) if m.len() > max => {}
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    let beside = |end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        name
    };
    fs::copy(path, beside(".new"))?;
    fs::rename(beside(".new"), beside(".1"))?;
    fs::OpenOptions::new().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_long_log_is_cut_while_it_is_written() {
        let folder = std::env::temp_dir().join(format!("netd-run-logs-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("web.1.log");
        let mut file = fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
        file.write_all(b"12345").unwrap();
        trim(&path, 5).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"12345");
        file.write_all(b"6").unwrap();
        trim(&path, 5).unwrap();
        file.write_all(b"7").unwrap();
        let both = (fs::read(folder.join("web.1.log.1")).unwrap(), fs::read(&path).unwrap());
        trim(&folder.join("absent"), 5).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(both, (b"123456".to_vec(), b"7".to_vec()));
    }
}
