//! A key ring's directory: what it survives, and what it refuses.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
};

use mayfly_core::{Kind, Span, TrustDomain};
use mayfly_sign::{AuthorityOrder, KeyDirError, KeyRing, RotationPolicy, SignError, Standing};

use crate::common::{NOW, TTL, domain};

fn policy() -> RotationPolicy {
    RotationPolicy::for_credentials(TTL)
}

fn open(dir: &Path) -> Result<KeyRing, SignError> {
    KeyRing::open(dir, domain(), policy(), NOW)
}

fn load(dir: &Path) -> Result<KeyRing, SignError> {
    KeyRing::load(dir, domain(), policy())
}

/// A directory with a ring in it.
struct Home {
    _root: tempfile::TempDir,
    dir: PathBuf,
}

impl Home {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("keys");
        open(&dir).expect("a ring");
        Self { _root: root, dir }
    }

    fn state(&self) -> PathBuf {
        self.dir.join("keys.json")
    }

    fn key(&self, kind: &str) -> PathBuf {
        let names = self.names();
        let name = names.iter().find(|name| name.starts_with(kind)).expect("a key");
        self.dir.join(name)
    }

    fn names(&self) -> Vec<String> {
        self.contents().into_keys().collect()
    }

    fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        fs::read_dir(&self.dir)
            .expect("a directory")
            .map(|file| {
                let file = file.expect("a file");
                let content = fs::read(file.path()).unwrap_or_default();
                (file.file_name().into_string().expect("utf-8"), content)
            })
            .collect()
    }

    /// Changes the state's text.
    fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.state()).expect("a state");
        assert!(text.contains(from), "{text}");
        fs::write(self.state(), text.replace(from, to)).expect("written");
    }

    /// Opening and loading are both refused, and leave everything as it was.
    fn refusal(&self) -> KeyDirError {
        let before = self.contents();
        let (Err(SignError::KeyDir(error)), Err(SignError::KeyDir(_))) =
            (open(&self.dir), load(&self.dir))
        else {
            unreachable!("it was not refused for its directory");
        };
        assert_eq!(self.contents(), before);
        error
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

#[test]
fn a_ring_comes_back_as_it_was_after_every_step() {
    let home = Home::new();
    let mut ring = load(&home.dir).expect("a ring");
    for _ in 0..12 {
        ring.handle_timeout(ring.poll_timeout()).expect("a step");
        let again = load(&home.dir).expect("a ring");
        assert_eq!(again.x509_bundle(), ring.x509_bundle());
        assert_eq!(again.jwks(), ring.jwks());
        assert_eq!(again.authorities(), ring.authorities());
        assert_eq!(again.poll_timeout(), ring.poll_timeout());
        assert_eq!(home.names().len(), 1 + ring.authorities().len(), "old keys are removed");
    }
}

#[test]
fn what_an_operator_ordered_is_there_after_a_restart() {
    let home = Home::new();
    let format = || {
        let text = fs::read_to_string(home.state()).expect("a state");
        text.contains("\"format\": 2")
    };
    let mut ring = load(&home.dir).expect("a ring");
    let old = ring.signer().x509().key_id().to_owned();
    for order in [AuthorityOrder::Prepare, AuthorityOrder::Activate(None)] {
        ring.order(Kind::X509, &order, NOW).expect("it may");
        assert_eq!(load(&home.dir).expect("a ring").authorities(), ring.authorities());
    }
    assert!(!format(), "the version before can read it");
    ring.order(Kind::X509, &AuthorityOrder::Taint(old.clone()), NOW).expect("it may");
    let again = load(&home.dir).expect("a ring").authorities();
    assert_eq!(again, ring.authorities());
    assert!(again.iter().any(|one| matches!(one.standing, Standing::Tainted(_))));
    assert!(format(), "the version before would take it for trusted");
    ring.order(Kind::X509, &AuthorityOrder::Revoke(old.clone()), NOW).expect("it may");
    assert_eq!(load(&home.dir).expect("a ring").authorities(), ring.authorities());
    assert!(!home.names().iter().any(|name| name.contains(&old)), "its key is gone");
    assert!(!format());
}

#[test]
fn a_ring_in_memory_can_be_saved() {
    let home = Home::new();
    let ring = KeyRing::create(domain(), policy(), NOW).expect("a ring");
    ring.save(&home.dir).expect("saved");
    assert_eq!(load(&home.dir).expect("a ring").x509_bundle(), ring.x509_bundle());
}

#[test]
fn keys_are_readable_by_their_owner_alone() {
    let home = Home::new();
    let mode = |path: &Path| path.metadata().expect("metadata").mode() & 0o7777;
    assert_eq!(mode(&home.dir), 0o700);
    for name in home.names() {
        assert_eq!(mode(&home.dir.join(name)), 0o600);
    }
}

#[test]
fn what_others_may_read_is_refused() {
    for (path, mode) in [
        (Home::state as fn(&Home) -> PathBuf, 0o640),
        (|home| home.key("x509"), 0o604),
        (|home| home.key("jwt"), 0o620),
        (|home| home.dir.clone(), 0o750),
        (|home| home.dir.clone(), 0o701),
    ] {
        let home = Home::new();
        let path = path(&home);
        set_mode(&path, mode);
        let KeyDirError::NotPrivate { path: named, mode: found, .. } = home.refusal() else {
            unreachable!("another error");
        };
        assert_eq!((named, found), (path, mode));
    }
}

#[test]
fn what_belongs_to_somebody_else_is_refused() {
    let home = Home::new();
    for path in [home.key("jwt"), home.state(), home.dir.clone()] {
        if chown(&path, Some(12_345), None).is_err() {
            eprintln!("SKIPPED: giving a file away needs root");
            return;
        }
        assert!(matches!(home.refusal(), KeyDirError::NotOurs { owner: 12_345, .. }));
        chown(&path, Some(0), None).expect("taken back");
    }
}

#[test]
fn what_is_not_a_plain_file_is_refused() {
    let home = Home::new();
    let key = home.key("x509");
    let aside = home.dir.join("aside");
    fs::rename(&key, &aside).expect("moved");
    symlink(&aside, &key).expect("a link");
    assert!(matches!(home.refusal(), KeyDirError::WrongType { wanted: "file", .. }));
    let link = home.dir.with_file_name("link");
    symlink(&home.dir, &link).expect("a link");
    assert!(matches!(
        open(&link),
        Err(SignError::KeyDir(KeyDirError::WrongType { wanted: "directory", .. }))
    ));
}

#[test]
fn a_key_that_is_not_its_certificates_is_refused() {
    for kind in ["x509", "jwt"] {
        let (home, other) = (Home::new(), Home::new());
        fs::copy(other.key(kind), home.key(kind)).expect("copied");
        assert!(matches!(home.refusal(), KeyDirError::KeyMismatch { .. }), "{kind}");
    }
}

#[test]
fn keys_of_another_trust_domain_are_refused() {
    let home = Home::new();
    let other = TrustDomain::parse("other.org").expect("a name");
    let outcome = KeyRing::open(&home.dir, other.clone(), policy(), NOW);
    assert!(matches!(outcome, Err(SignError::KeyDir(KeyDirError::OtherTrustDomain { .. }))));
    // Renaming it in the state is not enough: the certificate says it too.
    home.edit("\"example.org\"", "\"other.org\"");
    let outcome = KeyRing::open(&home.dir, other, policy(), NOW);
    assert!(matches!(
        outcome,
        Err(SignError::KeyDir(KeyDirError::OtherTrustDomain { found, .. }))
            if found == "spiffe://example.org"
    ));
}

#[test]
fn a_later_format_is_refused_and_named() {
    let home = Home::new();
    fs::write(home.state(), r#"{"format": 3, "keys": "elsewhere"}"#).expect("written");
    assert!(matches!(home.refusal(), KeyDirError::FutureFormat { found: 3, known: 2, .. }));
}

#[test]
fn garbage_is_refused() {
    for text in ["", "{", "null", "{}", r#"{"format":1}"#, "\u{0}\u{0}\u{0}"] {
        let home = Home::new();
        fs::write(home.state(), text).expect("written");
        assert!(matches!(home.refusal(), KeyDirError::Garbage { .. }), "{text}");
    }
    for (from, to) in [
        ("\"format\"", "\"unheard\": 1, \"format\""),
        ("\"active\"", "\"prepared\""),
        ("\"active\"", "\"old\""),
        ("\"active\"", "\"asleep\""),
        ("\"born_ms\": 1", "\"born_ms\": 9"),
        ("\"expires_ms\": 1", "\"expires_ms\": 2"),
        ("\"certificate\": \"MII", "\"certificate\": \"XII"),
        ("\"certificate\": \"MII", "\"certificate\": \"*"),
        ("\"key_id\": \"", "\"key_id\": \"../../"),
    ] {
        let home = Home::new();
        home.edit(from, to);
        assert!(matches!(home.refusal(), KeyDirError::Garbage { .. }), "{from} -> {to}");
    }
    for kind in ["x509", "jwt"] {
        let home = Home::new();
        let key = home.key(kind);
        let content = fs::read(&key).expect("a key");
        fs::write(&key, content.split_last().expect("octets").1).expect("written");
        assert!(matches!(home.refusal(), KeyDirError::Garbage { .. }));
        fs::write(&key, "").expect("written");
        assert!(matches!(home.refusal(), KeyDirError::Garbage { .. }));
    }
}

#[test]
fn lost_files_are_named_and_not_replaced_by_new_keys() {
    for path in
        [Home::state as fn(&Home) -> PathBuf, |home| home.key("x509"), |home| home.key("jwt")]
    {
        let home = Home::new();
        let path = path(&home);
        fs::remove_file(&path).expect("removed");
        assert!(matches!(home.refusal(), KeyDirError::Missing(named) if named == path));
    }
}

#[test]
fn a_first_start_that_was_interrupted_is_begun_anew() {
    let home = Home::new();
    let began = r#"{"format":1,"trust_domain":"example.org","x509":[],"jwt":[]}"#;
    fs::write(home.state(), began).expect("written");
    fs::write(home.dir.join("x509-ab.p8.tmp"), "half a key").expect("written");
    open(&home.dir).expect("a ring");
    assert_eq!(home.names().len(), 3, "leftovers are swept");
    load(&home.dir).expect("a ring");
}

#[test]
fn a_step_that_the_disk_does_not_take_is_not_taken() {
    let home = Home::new();
    let mut ring = load(&home.dir).expect("a ring");
    let away = home.dir.with_file_name("away");
    fs::rename(&home.dir, &away).expect("moved");
    let (due, before) = (ring.poll_timeout(), ring.authorities());
    assert!(matches!(ring.handle_timeout(due), Err(SignError::KeyDir(KeyDirError::Io { .. }))));
    assert_eq!(ring.authorities(), before);
    assert_eq!(ring.poll_timeout(), due.plus(Span::from_secs(1)), "it asks for another try");
    fs::rename(&away, &home.dir).expect("moved back");
    assert_eq!(ring.handle_timeout(ring.poll_timeout()).expect("steps").len(), 2);
    assert_eq!(load(&home.dir).expect("a ring").authorities(), ring.authorities());
}
