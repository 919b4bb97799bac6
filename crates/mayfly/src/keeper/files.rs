//! Revocation lists as files, for those who read files.

use std::{
    io,
    path::Path,
    time::{Duration, SystemTime},
};

use mayfly_core::Timestamp;
use mayfly_serve::http::Asset;

/// When the newest list was written, if there is one.
pub(super) fn newest(dir: &Path) -> Option<Timestamp> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let lists = entries.filter(|entry| entry.path().extension().is_some_and(|is| is == "crl"));
    let newest = lists.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()?;
    let since: Duration = newest.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok().map(Timestamp)
}

/// Writes one file per authority, each replaced whole, and removes those of retired authorities: a
/// verifier that loads two lists of one authority goes by the stale one if that comes first.
pub(super) fn write_all(dir: &Path, lists: &[(String, Asset)]) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for (id, list) in lists {
        let temporary = dir.join(format!(".{id}.tmp"));
        std::fs::write(&temporary, list.body())?;
        std::fs::rename(&temporary, dir.join(format!("{id}.crl")))?;
    }
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let retired =
            name.strip_suffix(".crl").is_some_and(|id| lists.iter().all(|(known, _)| known != id));
        // What a crash left half written is nobody's.
        let torn = name.starts_with('.') && name.ends_with(".tmp");
        if retired || torn {
            std::fs::remove_file(dir.join(&*name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_serve::http::Media;

    #[test]
    fn the_newest_list_is_dated_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(newest(&dir.path().join("nowhere")), None);
        std::fs::write(dir.path().join("README"), "somebody's").unwrap();
        assert_eq!(newest(dir.path()), None);
        let file = std::fs::File::create(dir.path().join("aa.crl")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123))
            .unwrap();
        assert_eq!(newest(dir.path()), Some(Timestamp(1_700_000_000_123)));
    }

    #[test]
    fn a_fresh_list_takes_the_place_of_the_stale_one_and_a_retired_one_goes() {
        let dir = tempfile::tempdir().unwrap();
        let list = |id: &str, der: &'static [u8]| {
            (id.to_owned(), Asset::new(der, Media::Crl, Duration::ZERO))
        };
        write_all(dir.path(), &[list("aa", b"stale"), list("bb", b"old")]).unwrap();
        std::fs::write(dir.path().join(".cc.tmp"), "torn").unwrap();
        std::fs::write(dir.path().join("README"), "somebody's").unwrap();
        write_all(dir.path(), &[list("aa", b"fresh")]).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["README", "aa.crl"]);
        assert_eq!(std::fs::read(dir.path().join("aa.crl")).unwrap(), b"fresh");
    }
}
