//! The data directory: made for the server alone, and locked by it for as long as it runs.
//!
//! Owned by the main thread. Two servers on one directory would destroy it, so the lock comes
//! before anything in it is read. Deliberately not here: what is inside.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Name of the file that carries the lock.
const LOCK: &str = "LOCK";

/// A data directory that this process alone uses, until dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory, readable by its owner only, if it is not there, and locks it.
    ///
    /// # Errors
    /// A text that names the directory: it cannot be made or written, or another process has it.
    pub fn open(path: &Path) -> Result<Self, String> {
        let fail = |what: &str, error: io::Error| format!("{what} {}: {error}", path.display());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| fail("cannot make the data directory", error))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(|error| fail("cannot write to the data directory", error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(format!(
                "the data directory {} is in use by another process",
                path.display()
            )),
            Err(error) => Err(fail("cannot lock the data directory", error.into())),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_is_private_and_has_one_owner_at_a_time() {
        let parent = std::env::temp_dir().join(format!("ringkv-datadir-{}", std::process::id()));
        let path = parent.join("a").join("b");
        let first = DataDir::open(&path).unwrap();
        assert_eq!(
            first.path().metadata().unwrap().permissions().mode() & 0o777,
            0o700
        );
        let refusal = DataDir::open(&path).unwrap_err();
        assert!(
            refusal.ends_with("is in use by another process"),
            "{refusal}"
        );
        drop(first);
        DataDir::open(&path).unwrap();
        std::fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let path = std::env::temp_dir().join(format!("ringkv-datadir-file-{}", std::process::id()));
        std::fs::write(&path, b"").unwrap();
        let refusal = DataDir::open(&path).unwrap_err();
        assert!(refusal.contains(path.to_str().unwrap()), "{refusal}");
        std::fs::remove_file(path).unwrap();
    }
}
