//! Writing files so that nothing half-written is ever seen.
//!
//! Content goes to a temporary name in the target's own folder, is synced, and
//! takes the final name in one step. A failure leaves what was there before.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::{Builder, NamedTempFile, TempDir};
use thiserror::Error;

/// A file or folder that could not be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The system refused.
    #[error("cannot write {}: {}; check that the folder exists, is writable and has space", path.display(), plain(source))]
    Io {
        /// What was to be written.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The target exists and is something else than what is to be written.
    #[error("will not replace {}: it is {what}; choose another output path or remove it first", path.display())]
    Occupied {
        /// The target.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
}

/// Writes a file, replacing one of that name in a single step.
///
/// # Errors
///
/// Where the target is a folder, or the system refuses; the old content stays then.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let mut staged = StagedFile::new(path)?;
    staged.write(bytes)?;
    staged.commit()
}

/// A file under construction, beside its final place; gone on drop unless [`StagedFile::commit`] was called.
#[derive(Debug)]
pub struct StagedFile {
    target: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl StagedFile {
    /// Starts a file that will become `target`.
    ///
    /// # Errors
    ///
    /// Where `target` is a folder, or the system refuses.
    pub fn new(target: &Path) -> Result<Self, WriteError> {
        if target.is_dir() {
            return Err(WriteError::Occupied { path: target.to_owned(), what: "a folder" });
        }
        let failed = |source| WriteError::Io { path: target.to_owned(), source };
        let file = builder(0o666).tempfile_in(parent(target)).map_err(failed)?;
        Ok(Self { target: target.to_owned(), file: BufWriter::new(file) })
    }

    /// Appends to it.
    ///
    /// # Errors
    ///
    /// Where the system refuses.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.file.write_all(bytes).map_err(|source| WriteError::Io { path: self.target.clone(), source })
    }

    /// Gives the file its final name; an old one of that name goes.
    ///
    /// # Errors
    ///
    /// Where the system refuses; the old content stays then.
    pub fn commit(self) -> Result<(), WriteError> {
        let Self { target, file } = self;
        let failed = |source| WriteError::Io { path: target.clone(), source };
        let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&target).map_err(|e| failed(e.error))?;
        sync_folder(parent(&target)).map_err(failed)
    }
}

/// A folder under construction, beside its final place; gone on drop unless [`StagedFolder::commit`] was called.
#[derive(Debug)]
pub struct StagedFolder {
    target: PathBuf,
    staging: TempDir,
}

impl StagedFolder {
    /// Starts a folder that will become `target`.
    ///
    /// An existing `target` is replaced if it is an empty folder or if `replaceable` says so.
    ///
    /// # Errors
    ///
    /// Where `target` is something that must not be replaced, or the system refuses.
    pub fn new(target: &Path, replaceable: impl Fn(&Path) -> bool) -> Result<Self, WriteError> {
        let failed = |source| WriteError::Io { path: target.to_owned(), source };
        let occupied = |what| WriteError::Occupied { path: target.to_owned(), what };
        match fs::symlink_metadata(target) {
            Ok(found) if found.is_dir() => {
                let empty = fs::read_dir(target).map_err(failed)?.next().is_none();
                if !empty && !replaceable(target) {
                    return Err(occupied("a folder with other content"));
                }
            }
            Ok(_) => return Err(occupied("a file")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        let staging = builder(0o777).tempdir_in(parent(target)).map_err(failed)?;
        Ok(Self { target: target.to_owned(), staging })
    }

    /// Writes a file into the folder.
    ///
    /// # Errors
    ///
    /// Where the system refuses.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let path = self.staging.path().join(name);
        let failed = |source| WriteError::Io { path: self.target.join(name), source };
        let mut file = fs::File::create_new(&path).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        file.sync_all().map_err(failed)
    }

    /// The error for a file of the folder that could not be made.
    pub(crate) fn failed(&self, name: &str, source: io::Error) -> WriteError {
        WriteError::Io { path: self.target.join(name), source }
    }

    /// Gives the folder its final name; an old one of that name goes.
    ///
    /// # Errors
    ///
    /// Where the system refuses; the old folder is back in place then.
    pub fn commit(self) -> Result<(), WriteError> {
        let failed = |source| WriteError::Io { path: self.target.clone(), source };
        sync_folder(self.staging.path()).map_err(failed)?;
        if !self.target.exists() {
            fs::rename(self.staging.path(), &self.target).map_err(failed)?;
            // The folder has moved; there is nothing left to clean up.
            let _ = self.staging.keep();
            return sync_folder(parent(&self.target)).map_err(failed);
        }
        let old = builder(0o777).tempdir_in(parent(&self.target)).map_err(failed)?;
        let aside = old.path().join("old");
        fs::rename(&self.target, &aside).map_err(failed)?;
        if let Err(source) = fs::rename(self.staging.path(), &self.target) {
            fs::rename(&aside, &self.target).map_err(failed)?;
            return Err(failed(source));
        }
        let _ = self.staging.keep();
        sync_folder(parent(&self.target)).map_err(failed)
    }
}

/// Brings the names in a folder to the disk.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    // A folder cannot be opened like this elsewhere, where the system sees to its names.
    if cfg!(unix) { fs::File::open(path)?.sync_all() } else { Ok(()) }
}

