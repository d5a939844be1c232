//! Where a node's secrets lie on disk: `<state_dir>/identity` (0700, files 0600), on managers of a cluster with `autolock`
//! sealed with a key that only the log and a person hold.
//!
//! The person's [`UnlockKey`] seals one small file, `lock`, which holds the key that seals all others: changing the unlock
//! key, or a crash while files are sealed one by one, never leaves a set that no single key opens. A locked vault reads
//! nothing and says so.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, MutexGuard},
};

use model::ids::NodeId;
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
};
use serde::{Deserialize, Serialize};

use super::{
    IdentityError,
    ca::hex,
    random,
    token::{decode, encode},
};
use crate::disk::write_atomic;

const FOLDER: &str = "identity";
const LOCK: &str = "lock";
/// What is sealed when the vault is.
const SEALED: [&str; 3] = [super::node::KEY, super::node::CREDENTIALS, LOG_KEY];
/// Key of the managers' log.
pub const LOG_KEY: &str = "log.key";
/// First octets of a sealed file.
const MAGIC: &[u8] = b"NETD-SEALED-1\n";
const PREFIX: &str = "NETDKEY-1-";
const CHECK: usize = 4;

/// The key that a person keeps: 256 random bits, so it needs no stretching.
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKey([u8; 32]);

impl std::fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnlockKey").finish_non_exhaustive()
    }
}

impl UnlockKey {
    /// A new one.
    pub fn create() -> Result<UnlockKey, IdentityError> {
        random().map(UnlockKey)
    }

    pub(super) fn from_octets(octets: [u8; 32]) -> UnlockKey {
        UnlockKey(octets)
    }

    pub(super) fn octets(&self) -> &[u8; 32] {
        &self.0
    }

    /// What a person types: `NETDKEY-1-...`, with a check of 32 bits against slips.
    pub fn reveal(&self) -> String {
        let text = [&self.0[..], &self.check()].concat();
        format!("{PREFIX}{}", encode(&text))
    }

    fn check(&self) -> [u8; CHECK] {
        let sum = digest(&SHA256, &[b"netd unlock check", &self.0[..]].concat());
        *sum.as_ref().first_chunk().unwrap_or(&[0; CHECK])
    }

    /// Tells keys apart without telling anything of them.
    pub fn name(&self) -> String {
        let sum = digest(&SHA256, &[b"netd unlock name", &self.0[..]].concat());
        hex(sum.as_ref().get(..4).unwrap_or_default())
    }
}

impl FromStr for UnlockKey {
    type Err = IdentityError;
    fn from_str(s: &str) -> Result<Self, IdentityError> {
        const FORM: IdentityError = IdentityError::UnlockKey("is not of the form NETDKEY-1-...");
        let s = s.trim();
        if s.len() > 128 {
            return Err(FORM);
        }
        let octets = s.strip_prefix(PREFIX).and_then(decode).ok_or(FORM)?;
        let (key, check) = octets.split_first_chunk::<32>().ok_or(FORM)?;
        let key = UnlockKey(*key);
        match key.check() == *check {
            true => Ok(key),
            false => Err(IdentityError::UnlockKey("has a slip in it")),
        }
    }
}

/// What a locked manager still knows of itself; no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of this node.
    pub node: NodeId,
}

#[derive(Serialize, Deserialize)]
struct LockFile {
    /// [`UnlockKey::name`] of the key that opens it.
    key: String,
    about: About,
    /// The key of the other files, sealed.
    sealed: Vec<u8>,
}

enum State {
    /// Nothing is sealed.
    Plain,
    /// All is sealed, and the key is not here.
    Locked(Box<LockFile>),
    /// All is sealed with this key, which the unlock key of this name seals.
    Open { key: [u8; 32], name: String },
}

/// See the module.
pub struct Vault {
    dir: PathBuf,
    /// Held by whoever seals, unseals or opens, from the first look to the last file: two at once would each choose a key for
    /// the files, and the lock would open those of one. Taken before `state`.
    change: Mutex<()>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> IdentityError {
    let path = path.to_owned();
    move |e| IdentityError::Disk {
        path: path.clone(),
        why: e.to_string(),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    match fs::read(path) {
        Ok(b) => Ok(Some(b)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(path)(e)),
    }
}

fn cipher(key: &[u8; 32]) -> Result<LessSafeKey, IdentityError> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).map_err(|_| IdentityError::Random)?;
    Ok(LessSafeKey::new(key))
}

