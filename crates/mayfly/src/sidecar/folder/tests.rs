//! What the directory keeps, swaps, refuses and leaves alone.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;
use crate::sidecar::fixtures::{Authority, LATER};

fn site() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("keys");
    (root, path)
}

fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The names that are not bookkeeping.
fn plain(path: &Path) -> Vec<String> {
    names(path).into_iter().filter(|name| !name.starts_with("..")).collect()
}

fn code(error: &FolderError) -> String {
    error.to_string().split(':').next().unwrap().to_owned()
}

#[test]
fn keys_are_0600_in_a_directory_of_0700_and_read_as_they_were_written() {
    let (_root, path) = site();
    let mut folder = Folder::open(&path).unwrap();
    let set = Authority::new().set();
    folder.replace(&set).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&path), mode(&path.join("..data/"))), (0o700, 0o700));
    for (name, bytes) in set.files() {
        assert_eq!(mode(&path.join(name)), 0o600, "{name}");
        assert_eq!(std::fs::read(path.join(name)).unwrap(), bytes, "{name}");
    }
    assert_eq!(plain(&path).len(), set.files().count());
    let both = std::fs::read_to_string(path.join("credential-bundle.pem")).unwrap();
    let part = |name| std::fs::read_to_string(path.join(name)).unwrap();
    assert_eq!(both, part("svid_key.pem") + &part("svid.pem"), "the key first, then the chain");
    assert_eq!(folder.left_until(), Some(LATER));
}

#[test]
fn a_swap_is_one_link_and_the_moment_before_stays_for_who_reads_it() {
    let (_root, path) = site();
    let mut folder = Folder::open(&path).unwrap();
    let authority = Authority::new();
    folder.replace(&authority.set()).unwrap();
    let before = path.join(std::fs::read_link(path.join(DATA)).unwrap());
    folder.replace(&authority.federated_set()).unwrap();
    assert!(path.join("partner.example.spiffe-trust-bundle.pem").exists());
    assert!(before.join("svid.pem").exists(), "somebody may be reading it");
    folder.replace(&authority.set()).unwrap();
    assert!(!before.exists(), "nobody is reading it any more");
    assert!(!path.join("partner.example.spiffe-trust-bundle.pem").is_symlink(), "withdrawn");
    assert_eq!(names(&path).iter().filter(|name| is_version(name)).count(), 2);
}

#[test]
fn clearing_leaves_an_empty_directory_and_everything_that_is_not_ours() {
    let (_root, path) = site();
    let mut folder = Folder::open(&path).unwrap();
    folder.clear().unwrap();
    std::fs::write(path.join("nginx.conf"), "mine").unwrap();
    std::fs::create_dir(path.join("..mayfly-mine")).unwrap();
    symlink("/etc/passwd", path.join("svid.9.pem")).unwrap();
    folder.replace(&Authority::new().set()).unwrap();
    let version = path.join(std::fs::read_link(path.join(DATA)).unwrap());
    std::fs::write(version.join("note"), "mine").unwrap();
    folder.clear().unwrap();
    let version = version.file_name().unwrap().to_str().unwrap().to_owned();
    let mut left = vec!["..mayfly-mine".to_owned(), version.clone()];
    left.extend(["nginx.conf".to_owned(), "svid.9.pem".to_owned()]);
    left.sort();
    assert_eq!(names(&path), left);
    assert_eq!(names(&path.join(version)), ["note"]);
    assert_eq!(folder.left_until(), None);
}

#[test]
fn a_name_that_is_taken_stops_everything_before_anything_is_written() {
    let authority = Authority::new();
    for (name, plant) in [
        ("svid_key.pem", (|path: &Path| symlink("/etc/passwd", path).unwrap()) as fn(&Path)),
        ("svid.pem", |path| std::fs::write(path, "mine").unwrap()),
        ("crl.pem", |path| std::fs::create_dir(path).unwrap()),
        ("bundle.pem", |path| symlink("..data/svid.pem", path).unwrap()),
    ] {
        let (_root, path) = site();
        let mut folder = Folder::open(&path).unwrap();
        plant(&path.join(name));
        let error = folder.replace(&authority.set()).unwrap_err();
        assert_eq!(code(&error), "file_foreign", "{error}");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(names(&path), [name], "nothing half done");
    }
    for plant in [(|path: &Path| symlink("/etc", path).unwrap()) as fn(&Path), |path| {
        std::fs::create_dir(path).unwrap()
    }] {
        let (_root, path) = site();
        std::fs::DirBuilder::new().create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        plant(&path.join(DATA));
        assert_eq!(code(&Folder::open(&path).unwrap_err()), "file_foreign");
    }
}

#[test]
fn a_withdrawn_name_that_was_replaced_by_somebody_is_left_alone() {
    let (_root, path) = site();
    let mut folder = Folder::open(&path).unwrap();
    let authority = Authority::new();
    folder.replace(&authority.federated_set()).unwrap();
    let name = path.join("partner.example.spiffe-trust-bundle.pem");
    std::fs::remove_file(&name).unwrap();
    std::fs::write(&name, "mine").unwrap();
    folder.replace(&authority.set()).unwrap();
    assert_eq!(std::fs::read_to_string(&name).unwrap(), "mine");
}

#[test]
fn a_directory_that_is_not_fit_for_keys_is_refused() {
    let (root, path) = site();
    let refused = |path: &Path| code(&Folder::open(path).unwrap_err());
    assert_eq!(refused(&path.join("deeper")), "directory_missing");
    std::fs::create_dir(&path).unwrap();
    for mode in [0o777, 0o750, 0o701] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(refused(&path), "directory_open");
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    let link = root.path().join("link");
    symlink(&path, &link).unwrap();
    assert_eq!(refused(&link), "directory_unfit");
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(refused(&file), "directory_unfit");
    let first = Folder::open(&path).unwrap();
    assert_eq!(refused(&path), "directory_in_use");
    drop(first);
    assert!(Folder::open(&path).is_ok());
}

#[test]
fn a_successor_sweeps_what_a_killed_one_left_and_keeps_what_serves() {
    let (_root, path) = site();
    let mut folder = Folder::open(&path).unwrap();
    folder.replace(&Authority::new().set()).unwrap();
    drop(folder);
    let serving = std::fs::read_to_string(path.join("svid.pem")).unwrap();
    // Killed while it wrote, and between the two steps of the swap.
    let half = path.join("..mayfly-00000000deadbeef");
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("svid_key.pem"), "half a key").unwrap();
    symlink("..mayfly-00000000deadbeef", path.join(DATA_NEXT)).unwrap();
    let mut folder = Folder::open(&path).unwrap();
    assert!(!half.exists() && !path.join(DATA_NEXT).is_symlink());
    assert_eq!(std::fs::read_to_string(path.join("svid.pem")).unwrap(), serving);
    assert_eq!(folder.left_until(), Some(LATER));
    folder.replace(&Authority::new().set()).unwrap();
    folder.clear().unwrap();
    assert_eq!(names(&path), Vec::<String>::new());
}
