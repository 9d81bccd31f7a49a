//! Examples in arrays: their first dimension counts examples, the others are those of the input that they feed.
//!
//! Arrays come from `.npz`, `.npy` and `.safetensors` files. Several files are parts of one data set, one after another.
//! Files are mapped, not loaded; only what numpy compressed is unpacked into memory. All that can be wrong with them is found
//! when they are opened: shapes, types, values that the input cannot hold, damage.
//!
//! Every epoch takes each training example once, in an order of its own. A step takes the next examples of that endless
//! stream, also where an epoch ends within it.

mod cast;
mod file;
mod names;
mod npy;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use self::cast::Cast;
use self::file::{ArrayFile, Stored};
use super::DataError;
use super::files::{self, Wanted};
use super::order::Order;
use super::parts::Parts;
use crate::bundle::Dtype;

/// Examples that are held out together, so that neighbours, which are often alike, do not lie in both parts.
const BLOCK: usize = 16;

/// What is wrong with arrays, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}: {message}")]
pub struct ArrayError {
    /// A file, an array in a file, or the whole data set.
    pub place: String,
    /// What is wrong and what was expected.
    pub message: String,
}

impl ArrayError {
    pub(crate) fn new(place: impl fmt::Display, message: impl Into<String>) -> Self {
        Self { place: place.to_string(), message: message.into() }
    }
}

/// The part of an example that one input of the step takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Name of the input.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Dimensions of one example: those of the input without the one that counts examples.
    pub shape: Vec<usize>,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} takes examples that are {} {:?}", self.name, self.dtype.name(), self.shape)
    }
}

/// Examples, a tenth of them held out.
#[derive(Debug)]
pub struct Examples {
    columns: Vec<Column>,
    len: usize,
    files: usize,
    parts: Parts,
    order: Order,
}

/// One field of all examples.
#[derive(Debug, Default)]
struct Column {
    pieces: Vec<Piece>,
    len: usize,
}

/// One field of the examples in one file.
#[derive(Debug)]
struct Piece {
    /// Examples in the pieces before this one.
    before: usize,
    stored: Stored,
    cast: Cast,
    /// Bytes of an example in the file.
    size: usize,
}

impl Examples {
    /// Opens files with arrays, and all that lie in folders, for the inputs that `fields` describe.
    ///
    /// `seed` seeds the order. A step takes `per_step` examples.
    ///
    /// # Errors
    ///
    /// Where a file is damaged, an input has no array, an array does not fit its input, or examples are too few.
    pub fn open(paths: &[PathBuf], fields: &[Field], seed: u64, per_step: usize) -> Result<Self, DataError> {
        let found = files::find(paths, Wanted::Arrays)?;
        if found.is_empty() {
            return Err(DataError::empty(paths, &found, "files with arrays (.npz, .npy, .safetensors)"));
        }
        let mut columns: Vec<Column> = fields.iter().map(|_| Column::default()).collect();
        let inputs: Vec<&str> = fields.iter().map(|f| f.name.as_str()).collect();
        let open = found.iter().map(|path| ArrayFile::open(path)).collect::<Result<Vec<_>, _>>()?;
        let files = open.len();
        one_kind(&open, &inputs)?;
        for mut file in open {
            if file.is_single() && inputs.len() > 1 {
                add_single(&mut columns, &mut file, fields, &inputs)?;
            } else {
                add_all(&mut columns, &mut file, fields, &inputs)?;
            }
        }
        let len = same_length(&columns, fields, paths)?;
        let parts = Parts::new(len, 1, BLOCK);
        let training = parts.training.len();
        if training < per_step.max(1) || len < 2 {
            let message = format!(
                "{len} examples, {training} of them to train on and {} held out; a step takes {}: give more",
                parts.held_out.len(),
                per_step.max(1)
            );
            return Err(ArrayError::new(listed(paths), message).into());
        }
        Ok(Self { columns, len, files, order: Order::new(seed, training as u64), parts })
    }

    /// Number of files.
    #[must_use]
    pub fn files(&self) -> usize {
        self.files
    }

    /// Number of examples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// SHA-256 of all elements, in lower-case hexadecimal; of more than a gibibyte, of evenly spread parts of them.
    #[must_use]
    pub fn sha256(&self) -> String {
        super::sum::sum(self.columns.iter().flat_map(|column| &column.pieces).map(|piece| piece.stored.elements()))
    }

    /// Never: no examples are refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of examples to train on.
    #[must_use]
    pub fn training_len(&self) -> usize {
        self.parts.training.len()
    }

    /// Number of examples held out.
    #[must_use]
    pub fn held_out_len(&self) -> usize {
        self.parts.held_out.len()
    }

    /// Appends the training example at a position of the stream to `target`, which has an entry per field.
    pub fn training(&self, position: u128, target: &mut [Vec<u8>]) {
        self.append(self.parts.training.start(self.order.example(position)), target);
    }

    /// Appends held-out example `index`, counted modulo [`Examples::held_out_len`].
    pub fn held_out(&self, index: usize, target: &mut [Vec<u8>]) {
        self.append(self.parts.held_out.window(index), target);
    }

    fn append(&self, example: usize, target: &mut [Vec<u8>]) {
        self.columns.iter().zip(target).for_each(|(column, target)| column.append(example, target));
    }
}

