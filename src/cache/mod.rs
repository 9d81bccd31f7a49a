//! Compiled programs kept from run to run.
//!
//! An entry is a file named after its [`Key`]; it holds the plugin's own serialized form of the
//! executable. That is code, which a later run loads and runs, so the folder must be this user's alone to write to, and
//! every entry carries a checksum that is compared before the plugin sees a byte. An entry appears whole or not
//! at all. The cache never makes anything fail: what cannot be read is compiled again, what cannot be
//! written is left out, and both are told to the log.
//!
//! The folder's size is bounded. What was used longest ago goes first.

mod key;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::environment::{cache_dir, variable};
use crate::files;

pub use key::{Key, Target};

/// Names the folder of the cache.
pub const CACHE_DIR: &str = "ENTROPIC_CACHE_DIR";

/// Bounds the size of the cache, as in `500M` or `2GiB`; `0` turns it off.
pub const CACHE_SIZE: &str = "ENTROPIC_CACHE_SIZE";

/// The bound where none is given: 2 GiB.
const DEFAULT_SIZE: u64 = 2 << 30;

/// How an entry begins.
const MAGIC: &[u8; 8] = b"ENTROPX1";

/// Extension of an entry's file name.
const EXTENSION: &str = "executable";

/// A file under construction that is older than this was left by a process that ended.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Why there is no cache. Everything works without one.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The environment names no place.
    #[error("neither {CACHE_DIR} nor XDG_CACHE_HOME nor HOME is set; set one of them")]
    NoPlace,
    /// The bound cannot be read.
    #[error("{CACHE_SIZE} is {given:?}; give a size such as 500M or 2GiB")]
    Size {
        /// What was given.
        given: String,
    },
    /// The folder cannot be made or looked at.
    #[error("cannot use the folder {}: {source}; name another one in {CACHE_DIR}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody else could put code into the folder.
    #[error(
        "the folder {} {what}, and what lies in it would be run as code; {advice}, or name another folder in {CACHE_DIR}",
        path.display()
    )]
    Unsafe {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// What to do.
        advice: &'static str,
    },
}

/// A folder of compiled programs.
#[derive(Debug, Clone)]
pub struct CompileCache {
    folder: PathBuf,
    limit: u64,
}

/// One compiled program in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its file.
    pub path: PathBuf,
    /// Size of the file in bytes.
    pub size: u64,
    /// When it was used last.
    pub used: SystemTime,
}

impl CompileCache {
    /// The cache that the environment asks for: [`CACHE_DIR`], else `entropic/executables` in the user's cache; `None` where
    /// [`CACHE_SIZE`] is 0.
    ///
    /// # Errors
    ///
    /// See [`CacheError`].
    pub fn from_environment() -> Result<Option<Self>, CacheError> {
        let limit = match variable(CACHE_SIZE) {
            None => DEFAULT_SIZE,
            Some(given) => parse_size(&given.to_string_lossy())
                .ok_or_else(|| CacheError::Size { given: given.to_string_lossy().into_owned() })?,
        };
        if limit == 0 {
            return Ok(None);
        }
        let folder = variable(CACHE_DIR)
            .or_else(|| cache_dir(variable).map(|cache| cache.join("executables")))
            .ok_or(CacheError::NoPlace)?;
        Self::open(&folder, limit).map(Some)
    }

