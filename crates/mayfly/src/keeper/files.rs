//! Revocation lists as files, for those who read files.

use std::{io, path::Path};

use mayfly_serve::http::Asset;

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
    use std::time::Duration;

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
