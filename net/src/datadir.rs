//! The data directory: made for the server alone, and locked by it for as long as it runs.
//!
//! Owned by the main thread. Two servers on one directory would destroy it, so the lock comes
//! before anything in it is read. Deliberately not here: what is inside.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// Name of the file that carries the lock.
const LOCK: &str = "LOCK";
/// How long a killed server may hold the lock before another start is refused.
const DYING_PATIENCE: Duration = Duration::from_millis(300);
const DYING_PAUSE: Duration = Duration::from_millis(5);

/// A data directory that this process alone uses, until dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the owner's process id while it runs, and nothing after it has stopped.
    lock: File,
    had_crashed: bool,
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // If it fails, the next start is more patient than it need be.
        let _ = self.lock.set_len(0);
    }
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
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(|error| fail("cannot write to the data directory", error))?;
        let start = Instant::now();
        // A server that was killed a moment ago may not be gone yet.
        while let Err(errno) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if errno != rustix::io::Errno::WOULDBLOCK {
                return Err(fail("cannot lock the data directory", errno.into()));
            }
            if start.elapsed() >= DYING_PATIENCE {
                return Err(format!(
                    "the data directory {} is in use by another process",
                    path.display()
                ));
            }
            std::thread::sleep(DYING_PAUSE);
        }
        let mut owner = String::new();
        let mut mark = || {
            lock.read_to_string(&mut owner)?;
            lock.rewind()?;
            lock.set_len(0)?;
            write!(lock, "{}", std::process::id())
        };
        mark().map_err(|error| fail("cannot write to the data directory", error))?;
        Ok(Self {
            path: path.to_owned(),
            lock,
            had_crashed: !owner.is_empty(),
        })
    }

    /// Whether the last server on this directory ended without stopping.
    #[must_use]
    pub fn had_crashed(&self) -> bool {
        self.had_crashed
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
