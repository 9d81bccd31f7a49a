//! Reads what a run recorded: `run.json`, `metrics.jsonl`, `summary.json`.
//!
//! A run that is going on is read as it was when its file was opened. A last line that is cut short, as an end without warning
//! leaves it, is no error: [`Lines::parse`] says that there is nothing. Damage anywhere else is an error that names file and line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Take};
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use passes::Policy;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::document::{self, Flaw};
use crate::train::checkpoint::{Store, Tallies};
use crate::train::{RUN_FORMAT_VERSION, StepRecord, Summary};

/// Why a run cannot be read.
#[derive(Debug, Error)]
pub enum RecordedError {
    /// The folder is no run, or cannot be read.
    #[error("cannot read {}: {source}; a run's folder holds run.json and metrics.jsonl", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A document is damaged, or of another version.
    #[error("{}: {flaw}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        flaw: Flaw,
    },
    /// A line is damaged.
    #[error("{}, line {number}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        number: usize,
        /// What is wrong.
        message: String,
    },
}

/// What `run.json` says. What a version before this one did not write is absent.
#[derive(Debug, Clone, Deserialize)]
pub struct RunDocument {
    /// Version of the program.
    pub version: Option<String>,
    /// Name of the model.
    pub model: String,
    /// Where it was.
    pub model_path: Option<String>,
    /// Checksum of its module.
    pub module_sha256: Option<String>,
    /// The controller's policy; `None` without a controller.
    pub policy: Option<Policy>,
    /// Names of the tensors that the controller measures.
    pub tensors: Vec<String>,
    /// Seeds the initial state and the order of the data.
    pub seed: Option<u32>,
    /// Steps that were asked for.
    pub steps: Option<u64>,
    /// Steps of one launch.
    pub steps_per_launch: Option<u32>,
    /// Replicas that share each global batch.
    pub replicas: Option<u32>,
    /// Which batches were spoilt on purpose.
    pub corruption: Option<Value>,
    /// Unit of the losses.
    pub loss_unit: String,
    /// The data, as text or arrays describe themselves.
    #[serde(default)]
    pub data: Value,
    /// What it ran on.
    #[serde(default)]
    pub plugin: Value,
}

impl RunDocument {
    /// Reads `run.json` of a run.
    ///
    /// # Errors
    ///
    /// Where there is none, or it is damaged or of another version.
    pub fn read(folder: &Path) -> Result<Self, RecordedError> {
        read(&folder.join("run.json"), |text| document::read(text, RUN_FORMAT_VERSION))
    }
}

/// All that `run.json` says, for who compares runs.
///
/// # Errors
///
/// As [`RunDocument::read`].
pub fn whole_document(folder: &Path) -> Result<Value, RecordedError> {
    read(&folder.join("run.json"), document::parse)
}

/// What `summary.json` says; `None` where the run has not ended in order.
///
/// # Errors
///
/// Where it is damaged or of another version.
pub fn summary(folder: &Path) -> Result<Option<Summary>, RecordedError> {
    match read(&folder.join("summary.json"), |text| document::read(text, RUN_FORMAT_VERSION)) {
        Err(RecordedError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// What a run without a summary left to go on from.
#[derive(Debug, Clone, PartialEq)]
pub struct LastCheckpoint {
    /// Steps done.
    pub step: u64,
    /// The steps that the run went on from before; what happened after this checkpoint is not known.
    pub resumed_from: Vec<u64>,
}

/// The newest checkpoint, as far as its document can be read. Its arrays are not looked at: whoever goes on from it does.
#[must_use]
pub fn last_checkpoint(folder: &Path) -> Option<LastCheckpoint> {
    #[derive(Deserialize)]
    struct Manifest {
        step: u64,
        tallies: Tallies,
    }
    let path = Store::new(folder, NonZeroUsize::MIN).newest_document()?;
    let Manifest { step, tallies } = read(&path, document::parse).ok()?;
    Some(LastCheckpoint { step, resumed_from: tallies.resumed_from })
}

fn read<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, Flaw>) -> Result<T, RecordedError> {
    let text = std::fs::read(path).map_err(|source| RecordedError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|flaw| RecordedError::Document { path: path.to_owned(), flaw })
}

/// A line of `metrics.jsonl`.
#[derive(Debug)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// Its bytes.
    pub bytes: Vec<u8>,
    last: bool,
}

/// The lines of `metrics.jsonl`.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    from: BufReader<Take<File>>,
    number: usize,
    cut: Option<usize>,
}

