//! Where a key ring lives: a directory of ours alone.
//!
//! `keys.json` says which authorities there are; each private key is a PKCS#8 file named after its
//! key. Keys never change, so a save writes the new key files first and then replaces the state as a
//! whole: at any instant of a crash the state names only keys that are there.
//!
//! What is found is distrusted: the directory and each file must belong to us and to nobody else,
//! each key must be the one that its certificate and its name stand for, and what is not understood
//! is refused and left as it is.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mayfly_core::{Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    authority::{JwtAuthority, Unusable, X509Authority},
    error::KeyDirError,
    keyring::Authorities,
    rotation::{Past, Rotates, Standing, Track},
};

/// The newest format that is understood.
const FORMAT: u64 = 2;
/// The one that is written where nothing is tainted: the version before understands it, too.
const FORMAT_UNTAINTED: u64 = 1;
const STATE: &str = "keys.json";
/// Larger files are not ours.
const FILE_BYTES_MAX: u64 = 1 << 20;
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

#[derive(Deserialize)]
struct Format {
    format: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: u64,
    trust_domain: String,
    x509: Vec<Entry>,
    jwt: Vec<Entry>,
}

impl State {
    fn empty(trust_domain: &TrustDomain) -> Self {
        Self {
            format: FORMAT_UNTAINTED,
            trust_domain: trust_domain.as_str().to_owned(),
            x509: Vec::new(),
            jwt: Vec::new(),
        }
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key_id: String,
    standing: Word,
    born_ms: u64,
    expires_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    withdrawn_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
}

#[derive(Clone, Copy, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Active,
    Prepared,
    Old,
    Tainted,
}

/// A directory that was checked to be private.
#[derive(Debug)]
pub(crate) struct KeyDir(PathBuf);

