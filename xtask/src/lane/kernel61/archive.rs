//! A cpio archive as the kernel unpacks it (`Documentation/driver-api/early-userspace/buffer-format.rst`, "newc").

use std::collections::BTreeSet;
use std::io::{self, Write};

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive that is being written. Paths are relative to the root.
pub(super) struct Archive<W> {
    to: W,
    /// Of each entry: the kernel takes two entries with one number for one file.
    inode: u32,
    folders: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(to: W) -> Archive<W> {
        Archive {
            to,
            inode: 0,
            folders: BTreeSet::new(),
        }
    }

    /// A folder and those that it lies in, each once.
    pub(super) fn folder(&mut self, path: &str) -> io::Result<()> {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above)?;
        }
        if self.folders.insert(path.to_owned()) {
            self.entry(path, FOLDER, (0, 0), &[])?;
        }
        Ok(())
    }

    pub(super) fn file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.above(path)?;
        self.entry(path, FILE, (0, 0), bytes)
    }

    pub(super) fn program(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.above(path)?;
        self.entry(path, PROGRAM, (0, 0), bytes)
    }

    pub(super) fn character_device(&mut self, path: &str, number: (u32, u32)) -> io::Result<()> {
        self.above(path)?;
        self.entry(path, CHARACTER_DEVICE, number, &[])
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn above(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((above, _)) => self.folder(above),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), bytes: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let size = u32::try_from(bytes.len()).map_err(|_| io::Error::other(format!("{path} is too large for cpio")))?;
        // inode, mode, owner, group, links, time, size, device of the file system (2), device (2), path with its zero,
        // a checksum that this form has not.
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            0,
        ];
        let mut head = String::from("070701");
        for field in fields {
            head.push_str(&format!("{field:08x}"));
        }
        head.push_str(path);
        head.push('\0');
        self.to.write_all(head.as_bytes())?;
        self.pad(head.len())?;
        self.to.write_all(bytes)?;
        self.pad(bytes.len())
    }

    /// Both parts of an entry fill words of four octets.
    fn pad(&mut self, len: usize) -> io::Result<()> {
        self.to.write_all(&[0; 3][..len.wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_octet_for_octet_what_the_format_says() {
        let mut a = Archive::new(Vec::new());
        a.folder("dev").unwrap();
        a.character_device("dev/console", (5, 1)).unwrap();
        a.program("dev/x", b"12345").unwrap();
        let text = String::from_utf8(a.finish().unwrap()).unwrap();
        let words = |w: &str| w.split(' ').collect::<Vec<_>>().concat();
        let wanted = [
            words("070701 00000001 000041ed 00000000 00000000 00000001 00000000 00000000"),
            words("00000000 00000000 00000000 00000000 00000004 00000000 dev\0\0\0"),
            words("070701 00000002 00002180 00000000 00000000 00000001 00000000 00000000"),
            words("00000000 00000000 00000005 00000001 0000000c 00000000 dev/console\0\0\0"),
            words("070701 00000003 000081ed 00000000 00000000 00000001 00000000 00000005"),
            words("00000000 00000000 00000000 00000000 00000006 00000000 dev/x\0 12345\0\0\0"),
            words("070701 00000004 00000000 00000000 00000000 00000001 00000000 00000000"),
            words("00000000 00000000 00000000 00000000 0000000b 00000000 TRAILER!!!\0\0\0\0"),
        ];
        assert_eq!(text, wanted.concat());
    }

    #[test]
    fn folders_are_made_before_what_lies_in_them() {
        let mut a = Archive::new(Vec::new());
        a.file("usr/lib/a", b"").unwrap();
        a.file("usr/lib/b", b"").unwrap();
        let text = String::from_utf8(a.finish().unwrap()).unwrap();
        let names: Vec<&str> = text
            .split("070701")
            .filter_map(|entry| entry.get(104..)?.split('\0').next())
            .collect();
        assert_eq!(names, ["usr", "usr/lib", "usr/lib/a", "usr/lib/b", "TRAILER!!!"]);
    }
}
