//! Going on with a run that ended early.

use std::fs;
use std::io;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::checkpoint::{CheckpointError, Difference, Found, Store};
use super::invocation::Invocation;
use super::run_folder::FORMAT_VERSION;
use crate::document::{self, Flaw};

/// What becomes of a run whose record or checkpoint cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnWriteError {
    /// It says so and goes on; what could not be written is tried again.
    #[default]
    Continue,
    /// It ends.
    Stop,
}

/// When checkpoints are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpointing {
    /// Steps from one to the next; there is one after the last step, too. Where a launch does several steps, the first launch that
    /// reaches the number.
    pub every: NonZeroU64,
    /// How many are kept.
    pub keep: NonZeroUsize,
}

impl Default for Checkpointing {
    fn default() -> Self {
        const EVERY: NonZeroU64 = NonZeroU64::new(500).unwrap();
        const KEEP: NonZeroUsize = NonZeroUsize::new(3).unwrap();
        Self { every: EVERY, keep: KEEP }
    }
}

/// A run that is to go on.
#[derive(Debug)]
pub struct Resume {
    /// Its folder.
    pub folder: PathBuf,
    /// Where it goes on from; from the beginning where there is none.
    pub found: Option<Found>,
    /// Whether the policy may have other numbers from here on.
    pub allow_policy_change: bool,
}

/// Why a run cannot go on.
#[derive(Debug, Error)]
pub enum ResumeError {
    /// There is no record of the run.
    #[error("cannot go on with {}: {source}; a run's folder holds run.json", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The record is not one that this program can go on with.
    #[error("cannot go on with the run of {}: {flaw}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        flaw: Flaw,
    },
    /// The record does not say how the run was started.
    #[error("cannot go on with the run of {}: it does not say how it was started; only runs of `entropic train` go on", path.display())]
    NoInvocation {
        /// The file.
        path: PathBuf,
    },
    /// No checkpoint can be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run would be another one.
    #[error(
        "the run in {} cannot go on as it was: {}", path.display(),
        differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Differs {
        /// The run.
        path: PathBuf,
        /// What is not as it was.
        differences: Vec<Difference>,
    },
    /// Fewer steps are asked for than are done.
    #[error("the run in {} has done {done} steps, and --steps asks for {asked}; ask for more", path.display())]
    Done {
        /// The run.
        path: PathBuf,
        /// Steps done.
        done: u64,
        /// Steps asked for.
        asked: u64,
    },
    /// The checkpoint lacks an array, or has another one.
    #[error("{} has no {name} as the step takes it ({expected})", path.display())]
    Array {
        /// The checkpoint.
        path: PathBuf,
        /// Name of the input.
        name: String,
        /// What the step takes.
        expected: String,
    },
}

/// The part of `run.json` that going on needs.
#[derive(Debug, Deserialize)]
struct Record {
    invocation: Option<Invocation>,
}

impl Resume {
    /// The run in `folder`, and what it was asked to be.
    ///
    /// # Errors
    ///
    /// Where there is no record of a run, or no checkpoint can be used although there are some.
    pub fn open(folder: &Path) -> Result<(Self, Invocation), ResumeError> {
        let path = folder.join("run.json");
        let text = fs::read(&path).map_err(|source| ResumeError::Read { path: path.clone(), source })?;
        let record: Record =
            document::read(&text, FORMAT_VERSION).map_err(|flaw| ResumeError::Document { path: path.clone(), flaw })?;
        let invocation = record.invocation.ok_or(ResumeError::NoInvocation { path })?;
        let found = match Store::new(folder, NonZeroUsize::MAX).newest() {
            Ok(found) => Some(found),
            Err(CheckpointError::Missing { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok((Self { folder: folder.to_owned(), found, allow_policy_change: false }, invocation))
    }

    /// Whether there is the record of a run in `folder`.
    #[must_use]
    pub fn is_run(folder: &Path) -> bool {
        folder.join("run.json").is_file()
    }

    /// Steps that are done.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.found.as_ref().map_or(0, |found| found.checkpoint.step)
    }

    /// Refuses what would make another run of it; returns what is not as it was and does not.
    ///
    /// # Errors
    ///
    /// Where something differs that a run cannot change on its way.
    pub(super) fn compare(&self, now: &super::checkpoint::Fingerprint) -> Result<Vec<Difference>, ResumeError> {
        let Some(found) = &self.found else { return Ok(Vec::new()) };
        let differences = now.differences(&found.checkpoint.fingerprint);
        let allowed = |d: &Difference| !d.is_refused() || (*d == Difference::Policy && self.allow_policy_change);
        if differences.iter().all(allowed) {
            return Ok(differences);
        }
        let differences = differences.into_iter().filter(|d| !allowed(d)).collect();
        Err(ResumeError::Differs { path: self.folder.clone(), differences })
    }
}
