//! The folder of a run.
//!
//! | file | what |
//! |---|---|
//! | `run.json` | what ran: model, its hash, policy, data, seed, corruption, plugin; written before the first step |
//! | `metrics.jsonl` | one JSON object per step, in order |
//! | `summary.json` | what it came to; written when the run ends, so its absence says that it did not end in order |
//!
//! Every JSON document carries a `format_version`; that of `metrics.jsonl` is in `run.json`.

use std::fs::{self, File};
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use passes::Policy;
use serde::Serialize;
use thiserror::Error;

use super::metrics_file::MetricsFile;
use super::{Corruption, Invocation, StepRecord, Summary};
use crate::files::{self, STAGED, WriteError};

/// The version of `run.json`, `metrics.jsonl` and `summary.json`.
pub const FORMAT_VERSION: u32 = 1;

const RUN: &str = "run.json";
const METRICS: &str = "metrics.jsonl";
const SUMMARY: &str = "summary.json";

/// Where runs go that were given no folder.
const DEFAULT_ROOT: &str = "runs";

/// The folder of a run, and its open metrics file.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    metrics: MetricsFile,
    lost: u64,
}

/// What ran.
#[derive(Debug, Serialize)]
pub(super) struct RunDescription<'a> {
    pub(super) format_version: u32,
    pub(super) program: &'static str,
    pub(super) version: &'static str,
    pub(super) model: &'a str,
    pub(super) model_path: String,
    pub(super) module_sha256: String,
    pub(super) policy: Option<&'a Policy>,
    pub(super) tensors: Vec<&'a str>,
    pub(super) seed: u32,
    pub(super) steps: u64,
    /// Steps of one launch.
    pub(super) steps_per_launch: NonZeroU32,
    /// Replicas that share each global batch.
    pub(super) replicas: NonZeroU32,
    pub(super) corruption: Option<&'a Corruption>,
    /// How it was asked for.
    pub(super) invocation: Option<&'a Invocation>,
    pub(super) loss_unit: &'a str,
    pub(super) data: DataDescription,
    pub(super) plugin: PluginDescription,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum DataDescription {
    Text { paths: Vec<String>, files: usize, bytes: usize, training_bytes: usize, held_out_bytes: usize },
    Arrays { paths: Vec<String>, files: usize, examples: usize, training_examples: usize, held_out_examples: usize },
}

#[derive(Debug, Serialize)]
pub(super) struct PluginDescription {
    pub(super) path: String,
    pub(super) api_version: String,
    pub(super) platform: String,
}

/// Why there is no folder for the run.
#[derive(Debug, Error)]
pub enum RunFolderError {
    /// The folder cannot be made.
    #[error("cannot create the run folder {}: {source}; choose another one with --out", path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The folder has content.
    #[error(
        "the run folder {} is not empty; choose another one with --out, a run never mixes with what is there (--resume goes on \
         with a run)", path.display()
    )]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// The metrics cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Metrics {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A value cannot be JSON.
    #[error("cannot write a document of the run as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A document cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl RunFolderError {
    /// Whether a part of the record is lost, rather than late.
    #[must_use]
    pub fn loses_record(&self) -> bool {
        !matches!(self, Self::Metrics { source, .. } if !MetricsFile::is_overfull(source))
    }
}

impl RunFolder {
    /// Creates the folder `given`, or the next free `runs/NAME-NNN`.
    ///
    /// # Errors
    ///
    /// Where it cannot be created, or has content.
    pub fn create(given: Option<&Path>, name: &str) -> Result<Self, RunFolderError> {
        let path = match given {
            Some(path) => empty_folder(path)?,
            None => next_folder(Path::new(DEFAULT_ROOT), name)?,
        };
        let file = path.join(METRICS);
        let metrics = MetricsFile::create(&file).map_err(|source| RunFolderError::Metrics { path: file, source })?;
        Ok(Self { path, metrics, lost: 0 })
    }