impl KeyDir {
    /// Makes the directory if it is not there, and checks it.
    pub(crate) fn prepare(path: &Path) -> Result<Self, KeyDirError> {
        match DirBuilder::new().mode(DIR_MODE).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(io_error(path, source)),
        }
        Self::existing(path)
    }

    /// Checks a directory that has to be there.
    pub(crate) fn existing(path: &Path) -> Result<Self, KeyDirError> {
        // Not followed: a link could be turned round after the check.
        let found = fs::symlink_metadata(path).map_err(|source| io_error(path, source))?;
        if !found.is_dir() {
            return Err(KeyDirError::WrongType { path: path.to_owned(), wanted: "directory" });
        }
        check_private(path, &found, DIR_MODE)?;
        Ok(Self(path.to_owned()))
    }

    pub(crate) fn missing(&self) -> KeyDirError {
        KeyDirError::Missing(self.0.join(STATE))
    }

    /// Reads what is there; `None` if there has never been a key ring.
    pub(crate) fn load(&self, wanted: &TrustDomain) -> Result<Option<Authorities>, KeyDirError> {
        let path = self.0.join(STATE);
        let text = match read_private(&path) {
            Ok(text) => text,
            Err(KeyDirError::Missing(_)) if self.has_keys()? => return Err(self.missing()),
            Err(KeyDirError::Missing(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let garbage = |rule: String| KeyDirError::Garbage { path: path.clone(), rule };
        let Format { format } =
            serde_json::from_slice(&text).map_err(|error| garbage(error.to_string()))?;
        if format > FORMAT {
            return Err(KeyDirError::FutureFormat { path, found: format, known: FORMAT });
        }
        let state: State =
            serde_json::from_slice(&text).map_err(|error| garbage(error.to_string()))?;
        if state.trust_domain != wanted.as_str() {
            return Err(KeyDirError::OtherTrustDomain {
                path,
                found: state.trust_domain,
                wanted: wanted.clone(),
            });
        }
        if state.x509.is_empty() && state.jwt.is_empty() {
            return Ok(None); // A first start that was interrupted.
        }
        let x509 = track(&state.x509, |entry| self.load_x509(entry, wanted))?;
        let jwt = track(&state.jwt, |entry| self.load_jwt(entry, wanted))?;
        let sound = |kind: &str| garbage(format!("it does not have one active {kind} authority"));
        Ok(Some(Authorities {
            x509: x509.ok_or_else(|| sound("X.509"))?,
            jwt: jwt.ok_or_else(|| sound("JWT"))?,
        }))
    }

    /// Writes that nothing has been published yet. Keys without a state are refused, because somebody
    /// may have lost the state; a first start that was interrupted must not look like that.
    pub(crate) fn begin(&self, trust_domain: &TrustDomain) -> Result<(), KeyDirError> {
        self.write_state(&State::empty(trust_domain))
    }

    /// Writes all of it, and returns when it is on disk.
    pub(crate) fn save(
        &self,
        trust_domain: &TrustDomain,
        authorities: &Authorities,
    ) -> Result<(), KeyDirError> {
        let mut state = State::empty(trust_domain);
        for (authority, standing) in authorities.x509.published() {
            self.save_key("x509", authority.key_id(), authority.key().pkcs8())?;
            let certificate = STANDARD.encode(authority.certificate_der());
            state.x509.push(entry(&**authority, standing, Some(certificate)));
        }
        for (authority, standing) in authorities.jwt.published() {
            self.save_key("jwt", authority.key_id(), authority.key().pkcs8())?;
            state.jwt.push(entry(&**authority, standing, None));
        }
        let mut entries = state.x509.iter().chain(&state.jwt);
        if entries.any(|entry| entry.standing == Word::Tainted) {
            state.format = FORMAT;
        }
        // Each key is on disk before the state that names it.
        self.sync()?;
        self.write_state(&state)?;
        self.sweep(&state)
    }

    fn write_state(&self, state: &State) -> Result<(), KeyDirError> {
        let text = serde_json::to_vec_pretty(state)
            .map_err(|error| io_error(&self.0.join(STATE), error.into()))?;
        self.replace(STATE, &text)?;
        self.sync()
    }

    fn save_key(&self, kind: &str, key_id: &str, pkcs8: &[u8]) -> Result<(), KeyDirError> {
        let name = key_file(kind, key_id);
        // A key is named after itself and only ever appears whole, so what is there is right.
        if self.0.join(&name).symlink_metadata().is_ok() {
            return Ok(());
        }
        self.replace(&name, pkcs8)
    }

    /// Puts a file in place as a whole.
    fn replace(&self, name: &str, content: &[u8]) -> Result<(), KeyDirError> {
        let path = self.0.join(name);
        let temporary = self.0.join(format!("{name}.tmp"));
        let attempt = || {
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        attempt().map_err(|source| io_error(&path, source))
    }

    fn sync(&self) -> Result<(), KeyDirError> {
        File::open(&self.0)
            .and_then(|dir| dir.sync_all())
            .map_err(|source| io_error(&self.0, source))
    }

    /// Removes keys that no state names any more, and those that were never finished. Other files are none of our business.
    fn sweep(&self, state: &State) -> Result<(), KeyDirError> {
        let x509 = state.x509.iter().map(|entry| key_file("x509", &entry.key_id));
        let jwt = state.jwt.iter().map(|entry| key_file("jwt", &entry.key_id));
        let wanted: Vec<String> = x509.chain(jwt).collect();
        for name in self.key_files()? {
            if !wanted.contains(&name) {
                let path = self.0.join(&name);
                fs::remove_file(&path).map_err(|source| io_error(&path, source))?;
            }
        }
        Ok(())
    }

    fn has_keys(&self) -> Result<bool, KeyDirError> {
        Ok(!self.key_files()?.is_empty())
    }

    fn key_files(&self) -> Result<Vec<String>, KeyDirError> {
        let failed = |source| io_error(&self.0, source);
        let mut names = Vec::new();
        for file in fs::read_dir(&self.0).map_err(failed)? {
            let name = file.map_err(failed)?.file_name();
            let is_ours = |name: &&str| is_key_file(name.strip_suffix(".tmp").unwrap_or(name));
            if let Some(name) = name.to_str().filter(is_ours) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn load_x509(&self, entry: &Entry, wanted: &TrustDomain) -> Result<X509Authority, KeyDirError> {
        let (path, pkcs8) = self.load_key("x509", entry)?;
        let certificate =
            entry.certificate.as_ref().and_then(|text| STANDARD.decode(text).ok()).ok_or_else(
                || KeyDirError::Garbage {
                    path: self.0.join(STATE),
                    rule: format!("authority `{}` has no readable certificate", entry.key_id),
                },
            )?;
        let authority =
            X509Authority::restore(wanted, certificate, Timestamp(entry.born_ms), pkcs8)
                .map_err(|unusable| self.blame(unusable, &path, entry, wanted))?;
        self.check_named(authority, entry, path)
    }

    fn load_jwt(&self, entry: &Entry, wanted: &TrustDomain) -> Result<JwtAuthority, KeyDirError> {
        let (path, pkcs8) = self.load_key("jwt", entry)?;
        let (born, expires) = (Timestamp(entry.born_ms), Timestamp(entry.expires_ms));
        let authority = JwtAuthority::restore(pkcs8, born, expires)
            .map_err(|unusable| self.blame(unusable, &path, entry, wanted))?;
        self.check_named(authority, entry, path)
    }

    fn load_key(
        &self,
        kind: &str,
        entry: &Entry,
    ) -> Result<(PathBuf, Zeroizing<Vec<u8>>), KeyDirError> {
        let name = key_file(kind, &entry.key_id);
        if !is_key_file(&name) {
            return Err(KeyDirError::Garbage {
                path: self.0.join(STATE),
                rule: format!("`{}` is not the name of a key", entry.key_id.escape_debug()),
            });
        }
        let path = self.0.join(name);
        let pkcs8 = read_private(&path)?;
        Ok((path, pkcs8))
    }

    /// A key's name follows from the key, so a file that was exchanged for another shows.
    fn check_named<A: Rotates>(
        &self,
        authority: A,
        entry: &Entry,
        path: PathBuf,
    ) -> Result<A, KeyDirError> {
        if authority.key_id() != entry.key_id {
            return Err(KeyDirError::KeyMismatch { path, key_id: entry.key_id.clone() });
        }
        if authority.expires() != Timestamp(entry.expires_ms) || entry.born_ms >= entry.expires_ms {
            return Err(KeyDirError::Garbage {
                path: self.0.join(STATE),
                rule: format!("the dates of authority `{}` contradict each other", entry.key_id),
            });
        }
        Ok(authority)
    }

    fn blame(
        &self,
        unusable: Unusable,
        key: &Path,
        entry: &Entry,
        wanted: &TrustDomain,
    ) -> KeyDirError {
        match unusable {
            Unusable::Garbage(rule) => KeyDirError::Garbage { path: key.to_owned(), rule },
            Unusable::KeyMismatch => {
                KeyDirError::KeyMismatch { path: key.to_owned(), key_id: entry.key_id.clone() }
            }
            Unusable::OtherTrustDomain(found) => KeyDirError::OtherTrustDomain {
                path: self.0.join(STATE),
                found,
                wanted: wanted.clone(),
            },
        }
    }
}

/// Puts the authorities in their places; `None` unless exactly one is active and at most one prepared.
fn track<A: Rotates>(
    entries: &[Entry],
    load: impl Fn(&Entry) -> Result<A, KeyDirError>,
) -> Result<Option<Track<A>>, KeyDirError> {
    let (mut active, mut prepared, mut old) = (Vec::new(), Vec::new(), Vec::new());
    for entry in entries {
        let authority = Arc::new(load(entry)?);
        match entry.standing {
            Word::Active => active.push(authority),
            Word::Prepared => prepared.push(authority),
            Word::Old | Word::Tainted => {
                let Some(until) = entry.withdrawn_ms.map(Timestamp) else {
                    return Ok(None);
                };
                let is_tainted = entry.standing == Word::Tainted;
                old.push(Past { authority, until, is_tainted });
            }
        }
    }
    let (1, 0..=1) = (active.len(), prepared.len()) else {
        return Ok(None);
    };
    Ok(active.pop().map(|active| Track { active, prepared: prepared.pop(), old }))
}

fn entry(authority: &impl Rotates, standing: Standing, certificate: Option<String>) -> Entry {
    let (standing, withdrawn_ms) = match standing {
        Standing::Active => (Word::Active, None),
        Standing::Prepared => (Word::Prepared, None),
        Standing::Old(until) => (Word::Old, Some(until.0)),
        Standing::Tainted(until) => (Word::Tainted, Some(until.0)),
    };
    Entry {
        key_id: authority.key_id().to_owned(),
        standing,
        born_ms: authority.born().0,
        expires_ms: authority.expires().0,
        withdrawn_ms,
        certificate,
    }
}

fn key_file(kind: &str, key_id: &str) -> String {
    format!("{kind}-{key_id}.p8")
}

/// `x509-<key id>.p8` or `jwt-<kid>.p8`: nothing that leads out of the directory.
fn is_key_file(name: &str) -> bool {
    let id = name
        .strip_suffix(".p8")
        .and_then(|name| name.strip_prefix("x509-").or_else(|| name.strip_prefix("jwt-")));
    id.is_some_and(|id| {
        let letters = id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        letters && (1..=64).contains(&id.len())
    })
}

/// Reads a file that has to be ours alone. What is checked is what was opened.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyDirError> {
    // Neither following a link nor waiting for the other end of a pipe.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let wrong_type = || KeyDirError::WrongType { path: path.to_owned(), wanted: "file" };
    let file = opened.map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            KeyDirError::Missing(path.to_owned())
        } else if path.symlink_metadata().is_ok_and(|found| !found.is_file()) {
            wrong_type()
        } else {
            io_error(path, source)
        }
    })?;
    let found = file.metadata().map_err(|source| io_error(path, source))?;
    if !found.is_file() {
        return Err(wrong_type());
    }
    check_private(path, &found, FILE_MODE)?;
    // Room for all of it at once: a buffer that grows leaves copies of the key behind.
    let room = usize::try_from(found.len().min(FILE_BYTES_MAX)).unwrap_or_default();
    let mut content = Zeroizing::new(Vec::with_capacity(room + 1));
    file.take(FILE_BYTES_MAX).read_to_end(&mut content).map_err(|source| io_error(path, source))?;
    Ok(content)
}

fn check_private(path: &Path, found: &fs::Metadata, wanted: u32) -> Result<(), KeyDirError> {
    let ours = rustix::process::geteuid().as_raw();
    if found.uid() != ours {
        return Err(KeyDirError::NotOurs { path: path.to_owned(), owner: found.uid(), ours });
    }
    let mode = found.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyDirError::NotPrivate { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

fn io_error(path: &Path, source: io::Error) -> KeyDirError {
    KeyDirError::Io { path: path.to_owned(), source }
}
