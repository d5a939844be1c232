use std::io;

/// Files of one folder, as the log needs them: real ones in netd, simulated ones that crash at any octet in tests.
/// Names are plain file names.
pub trait Disk {
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;

    /// A whole file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Makes a file of `len` octets: `head`, then zeros that are really written (unallocated blocks would cost a journal
    /// write each later). Durable when it returns; after a crash it is there as a whole or not at all. With
    /// [`io::ErrorKind::StorageFull`] nothing is left of it.
    fn create(&mut self, name: &str, head: &[u8], len: u64) -> io::Result<()>;

    /// Writes inside a file that was created. Durable after [`Disk::sync`] alone.
    fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written to a file durable. After an error nothing is known about it.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Deletes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
}