/// The system's words alone: an error of `tempfile` also names the temporary path, which tells the user nothing.
fn plain(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|e| e.source()).and_then(|e| e.downcast_ref::<io::Error>());
    inner.unwrap_or(error).to_string()
}

/// The SHA-256 of bytes, in lower-case hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in lower-case hexadecimal.
#[must_use]
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Creates a folder that only this user may write to, for code that will be loaded lies in it. One that exists stays as it
/// is.
pub(crate) fn private_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Who may write to a folder, beside the superuser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writers {
    /// This user alone.
    Owner,
    /// Its owner, who is another user.
    OtherOwner,
    /// Its group, or everybody.
    Others,
}

impl Writers {
    /// What is wrong where somebody else may write, and what to do about it.
    pub(crate) fn complaint(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Owner => None,
            Self::OtherOwner => Some(("belongs to another user", "remove it")),
            Self::Others => Some(("may be written to by other users", "take that right away with `chmod go-w`")),
        }
    }
}

/// What tells a file from another that came into its place: its size, its times, its number in the file system.
#[cfg(unix)]
pub(crate) fn identity(path: &Path) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt;
    let info = fs::metadata(path)?;
    let times = [info.mtime(), info.mtime_nsec(), info.ctime(), info.ctime_nsec()].map(|time| time.to_string());
    Ok(format!("{}:{}:{}:{}", info.size(), times.join(":"), info.dev(), info.ino()))
}

/// As on Unix, as far as the system tells.
#[cfg(not(unix))]
pub(crate) fn identity(path: &Path) -> io::Result<String> {
    let info = fs::metadata(path)?;
    Ok(format!("{}:{:?}", info.len(), info.modified()?))
}

/// Who may write to a folder.
#[cfg(unix)]
pub(crate) fn who_may_write(folder: &Path) -> io::Result<Writers> {
    use std::os::unix::fs::MetadataExt;
    let info = fs::metadata(folder)?;
    Ok(match info {
        info if info.uid() != rustix::process::geteuid().as_raw() => Writers::OtherOwner,
        info if info.mode() & 0o022 != 0 => Writers::Others,
        _ => Writers::Owner,
    })
}

/// Who may write to a folder.
#[cfg(not(unix))]
pub(crate) fn who_may_write(_: &Path) -> io::Result<Writers> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "who may write there cannot be told on this system"))
}

/// The folder that holds `path`: `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// What the name of everything under construction begins with.
pub(crate) const STAGED: &str = ".entropic-";

/// `tempfile` makes private files; what gets a final name must have the permissions that the user's umask asks for.
fn builder(mode: u32) -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(STAGED).suffix(".tmp");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        for content in ["one", "two"] {
            write(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write(folder.path(), b"x").unwrap_err().to_string().contains("a folder"));
        let missing = folder.path().join("missing").join("a");
        assert!(write(&missing, b"x").unwrap_err().to_string().contains("missing"));
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn a_folder_appears_when_it_is_complete() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("bundle");
        for content in ["one", "two"] {
            let staged = StagedFolder::new(&target, |_| true).unwrap();
            staged.write("a", content.as_bytes()).unwrap();
            staged.commit().unwrap();
            assert_eq!(fs::read_to_string(target.join("a")).unwrap(), content);
            assert_eq!(names(root.path()), ["bundle"]);
        }
        let dropped = StagedFolder::new(&target, |_| true).unwrap();
        dropped.write("a", b"three").unwrap();
        drop(dropped);
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "two");
        assert_eq!(names(root.path()), ["bundle"]);
    }

    #[test]
    fn other_content_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("thesis");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("chapter"), "1").unwrap();
        assert!(StagedFolder::new(&target, |_| false).unwrap_err().to_string().contains("other content"));
        assert!(StagedFolder::new(&target.join("chapter"), |_| true).unwrap_err().to_string().contains("a file"));
        assert_eq!(names(&target), ["chapter"]);
    }
}