impl Column {
    fn append(&self, example: usize, target: &mut Vec<u8>) {
        let after = self.pieces.partition_point(|p| p.before <= example);
        let Some(piece) = after.checked_sub(1).and_then(|n| self.pieces.get(n)) else { return };
        let start = (example - piece.before) * piece.size;
        if let Some(bytes) = piece.stored.elements().get(start..start + piece.size) {
            piece.cast.append(bytes, target);
        }
    }

    /// Puts an array behind what is there; an error says why its input cannot take it.
    fn push(&mut self, stored: Stored, field: &Field) -> Result<(), String> {
        let Some((&examples, shape)) = stored.shape.split_first() else {
            return Err(format!("it is a single {}, and its first dimension must count examples", stored.dtype.name()));
        };
        if shape != field.shape {
            return Err(format!("its examples are {} {shape:?}, and {field}", stored.dtype.name()));
        }
        if shape.contains(&0) {
            return Err(format!("its examples are {} {shape:?}: they have no elements", stored.dtype.name()));
        }
        let cast = Cast::new(stored.dtype, field.dtype).ok_or_else(|| {
            let (from, to) = (stored.dtype.name(), field.dtype.name());
            format!("it is {from}, and {field}: values could be lost, so convert it to {to} yourself")
        })?;
        let size = stored.elements().len().checked_div(examples).unwrap_or(0);
        if let Some(lost) = cast.first_lost(stored.elements()) {
            let width = usize::try_from(stored.dtype.primitive().bits() / 8).unwrap_or(1).max(1);
            let example = (lost * width).checked_div(size).unwrap_or(0);
            let (from, to) = (stored.dtype.name(), field.dtype.name());
            return Err(format!("example {example} has a value of {from} that {to} of {} does not hold", field.name));
        }
        if examples > 0 {
            self.pieces.push(Piece { before: self.len, stored, cast, size });
        }
        self.len += examples;
        Ok(())
    }
}

/// Several inputs are fed either by files of one array each or by files that have all of them: else parts would not match.
fn one_kind(files: &[ArrayFile], inputs: &[&str]) -> Result<(), ArrayError> {
    let single = files.iter().find(|f| f.is_single());
    let whole = files.iter().find(|f| !f.is_single());
    match (single, whole) {
        (Some(single), Some(whole)) if inputs.len() > 1 => Err(ArrayError::new(
            single.path.display(),
            format!(
                "it holds one array and {} holds several; give files of one kind, so that examples are in one order",
                whole.path.display()
            ),
        )),
        _ => Ok(()),
    }
}

/// Adds a file that has an array for every input.
fn add_all(columns: &mut [Column], file: &mut ArrayFile, fields: &[Field], inputs: &[&str]) -> Result<(), ArrayError> {
    let arrays = file.names();
    let assigned = names::assign(inputs, &arrays).map_err(|mismatch| {
        let input = inputs.get(mismatch.input).copied().unwrap_or_default();
        let chosen: Vec<_> = mismatch.arrays.iter().filter_map(|&n| arrays.get(n).map(String::as_str)).collect();
        let message = if chosen.is_empty() {
            let there = if arrays.is_empty() { "none".to_owned() } else { arrays.join(", ") };
            format!("no array for the input {input}; there are: {there}. Name an array like the input, or like the end of its path")
        } else {
            format!("{} may be meant for the input {input}; give the array the input's full name", chosen.join(" or "))
        };
        ArrayError::new(file.path.display(), message)
    })?;
    let mut first: Option<(String, usize)> = None;
    for ((column, field), array) in columns.iter_mut().zip(fields).zip(assigned) {
        let name = arrays.get(array).map(String::as_str).unwrap_or_default();
        let before = column.len;
        push(column, file, name, field)?;
        let examples = column.len - before;
        let (other, expected) = first.get_or_insert_with(|| (name.to_owned(), examples));
        if *expected != examples {
            let message = format!("it has {examples} examples, and {other} has {expected}");
            return Err(ArrayError::new(file.place(name), message));
        }
    }
    Ok(())
}

/// Adds a file with the array of one of several inputs, which the name of the file says.
fn add_single(
    columns: &mut [Column],
    file: &mut ArrayFile,
    fields: &[Field],
    inputs: &[&str],
) -> Result<(), ArrayError> {
    let name = file.names().concat();
    // Parts of a data set are numbered: image-003.npy.
    let unnumbered = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['-', '_', '.']);
    let input = names::only(inputs, &name).or_else(|| names::only(inputs, unnumbered));
    let Some((column, field)) = input.and_then(|n| Some((columns.get_mut(n)?, fields.get(n)?))) else {
        let message = format!("its name says for none of the inputs {} that it is for that one", inputs.join(", "));
        return Err(ArrayError::new(file.path.display(), message));
    };
    push(column, file, &name, field)
}

fn push(column: &mut Column, file: &mut ArrayFile, name: &str, field: &Field) -> Result<(), ArrayError> {
    let stored = file.read(name)?;
    column.push(stored, field).map_err(|message| ArrayError::new(file.place(name), message))
}

fn same_length(columns: &[Column], fields: &[Field], paths: &[PathBuf]) -> Result<usize, ArrayError> {
    let all = columns.iter().zip(fields);
    let Some((first, field)) = all.clone().next() else {
        return Err(ArrayError::new(listed(paths), "the step takes no batch that arrays could feed"));
    };
    match all.clone().find(|(column, _)| column.len != first.len) {
        None => Ok(first.len),
        Some((other, of)) => {
            let message =
                format!("{} examples for the input {}, and {} for {}", first.len, field.name, other.len, of.name);
            Err(ArrayError::new(listed(paths), message))
        }
    }
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}