/// Nonce, ciphertext, tag. `name` binds it to its place.
fn seal(key: &[u8; 32], name: &str, plain: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let nonce: [u8; NONCE_LEN] = random()?;
    let mut body = plain.to_vec();
    cipher(key)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(name.as_bytes()),
            &mut body,
        )
        .map_err(|_| IdentityError::Random)?;
    Ok([&nonce[..], &body].concat())
}

fn open(key: &[u8; 32], name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut body = body.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let cipher = cipher(key).ok()?;
    let plain = cipher
        .open_in_place(nonce, Aad::from(name.as_bytes()), &mut body)
        .ok()?;
    Some(plain.to_vec())
}

impl Vault {
    /// The vault of a state folder; it is locked when a lock lies in it.
    pub fn open(state_dir: &Path) -> Result<Vault, IdentityError> {
        let dir = state_dir.join(FOLDER);
        let path = dir.join(LOCK);
        let state = match read(&path)? {
            None => State::Plain,
            Some(json) => State::Locked(serde_json::from_slice(&json).map_err(|e| IdentityError::Disk {
                path,
                why: e.to_string(),
            })?),
        };
        Ok(Vault {
            dir,
            change: Mutex::new(()),
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whom it belongs to, if it is locked.
    pub fn locked(&self) -> Option<About> {
        match &*self.lock() {
            State::Locked(l) => Some(l.about.clone()),
            _ => None,
        }
    }

    /// Whether its files are sealed.
    pub fn is_sealed(&self) -> bool {
        !matches!(&*self.lock(), State::Plain)
    }

    /// Whether they are, and this unlock key opens them.
    pub fn is_sealed_with(&self, key: &UnlockKey) -> bool {
        matches!(&*self.lock(), State::Open { name, .. } if *name == key.name())
    }

    /// Opens a locked vault. A wrong key changes nothing.
    pub fn unlock(&self, key: &UnlockKey) -> Result<(), IdentityError> {
        let _change = self.change();
        let mut state = self.lock();
        let State::Locked(l) = &*state else { return Ok(()) };
        let opened = open(key.octets(), LOCK, &l.sealed).and_then(|k| k.try_into().ok());
        let Some(inner) = opened else {
            return Err(IdentityError::WrongKey {
                want: l.key.clone(),
                got: key.name(),
            });
        };
        let name = l.key.clone();
        *state = State::Open { key: inner, name };
        drop(state);
        // A crash may have come between two files.
        self.rewrite()
    }

    /// Reads a file; `None`: there is none.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, IdentityError> {
        let path = self.dir.join(name);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let Some(sealed) = bytes.strip_prefix(MAGIC) else {
            return Ok(Some(bytes));
        };
        match &*self.lock() {
            State::Open { key, .. } => open(key, name, sealed).map(Some).ok_or(IdentityError::Disk {
                path,
                why: "it does not open with this node's key".into(),
            }),
            State::Locked(_) => Err(IdentityError::Locked),
            State::Plain => Err(IdentityError::Disk {
                path,
                why: "it is sealed, and the lock is gone".into(),
            }),
        }
    }

    /// Writes a file, sealed if the vault is.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
        let path = self.dir.join(name);
        // Held until it is on disk: what is sealed with a key that goes meanwhile could never be read.
        let state = self.lock();
        let sealed = match &*state {
            State::Plain => None,
            State::Open { key, .. } => Some([MAGIC, &seal(key, name, bytes)?].concat()),
            State::Locked(_) => return Err(IdentityError::Locked),
        };
        let folder = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        folder.map_err(failed(&self.dir))?;
        write_atomic(&path, sealed.as_deref().unwrap_or(bytes), 0o600).map_err(failed(&path))
    }

    /// Deletes a file, if it is there.
    pub fn remove(&self, name: &str) -> Result<(), IdentityError> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(&path)(e)),
            _ => Ok(()),
        }
    }

    /// Forgets everything, the lock too.
    pub fn wipe(&self) -> Result<(), IdentityError> {
        let _change = self.change();
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(&self.dir)(e)),
            _ => {}
        }
        *self.lock() = State::Plain;
        Ok(())
    }

    /// Makes it so that the files are sealed under this unlock key, or (`None`) not at all. Does nothing when they are.
    pub fn keep_sealed(&self, unlock: Option<&UnlockKey>, about: &About) -> Result<(), IdentityError> {
        let _change = self.change();
        let inner = match (&*self.lock(), unlock) {
            (State::Plain, None) => return Ok(()),
            (State::Open { name, .. }, Some(k)) if *name == k.name() => return Ok(()),
            (State::Locked(_), _) => return Err(IdentityError::Locked),
            (State::Open { key, .. }, _) => *key,
            (State::Plain, Some(_)) => random()?,
        };
        let Some(unlock) = unlock else {
            let mut state = self.lock();
            for name in SEALED {
                let path = self.dir.join(name);
                if let Some(sealed) = read(&path)?.as_deref().and_then(|b| b.strip_prefix(MAGIC))
                    && let Some(plain) = open(&inner, name, sealed)
                {
                    write_atomic(&path, &plain, 0o600).map_err(failed(&path))?;
                }
            }
            // Last: until then the lock opens what is still sealed.
            self.remove(LOCK)?;
            *state = State::Plain;
            return Ok(());
        };
        let file = LockFile {
            key: unlock.name(),
            about: about.clone(),
            sealed: seal(unlock.octets(), LOCK, &inner)?,
        };
        let path = self.dir.join(LOCK);
        let json = serde_json::to_vec(&file).map_err(|e| IdentityError::Disk {
            path: path.clone(),
            why: e.to_string(),
        })?;
        write_atomic(&path, &json, 0o600).map_err(failed(&path))?;
        *self.lock() = State::Open {
            key: inner,
            name: unlock.name(),
        };
        self.rewrite()
    }

    /// Seals what is not sealed yet.
    fn rewrite(&self) -> Result<(), IdentityError> {
        for name in SEALED {
            if let Some(plain) = read(&self.dir.join(name))?
                && !plain.starts_with(MAGIC)
            {
                self.write(name, &plain)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About {
            cluster: "c1".into(),
            node: NodeId(1),
        }
    }

    /// A state folder that is deleted at the end.
    struct Dir(PathBuf);
    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("netd-vault-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }
        fn holds(&self, needle: &[u8]) -> bool {
            fs::read_dir(self.0.join(FOLDER)).unwrap().any(|f| {
                let bytes = fs::read(f.unwrap().path()).unwrap();
                bytes.windows(needle.len()).any(|w| w == needle)
            })
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const SECRET: &[u8] = b"the canary that must not be seen";

    #[test]
    fn a_key_survives_its_text_and_slips_are_seen() {
        let key = UnlockKey::create().unwrap();
        let text = key.reveal();
        assert!(text.starts_with(PREFIX));
        assert_eq!(text.parse::<UnlockKey>().unwrap(), key);
        assert_eq!(format!(" {text}\n").parse::<UnlockKey>().unwrap(), key);
        assert!(!format!("{key:?}").contains(&text[12..20]));
        for at in PREFIX.len()..text.len() {
            let mut slip = text.clone().into_bytes();
            slip[at] = if slip[at] == b'a' { b'b' } else { b'a' };
            let slip = String::from_utf8(slip).unwrap();
            assert!(slip.parse::<UnlockKey>().is_err(), "{slip}");
        }
        for bad in ["", "NETDKEY-1-", "NETD1-a-b", &text[..text.len() - 1], &text.repeat(9)] {
            assert!(bad.parse::<UnlockKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sealed_files_open_with_the_key_alone() {
        let dir = Dir::new("seal");
        let vault = Vault::open(&dir.0).unwrap();
        for name in SEALED {
            vault.write(name, SECRET).unwrap();
        }
        assert!(dir.holds(SECRET));
        let key = UnlockKey::create().unwrap();
        vault.keep_sealed(Some(&key), &about()).unwrap();
        assert!(!dir.holds(SECRET) && !dir.holds(key.octets()));
        assert_eq!(vault.read(LOG_KEY).unwrap().as_deref(), Some(SECRET));
        vault.write(LOG_KEY, b"anew").unwrap();

        let again = Vault::open(&dir.0).unwrap();
        assert_eq!(again.locked(), Some(about()));
        assert!(matches!(again.read(LOG_KEY), Err(IdentityError::Locked)));
        assert!(matches!(again.write(LOG_KEY, SECRET), Err(IdentityError::Locked)));
        let wrong = again.unlock(&UnlockKey::create().unwrap());
        assert!(matches!(wrong, Err(IdentityError::WrongKey { .. })));
        assert!(again.locked().is_some());
        again.unlock(&key).unwrap();
        assert_eq!(again.read(LOG_KEY).unwrap().as_deref(), Some(&b"anew"[..]));

        // Another key: the old one is worth nothing, the files are as they were.
        let new = UnlockKey::create().unwrap();
        again.keep_sealed(Some(&new), &about()).unwrap();
        let third = Vault::open(&dir.0).unwrap();
        assert!(third.unlock(&key).is_err());
        third.unlock(&new).unwrap();
        assert_eq!(third.read(super::super::node::KEY).unwrap().as_deref(), Some(SECRET));

        third.keep_sealed(None, &about()).unwrap();
        let plain = Vault::open(&dir.0).unwrap();
        assert!(plain.locked().is_none());
        assert_eq!(plain.read(LOG_KEY).unwrap().as_deref(), Some(&b"anew"[..]));
    }

    #[test]
    fn two_who_seal_at_once_leave_what_opens() {
        for _ in 0..50 {
            let dir = Dir::new("both");
            let vault = Vault::open(&dir.0).unwrap();
            for name in SEALED {
                vault.write(name, SECRET).unwrap();
            }
            let key = UnlockKey::create().unwrap();
            // A request, and the custodian that has seen the same entry of the log.
            std::thread::scope(|s| {
                let both = [(); 2].map(|()| s.spawn(|| vault.keep_sealed(Some(&key), &about())));
                for one in both {
                    one.join().unwrap().unwrap();
                }
            });
            let again = Vault::open(&dir.0).unwrap();
            again.unlock(&key).unwrap();
            for name in SEALED {
                assert_eq!(again.read(name).unwrap().as_deref(), Some(SECRET), "{name}");
            }
        }
    }

    #[test]
    fn a_crash_between_two_files_is_made_good() {
        let dir = Dir::new("crash");
        let vault = Vault::open(&dir.0).unwrap();
        let key = UnlockKey::create().unwrap();
        vault.write(LOG_KEY, b"other").unwrap();
        vault.keep_sealed(Some(&key), &about()).unwrap();
        // As if the credentials had not been reached.
        fs::write(dir.0.join(FOLDER).join(super::super::node::CREDENTIALS), SECRET).unwrap();
        let again = Vault::open(&dir.0).unwrap();
        again.unlock(&key).unwrap();
        assert!(!dir.holds(SECRET));
        assert_eq!(
            again.read(super::super::node::CREDENTIALS).unwrap().as_deref(),
            Some(SECRET)
        );
    }

    #[test]
    fn a_file_moved_or_changed_does_not_open() {
        let dir = Dir::new("moved");
        let vault = Vault::open(&dir.0).unwrap();
        vault.write(LOG_KEY, SECRET).unwrap();
        vault
            .keep_sealed(Some(&UnlockKey::create().unwrap()), &about())
            .unwrap();
        let folder = dir.0.join(FOLDER);
        let sealed = fs::read(folder.join(LOG_KEY)).unwrap();
        fs::write(folder.join(super::super::node::KEY), &sealed).unwrap();
        assert!(vault.read(super::super::node::KEY).is_err());
        for at in MAGIC.len()..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            fs::write(folder.join(LOG_KEY), &bad).unwrap();
            assert!(vault.read(LOG_KEY).is_err(), "octet {at}");
        }
    }
}
