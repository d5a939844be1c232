//! What was found once, and must not come again.

use std::{fs, io, path::PathBuf};

use ring::digest::{SHA256, digest};

use crate::Door;

fn folder(door: &Door) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("found").join(door.name)
}

/// Inputs that a door once failed at.
pub fn found(door: &Door) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut out = Vec::new();
    let files = match fs::read_dir(folder(door)) {
        Ok(files) => files,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(out),
        Err(e) => return Err(e),
    };
    for file in files {
        let file = file?;
        out.push((file.file_name().to_string_lossy().into_owned(), fs::read(file.path())?));
    }
    out.sort();
    Ok(out)
}

/// Keeps one more; answers the file.
pub fn keep(door: &Door, input: &[u8]) -> io::Result<PathBuf> {
    fs::create_dir_all(folder(door))?;
    let name: String = digest(&SHA256, input)
        .as_ref()
        .iter()
        .take(6)
        .map(|b| format!("{b:02x}"))
        .collect();
    let path = folder(door).join(name);
    fs::write(&path, input)?;
    Ok(path)
}
