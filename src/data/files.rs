//! Files with data: their bytes, and which files of a folder are data.
//!
//! Files must not shrink while they are in use: they are mapped, and the system
//! ends a process that reads a mapping beyond the end of its file.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use mmap_io::MemoryMappedFile;

use super::DataError;

/// Files below this size are read rather than mapped: a mapping costs at least a page and an entry in the kernel's table.
pub(super) const MAP_FROM: u64 = 64 * 1024;

/// Names of folders that are never entered: build products and things that nobody wrote.
const SKIPPED_FOLDERS: &[&str] = &["target", "node_modules", "__pycache__", "runs"];

/// How much of the head of a file decides whether it is text.
const SNIFFED: u64 = 8 * 1024;

/// The bytes of a file.
#[derive(Debug)]
pub(super) enum Bytes {
    Read(Vec<u8>),
    Mapped(MemoryMappedFile),
}

impl Bytes {
    /// Maps a file, or reads it where that is cheaper.
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        open(path).map_err(|source| DataError::Read { path: path.to_owned(), source })
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Mapped(map) => map.as_slice_bytes(0, map.len()).unwrap_or_default(),
        }
    }
}

fn open(path: &Path) -> io::Result<Bytes> {
    let info = fs::metadata(path)?;
    // Pipes and devices have no length to map.
    if !info.is_file() || info.len() < MAP_FROM {
        return fs::read(path).map(Bytes::Read);
    }
    MemoryMappedFile::open_ro(path).map(Bytes::Mapped).map_err(io::Error::other)
}

/// The formats of files with arrays, told by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ArrayFormat {
    /// numpy's format of one array.
    Npy,
    /// A zip archive of those.
    Npz,
    /// What the safetensors packages write.
    Safetensors,
}

impl ArrayFormat {
    /// The format that a file's name says; `None` for other files.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "npy" => Some(Self::Npy),
            "npz" => Some(Self::Npz),
            "safetensors" => Some(Self::Safetensors),
            _ => None,
        }
    }
}

/// What is data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Files of UTF-8 text.
    Text,
    /// Files whose name says that they hold arrays.
    Arrays,
}

/// The files that `paths` name, in order: files as they are, of a folder all that are wanted, sorted by path.
///
/// A folder's hidden entries, links, and build products (`target`, `node_modules`, `__pycache__`, `runs`) are passed over.
pub(super) fn find(paths: &[PathBuf], wanted: Wanted) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    for path in paths {
        let info = fs::metadata(path).map_err(failed(path))?;
        if info.is_dir() {
            collect(path, wanted, &mut found)?;
        } else {
            found.push(path.clone());
        }
    }
    Ok(found)
}

/// Whether paths are arrays and nothing else: each is a file with arrays, or a folder that has such files and no text.
pub(crate) fn holds_only_arrays(paths: &[PathBuf]) -> Result<bool, DataError> {
    for path in paths {
        let one = std::slice::from_ref(path);
        let arrays = if path.is_dir() {
            // Names are cheaper to look at than contents.
            !find(one, Wanted::Arrays)?.is_empty() && find(one, Wanted::Text)?.is_empty()
        } else {
            ArrayFormat::of(path).is_some()
        };
        if !arrays {
            return Ok(false);
        }
    }
    Ok(true)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> DataError + use<> {
    let path = path.to_owned();
    |source| DataError::Read { path, source }
}

fn collect(folder: &Path, wanted: Wanted, found: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let mut entries = fs::read_dir(folder)
        .and_then(|entries| entries.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>())
        .map_err(failed(folder))?;
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let info = fs::symlink_metadata(&path).map_err(failed(&path))?;
        if name.starts_with('.') {
            continue;
        }
        if info.is_dir() {
            if !SKIPPED_FOLDERS.contains(&name.as_ref()) {
                collect(&path, wanted, found)?;
            }
        } else if info.is_file() && wanted.is(&path).map_err(failed(&path))? {
            found.push(path);
        }
    }
    Ok(())
}

impl Wanted {
    fn is(self, path: &Path) -> io::Result<bool> {
        match self {
            Self::Text => is_text(path),
            Self::Arrays => Ok(ArrayFormat::of(path).is_some()),
        }
    }
}

/// Whether the head of a file is UTF-8 without zero bytes; a character cut off at the end of the head is fine.
fn is_text(path: &Path) -> io::Result<bool> {
    let mut head = Vec::new();
    fs::File::open(path)?.take(SNIFFED).read_to_end(&mut head)?;
    let utf8 = match std::str::from_utf8(&head) {
        Ok(_) => true,
        Err(e) => e.error_len().is_none() && head.len() as u64 == SNIFFED,
    };
    Ok(utf8 && !head.contains(&0))
}
