//! The checkpoints of a run on disk.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::format::{self, Checkpoint};
use crate::engine::EngineError;
use crate::files::{STAGED, StagedFolder, WriteError};

/// What the name of a checkpoint begins with; the number of steps follows.
const PREFIX: &str = "step-";

/// The folder `checkpoints` of a run.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    keep: NonZeroUsize,
}

/// A checkpoint that is there and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Its folder.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// The newest checkpoint that is whole.
#[derive(Debug)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// What is in it.
    pub checkpoint: Checkpoint,
    /// Newer ones that are damaged.
    pub damaged: Vec<Damage>,
}

/// Why there is no checkpoint to go on from.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The folder cannot be read.
    #[error("cannot read the checkpoints in {}: {source}", path.display())]
    Read {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is none.
    #[error(
        "{} has no checkpoint: the run ended before its first, or was told to write none (--checkpoint-every 0); start it anew",
        path.display()
    )]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// All are damaged.
    #[error(
        "no checkpoint in {} can be used: {}. Restore one from a backup, or start the run anew", path.display(),
        damaged.iter().map(|d| format!("{}: {}", d.path.display(), d.reason)).collect::<Vec<_>>().join("; ")
    )]
    AllDamaged {
        /// The folder.
        path: PathBuf,
        /// Each, newest first.
        damaged: Vec<Damage>,
    },
    /// One cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The metrics that it counts on do not reach the disk.
    #[error("the metrics do not reach the disk: {source}; check that it has space")]
    Metrics {
        /// What the system says.
        source: io::Error,
    },
    /// The state does not come from the device.
    #[error(transparent)]
    State(Box<EngineError>),
}

impl Store {
    /// The checkpoints of the run in that folder, of which the newest `keep` are kept.
    #[must_use]
    pub fn new(run: &Path, keep: NonZeroUsize) -> Self {
        Self { folder: run.join("checkpoints"), keep }
    }

    /// Where a checkpoint of that many steps is.
    #[must_use]
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step:09}"))
    }

    /// Writes a checkpoint and lets go of old ones. Returns its folder and the number of bytes in it.
    ///
    /// # Errors
    ///
    /// Where the system refuses; the checkpoints that were there stay.
    pub fn write(&self, checkpoint: &Checkpoint) -> Result<(PathBuf, u64), CheckpointError> {
        let failed = |source| WriteError::Io { path: self.folder.clone(), source };
        // Not the run's folder above it: where that is gone, something is wrong that nobody would hear of.
        match fs::create_dir(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error).into()),
            _ => {}
        }
        let path = self.path(checkpoint.step);
        // One of that name is damaged, or from before the run went on from an earlier one.
        let staged = StagedFolder::new(&path, |_| true)?;
        format::write(checkpoint, &staged)?;
        staged.commit()?;
        let bytes = folder_size(&path);
        self.let_go();
        Ok((path, bytes))
    }

    /// The newest checkpoint whose every byte is what was written.
    ///
    /// # Errors
    ///
    /// Where there is none.
    pub fn newest(&self) -> Result<Found, CheckpointError> {
        let mut damaged = Vec::new();
        for (_, path) in self.list()?.into_iter().rev() {
            match format::read(&path) {
                Ok(checkpoint) => return Ok(Found { path, checkpoint, damaged }),
                Err(reason) => damaged.push(Damage { path, reason }),
            }
        }
        let path = self.folder.clone();
        Err(if damaged.is_empty() {
            CheckpointError::Missing { path }
        } else {
            CheckpointError::AllDamaged { path, damaged }
        })
    }

    /// The document of the newest checkpoint, whole or not; nothing where there is none, or they cannot be listed.
    #[must_use]
    pub fn newest_document(&self) -> Option<PathBuf> {
        let (_, path) = self.list().ok()?.pop()?;
        Some(path.join(format::MANIFEST))
    }

    /// Removes checkpoints of more steps than these: those of a future that the run has gone back from.
    ///
    /// # Errors
    ///
    /// Where the system refuses.
    pub fn forget_after(&self, step: u64) -> Result<(), CheckpointError> {
        for (number, path) in self.list()? {
            if number > step {
                remove(&path).map_err(|source| WriteError::Io { path, source })?;
            }
        }
        Ok(())
    }

    /// Checkpoints by number of steps.
    fn list(&self) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
        let failed = |source| CheckpointError::Read { path: self.folder.clone(), source };
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let number = path.file_name().and_then(|n| n.to_str()?.strip_prefix(PREFIX)?.parse().ok());
            found.extend(number.map(|number| (number, path)));
        }
        found.sort();
        Ok(found)
    }

    /// Removes what is no longer kept, and what a process that was killed left half-written. What cannot be removed costs space
    /// and nothing else.
    fn let_go(&self) {
        let old = self.list().unwrap_or_default();
        let old = old.iter().rev().skip(self.keep.get()).map(|(_, path)| path.clone());
        for path in old.chain(self.half_written()) {
            if let Err(error) = remove(&path) {
                tracing::warn!("{} stays, for it cannot be removed: {error}", path.display());
            }
        }
    }

    fn half_written(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        entries
            .filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(STAGED)))
            .collect()
    }
}

/// Removes a checkpoint. It loses its name first, so that no half of it is ever taken for one.
fn remove(path: &Path) -> io::Result<()> {
    let named = path.file_name().and_then(|n| n.to_str()).filter(|n| !n.starts_with(STAGED));
    let Some(name) = named else { return fs::remove_dir_all(path) };
    let aside = path.with_file_name(format!("{STAGED}{name}.old"));
    fs::rename(path, &aside)?;
    fs::remove_dir_all(aside)
}

fn folder_size(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|data| data.len()).sum()
}
