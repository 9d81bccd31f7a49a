//! A run as an event file that TensorBoard reads.
//!
//! The file is a sequence of records `length, crc(length), bytes, crc(bytes)` (TFRecord), little-endian, with masked CRC-32C. Each
//! holds a message `Event`; of it and of `Summary` few fields are needed, so they are written by hand:
//!
//! | message | field | number |
//! |---|---|---|
//! | `Event` | `wall_time` (double), `step` (int64), `file_version` (string), `summary` | 1, 2, 3, 5 |
//! | `Summary` | `value` (repeated) | 1 |
//! | `Summary.Value` | `tag` (string), `simple_value` (float) | 1, 2 |
//!
//! All scalars of a step are one event. What has no value in a step is left out; a number that is not finite is written as one.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use thiserror::Error;

use crate::files::{StagedFile, WriteError};
use crate::recorded::{RecordedError, RunDocument, Steps};
use crate::train::{ControlRecord, StepRecord};

/// Name of the event file. TensorBoard looks for `tfevents` in names; one name means that writing it again replaces it.
const FILE: &str = "events.out.tfevents.0.entropic";

/// What TensorBoard expects in the first event.
const VERSION: &str = "brain.Event:2";

/// Why there are no event files.
#[derive(Debug, Error)]
pub enum TensorBoardError {
    /// The run cannot be read.
    #[error(transparent)]
    Recorded(#[from] RecordedError),
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The folder cannot be made.
    #[error("cannot create {}: {source}; choose another folder with --tensorboard", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Events {
    /// The event file.
    pub path: PathBuf,
    /// Steps in it.
    pub steps: u64,
    /// Number of the last line of the metrics, where that was cut short.
    pub cut: Option<usize>,
}

/// Writes the run in `folder` as an event file into the folder `into`.
///
/// # Errors
///
/// Where the run cannot be read, or the file cannot be written; an old one stays then.
pub fn tensorboard(folder: &Path, into: &Path) -> Result<Events, TensorBoardError> {
    let run = RunDocument::read(folder)?;
    let tags: Vec<String> = run.tensors.iter().map(|name| format!("tensor/{name}")).collect();
    let mut steps: Steps = Steps::open(folder)?;
    // Times of events follow from the run: from when it was described, or went on.
    let begun = std::fs::metadata(folder.join("run.json")).and_then(|info| info.modified()).ok();
    let begun = begun.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0.0, |time| time.as_secs_f64());
    std::fs::create_dir_all(into).map_err(|source| TensorBoardError::Folder { path: into.to_owned(), source })?;
    let path = into.join(FILE);
    let mut file = StagedFile::new(&path)?;
    let mut first = Message::default();
    first.double(1, begun);
    first.bytes(3, VERSION.as_bytes());
    file.write(&record(&first.0))?;
    let mut count = 0;
    while let Some(step) = steps.next_step()? {
        file.write(&record(&event(&step, &tags, begun).0))?;
        count += 1;
    }
    file.commit()?;
    Ok(Events { path, steps: count, cut: steps.cut() })
}

/// The event of a step.
fn event(record: &StepRecord, tags: &[String], begun: f64) -> Message {
    let mut summary = Message::default();
    let mut scalar = |tag: &str, value: f32| {
        let mut entry = Message::default();
        entry.bytes(1, tag.as_bytes());
        entry.float(2, value);
        summary.bytes(1, &entry.0);
    };
    // The type has no more digits.
    scalar("loss", record.loss.map_or(f32::NAN, |loss| loss as f32));
    if let Some(control) = &record.control {
        scalars(control, tags, &mut scalar);
    }
    let mut event = Message::default();
    event.double(1, begun + record.seconds);
    event.number(2, record.step);
    event.bytes(5, &summary.0);
    event
}

fn scalars(control: &ControlRecord, tags: &[String], scalar: &mut impl FnMut(&str, f32)) {
    for (tag, value) in [
        ("entropy", control.entropy),
        ("entropy/smoothed", control.smoothed),
        ("entropy/target", control.target),
        ("entropy/ratio", control.ratio),
        ("entropy/spectral", control.spectral_entropy),
        ("norm", Some(control.norm)),
        ("norm/limit", control.norm_threshold),
        ("scale/learning_rate", control.lr_scale),
        ("scale/momentum", control.momentum_scale),
        ("scale/backoff", control.rollback.map(|r| r.backoff)),
    ] {
        if let Some(value) = value {
            scalar(tag, value);
        }
    }
    for (tag, count) in [
        ("gate/accepted", Some(control.accepted)),
        ("gate/non_finite", Some(control.non_finite)),
        ("gate/norm", Some(control.refused_norm)),
        ("gate/entropy_low", Some(control.refused_low)),
        ("gate/entropy_high", Some(control.refused_high)),
        ("gate/loss_scale", Some(control.loss_scale_skips)),
        ("gate/rearmed", Some(control.rearmings)),
        ("rollbacks", control.rollback.map(|r| r.rollbacks)),
    ] {
        if let Some(count) = count {
            scalar(tag, count as f32);
        }
    }
    for (tag, entropy) in tags.iter().zip(&control.tensor_entropy) {
        if let Some(entropy) = entropy {
            scalar(tag, *entropy);
        }
    }
}

/// A record of the file.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let parts: [&[u8]; 4] = [&length, &masked_crc(&length).to_le_bytes(), bytes, &masked_crc(bytes).to_le_bytes()];
    parts.concat()
}

/// A checksum that does not look like one of bytes that hold checksums.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A message of Protocol Buffers.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_and_checked() {
        // As tensorflow's own writer begins a file.
        let bytes = record(b"abc");
        assert_eq!(bytes.len(), 8 + 4 + 3 + 4);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
        assert_eq!(bytes.get(..8), Some(&3u64.to_le_bytes()[..]));
    }

    #[test]
    fn fields_are_as_protocol_buffers_has_them() {
        let mut message = Message::default();
        message.number(2, 300);
        message.bytes(1, b"hi");
        message.float(2, 1.0);
        assert_eq!(message.0, [0x10, 0xac, 0x02, 0x0a, 2, b'h', b'i', 0x15, 0, 0, 0x80, 0x3f]);
    }
}