    /// The cache in `folder`, which is made if it is not there, of at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be made, or others may write to it.
    pub fn open(folder: &Path, limit: u64) -> Result<Self, CacheError> {
        files::private_folder(folder)
            .and_then(|()| files::who_may_write(folder))
            .map_err(|source| CacheError::Folder { path: folder.to_owned(), source })
            .and_then(|writers| match writers.complaint() {
                None => Ok(Self { folder: folder.to_owned(), limit }),
                Some((what, advice)) => Err(CacheError::Unsafe { path: folder.to_owned(), what, advice }),
            })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The serialized executable of that key, if it is there and whole. It counts as used now.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let path = self.path(key);
        let mut bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("cannot read {}: {error}; compiling instead", path.display());
                }
                return None;
            }
        };
        let Some(header) = checked(&bytes, key) else {
            tracing::warn!("{} is damaged; it is removed, and the program is compiled again", path.display());
            self.remove(key);
            return None;
        };
        let used = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = used {
            tracing::debug!("{} is not marked as used: {error}", path.display());
        }
        bytes.drain(..header);
        Some(bytes)
    }

    /// Keeps a serialized executable under that key, and removes what was used longest ago if that becomes too much.
    pub fn put(&self, key: &Key, executable: &[u8]) {
        let mut bytes = Vec::with_capacity(HEADER + executable.len());
        bytes.extend(MAGIC);
        bytes.extend(key.as_bytes());
        bytes.extend(Sha256::digest(executable));
        bytes.extend(executable);
        let size = bytes.len() as u64;
        if size > self.limit {
            tracing::debug!("an executable of {size} bytes is not kept: {CACHE_SIZE} is {}", self.limit);
            return;
        }
        let path = self.path(key);
        match files::write(&path, &bytes) {
            Ok(()) => self.trim(&path),
            Err(error) => tracing::warn!("a compiled program is not kept: {error}"),
        }
    }

    /// Removes the entry of that key.
    pub fn remove(&self, key: &Key) {
        remove(&self.path(key));
    }

    /// All entries, the one that was used last first.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, CacheError> {
        let mut entries = self.files()?;
        entries.retain(|entry| is_entry(&entry.path));
        Ok(entries)
    }

    /// Removes every entry; returns how many there were and their size in bytes.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read or an entry cannot be removed.
    pub fn clear(&self) -> Result<(usize, u64), CacheError> {
        let entries = self.entries()?;
        for entry in &entries {
            fs::remove_file(&entry.path).map_err(|source| CacheError::Folder { path: entry.path.clone(), source })?;
        }
        Ok((entries.len(), entries.iter().map(|entry| entry.size).sum()))
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(key.hex()).with_extension(EXTENSION)
    }

    /// Removes what was used longest ago, but not `newest`, until the rest is within the limit; and what other processes
    /// left unfinished.
    fn trim(&self, newest: &Path) {
        let Ok(files) = self.files() else { return };
        let (newest, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| file.path == newest);
        let mut total: u64 = newest.iter().map(|file| file.size).sum();
        for file in others {
            let age = file.used.elapsed().unwrap_or_default();
            total = total.saturating_add(file.size);
            let kept = if is_entry(&file.path) { total <= self.limit } else { age < ABANDONED };
            if !kept {
                remove(&file.path);
            }
        }
    }

    /// All files of this program in the folder, the one that was used last first.
    fn files(&self) -> Result<Vec<Entry>, CacheError> {
        let failed = |source| CacheError::Folder { path: self.folder.clone(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let ours = is_entry(&path) || path.extension().is_some_and(|e| e == "tmp");
            // What another process has just removed is not there.
            let Ok(info) = fs::symlink_metadata(&path) else { continue };
            if ours && info.is_file() {
                files.push(Entry { size: info.len(), used: info.modified().map_err(failed)?, path });
            }
        }
        files.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.path.cmp(&b.path)));
        Ok(files)
    }
}

/// Bytes before the executable: magic, key, checksum.
const HEADER: usize = MAGIC.len() + 32 + 32;

/// The length of the header, where it is sound and the checksum is that of what follows.
fn checked(bytes: &[u8], key: &Key) -> Option<usize> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (found, rest) = rest.split_first_chunk::<32>()?;
    let (sum, executable) = rest.split_first_chunk::<32>()?;
    (magic == MAGIC && found == key.as_bytes() && Sha256::digest(executable).as_slice() == sum).then_some(HEADER)
}

fn is_entry(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == EXTENSION)
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!("{} stays: {error}", path.display());
    }
}

/// A number of bytes, with `K`, `M` or `G` for powers of 1024, as in `500M` or `2GiB`.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let shift = match unit.trim().to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests;