    /// Opens the folder of a run that goes on from where `metrics.jsonl` had so many bytes.
    ///
    /// # Errors
    ///
    /// Where another process trains the run, or the folder cannot be written to.
    pub fn reopen(path: &Path, metrics_bytes: u64) -> Result<Self, RunFolderError> {
        let file = path.join(METRICS);
        let metrics = MetricsFile::reopen(&file, metrics_bytes)
            .map_err(|source| RunFolderError::Metrics { path: file, source })?;
        // It says how the run ended, which it has not.
        let summary = path.join(SUMMARY);
        match fs::remove_file(&summary) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(WriteError::Io { path: summary, source }.into());
            }
            _ => {}
        }
        let lost = metrics_bytes.saturating_sub(metrics.len());
        Ok(Self { path: path.to_owned(), metrics, lost })
    }

    /// Bytes of `metrics.jsonl` that should be there from before the run went on, and are not.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `run.json`.
    pub(super) fn describe(&self, run: &RunDescription<'_>) -> Result<(), RunFolderError> {
        self.document(RUN, run)
    }

    /// Appends a step to `metrics.jsonl`.
    ///
    /// # Errors
    ///
    /// Where the file cannot be written.
    pub fn record(&mut self, record: &StepRecord) -> Result<(), RunFolderError> {
        let line = serde_json::to_vec(record)?;
        self.metrics.append(&line).map_err(|e| self.metrics_error(e))
    }

    /// Whether no line of `metrics.jsonl` waits to be written.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.metrics.is_written()
    }

    /// Bytes of `metrics.jsonl`, once all that was recorded is in it.
    #[must_use]
    pub fn metrics_bytes(&self) -> u64 {
        self.metrics.len()
    }

    /// Hands all of `metrics.jsonl` to the system, and returns a handle that brings it to the disk.
    ///
    /// # Errors
    ///
    /// Where the file cannot be written.
    pub fn metrics_handle(&mut self) -> Result<File, RunFolderError> {
        self.metrics.flush().and_then(|()| self.metrics.handle()).map_err(|e| self.metrics_error(e))
    }

    /// Brings all of `metrics.jsonl` to the disk.
    ///
    /// # Errors
    ///
    /// Where the file cannot be written.
    pub fn flush(&mut self) -> Result<(), RunFolderError> {
        self.metrics_handle()?.sync_all().map_err(|e| self.metrics_error(e))
    }

    /// Writes `summary.json`.
    ///
    /// # Errors
    ///
    /// Where the file cannot be written.
    pub fn summary(&self, summary: &Summary) -> Result<(), RunFolderError> {
        self.document(SUMMARY, summary)
    }

    fn document(&self, name: &str, value: &impl Serialize) -> Result<(), RunFolderError> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        Ok(files::write(&self.path.join(name), text.as_bytes())?)
    }

    fn metrics_error(&self, source: io::Error) -> RunFolderError {
        RunFolderError::Metrics { path: self.path.join(METRICS), source }
    }
}

fn empty_folder(path: &Path) -> Result<PathBuf, RunFolderError> {
    let failed = |source| RunFolderError::Create { path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(failed)?;
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        // What a run leaves that was killed before its first word.
        let left = name.to_str().is_some_and(|name| name.starts_with(STAGED))
            || (name == METRICS && entry.metadata().map_err(failed)?.len() == 0);
        if !left {
            return Err(RunFolderError::Occupied { path: path.to_owned() });
        }
    }
    Ok(path.to_owned())
}

/// Creates the first of `NAME-001`, `NAME-002`, … that does not exist. Two runs that start together get two folders.
fn next_folder(root: &Path, name: &str) -> Result<PathBuf, RunFolderError> {
    let failed = |path: &Path, source| RunFolderError::Create { path: path.to_owned(), source };
    fs::create_dir_all(root).map_err(|e| failed(root, e))?;
    let name: String = name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    let mut number = 1u64;
    loop {
        let path = root.join(format!("{name}-{number:03}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(source) => return Err(failed(&path, source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_numbered_and_never_shared() {
        let root = tempfile::tempdir().unwrap();
        for expected in ["a_b-001", "a_b-002"] {
            assert_eq!(next_folder(root.path(), "a/b").unwrap(), root.path().join(expected));
        }
    }

    #[test]
    fn a_folder_with_content_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep").join("run");
        // What a run left that was killed before its first word is no content.
        drop(RunFolder::create(Some(&path), "x").unwrap());
        drop(RunFolder::create(Some(&path), "x").unwrap());
        fs::write(path.join("run.json"), "{}").unwrap();
        let error = RunFolder::create(Some(&path), "x").unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
    }
}