impl Lines {
    /// Opens the metrics of a run.
    ///
    /// # Errors
    ///
    /// Where they cannot be read.
    pub fn open(folder: &Path) -> Result<Self, RecordedError> {
        let path = folder.join("metrics.jsonl");
        let open = || {
            let file = File::open(&path)?;
            // A line that is being written would otherwise be seen in two halves.
            let length = file.metadata()?.len();
            Ok(file.take(length))
        };
        let file = open().map_err(|source| RecordedError::Read { path: path.clone(), source })?;
        Ok(Self { path, from: BufReader::with_capacity(1 << 16, file), number: 0, cut: None })
    }

    /// The next line.
    ///
    /// # Errors
    ///
    /// Where it cannot be read.
    pub fn next_line(&mut self) -> Result<Option<Line>, RecordedError> {
        let mut bytes = Vec::new();
        let read = self.from.read_until(b'\n', &mut bytes);
        let last = read.and_then(|count| Ok((count == 0, self.from.fill_buf()?.is_empty())));
        let (none, last) = last.map_err(|source| RecordedError::Read { path: self.path.clone(), source })?;
        if none {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(Line { number: self.number, bytes, last }))
    }

    /// What a line says; `None` where it is the last one, and cut short.
    ///
    /// # Errors
    ///
    /// Where it is damaged.
    pub fn parse<T: DeserializeOwned>(&mut self, line: &Line) -> Result<Option<T>, RecordedError> {
        match document::parse(&line.bytes) {
            Ok(found) => Ok(Some(found)),
            // What was cut short is no JSON; a whole record that lacks something is of another version, or damaged.
            Err(_) if line.last && serde_json::from_slice::<Value>(&line.bytes).is_err() => {
                self.cut = Some(line.number);
                Ok(None)
            }
            Err(flaw) => Err(self.damaged(line.number, flaw.to_string())),
        }
    }

    /// Number of the last line where that is cut short, once it was parsed.
    #[must_use]
    pub fn cut(&self) -> Option<usize> {
        self.cut
    }

    fn damaged(&self, number: usize, message: String) -> RecordedError {
        RecordedError::Line { path: self.path.clone(), number, message }
    }
}

/// The number of a step, without the rest of its record.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct StepNumber {
    /// The number.
    pub step: u64,
}

/// What has the number of a step.
pub trait Numbered {
    /// The number.
    fn step(&self) -> Option<u64>;
}

impl Numbered for StepRecord {
    fn step(&self) -> Option<u64> {
        Some(self.step)
    }
}

impl Numbered for Value {
    fn step(&self) -> Option<u64> {
        self.get("step")?.as_u64()
    }
}

/// The records of all steps, one at a time.
#[derive(Debug)]
pub struct Steps<T = StepRecord> {
    lines: Lines,
    last: Option<u64>,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned + Numbered> Steps<T> {
    /// Opens the metrics of a run.
    ///
    /// # Errors
    ///
    /// Where they cannot be read.
    pub fn open(folder: &Path) -> Result<Self, RecordedError> {
        Ok(Self { lines: Lines::open(folder)?, last: None, of: PhantomData })
    }

    /// The record of the next step.
    ///
    /// # Errors
    ///
    /// Where it is damaged, or does not come after the one before.
    pub fn next_step(&mut self) -> Result<Option<T>, RecordedError> {
        let Some(line) = self.lines.next_line()? else { return Ok(None) };
        let Some(record) = self.lines.parse::<T>(&line)? else { return Ok(None) };
        let step = record.step().ok_or_else(|| self.lines.damaged(line.number, "it has no number of a step".into()))?;
        if let Some(before) = self.last.filter(|&before| step <= before) {
            let message = format!("step {step} is recorded behind step {before}");
            return Err(self.lines.damaged(line.number, message));
        }
        self.last = Some(step);
        Ok(Some(record))
    }

    /// Number of the last line where that was cut short, once it was reached.
    #[must_use]
    pub fn cut(&self) -> Option<usize> {
        self.lines.cut()
    }
}
