//! Files that hold arrays, and an array in one of them.

use std::io::{self, Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype as Safe;
use safetensors::tensor::Metadata;
use zip::{CompressionMethod, ZipArchive};

use super::{ArrayError, npy};
use crate::bundle::Dtype;
use crate::data::DataError;
use crate::data::files::{ArrayFormat, Bytes};

/// No more than this comes of a byte that deflate packed.
const LARGEST_RATIO: u64 = 1032;

/// An array, row-major and little-endian.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    bytes: Arc<Bytes>,
    range: Range<usize>,
}

impl Stored {
    /// The array that the header of `bytes` describes, somewhere in there; it must end with them.
    fn npy(bytes: &Arc<Bytes>, within: Range<usize>) -> Result<Self, String> {
        let content = bytes.as_slice().get(within.clone()).unwrap_or_default();
        let header = npy::header(content)?;
        let overflow = || "its header promises more than a file can hold".to_owned();
        let shape: Option<Vec<_>> = header.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let shape = shape.ok_or_else(overflow)?;
        let width = usize::try_from(header.dtype.primitive().bits() / 8).unwrap_or(1);
        let size = shape.iter().try_fold(width, |size, &d| size.checked_mul(d)).ok_or_else(overflow)?;
        let found = content.len().saturating_sub(header.start);
        if found != size {
            let what = if found < size { "it is truncated: it has" } else { "it has" };
            return Err(format!(
                "{what} {found} bytes of elements, and {} of {shape:?} has {size}",
                header.dtype.name()
            ));
        }
        let start = within.start + header.start;
        Ok(Self { dtype: header.dtype, shape, bytes: Arc::clone(bytes), range: start..start + size })
    }

    /// The elements.
    pub(super) fn elements(&self) -> &[u8] {
        self.bytes.as_slice().get(self.range.clone()).unwrap_or_default()
    }
}

/// An open file.
pub(super) struct ArrayFile {
    pub(super) path: PathBuf,
    bytes: Arc<Bytes>,
    content: Content,
}

enum Content {
    Npy { name: String },
    Npz(ZipArchive<Cursor<Shared>>),
    Safetensors { start: usize, metadata: Metadata },
}

/// The bytes of a file, for a reader that owns what it reads.
#[derive(Clone)]
struct Shared(Arc<Bytes>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl ArrayFile {
    /// Opens a file of the format that its name says.
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let refused = |message: String| ArrayError::new(path.display(), message);
        let format = ArrayFormat::of(path).ok_or_else(|| {
            refused("it is no file with arrays by its name; .npz, .npy and .safetensors are read".to_owned())
        })?;
        let bytes = Arc::new(Bytes::open(path)?);
        let content = match format {
            ArrayFormat::Npy => {
                Content::Npy { name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned() }
            }
            ArrayFormat::Npz => {
                let archive = ZipArchive::new(Cursor::new(Shared(Arc::clone(&bytes))));
                Content::Npz(archive.map_err(|e| refused(format!("it is no .npz file, or a truncated one ({e})")))?)
            }
            ArrayFormat::Safetensors => {
                let (start, metadata) = safetensors_header(bytes.as_slice()).map_err(refused)?;
                Content::Safetensors { start, metadata }
            }
        };
        Ok(Self { path: path.to_owned(), bytes, content })
    }

    /// Whether the file is one array that has the file's name.
    pub(super) fn is_single(&self) -> bool {
        matches!(self.content, Content::Npy { .. })
    }

    /// The names of its arrays, in the order in which they lie there.
    pub(super) fn names(&self) -> Vec<String> {
        match &self.content {
            Content::Npy { name } => vec![name.clone()],
            Content::Npz(archive) => {
                archive.file_names().filter_map(|name| Some(name.strip_suffix(".npy")?.to_owned())).collect()
            }
            Content::Safetensors { metadata, .. } => metadata.offset_keys(),
        }
    }

    /// Where an array is, for an error.
    pub(super) fn place(&self, name: &str) -> String {
        if self.is_single() {
            self.path.display().to_string()
        } else {
            format!("{}, array {name}", self.path.display())
        }
    }

    /// One of its arrays. A compressed one is unpacked into memory, others stay in the file.
    pub(super) fn read(&mut self, name: &str) -> Result<Stored, ArrayError> {
        let stored = match &mut self.content {
            Content::Npy { .. } => Stored::npy(&self.bytes, 0..self.bytes.as_slice().len()),
            Content::Npz(archive) => read_entry(archive, &self.bytes, &format!("{name}.npy")),
            Content::Safetensors { start, metadata } => {
                metadata.info(name).ok_or_else(|| "it is not there".to_owned()).and_then(|info| {
                    let dtype = safetensors_dtype(info.dtype)?;
                    let (from, to) = info.data_offsets;
                    // Both are within the file, see `safetensors_header`.
                    let range = *start + from..*start + to;
                    Ok(Stored { dtype, shape: info.shape.clone(), bytes: Arc::clone(&self.bytes), range })
                })
            }
        };
        stored.map_err(|message| ArrayError::new(self.place(name), message))
    }
}

/// Reads an entry once, which compares it with its checksum.
fn read_entry(archive: &mut ZipArchive<Cursor<Shared>>, bytes: &Arc<Bytes>, name: &str) -> Result<Stored, String> {
    let damaged = |e: &dyn std::fmt::Display| format!("it is damaged ({e})");
    let mut entry = archive.by_name(name).map_err(|e| damaged(&e))?;
    let size = entry.size();
    if entry.compression() == CompressionMethod::Stored {
        io::copy(&mut entry, &mut io::sink()).map_err(|e| damaged(&e))?;
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(usize::try_from(size).ok()?)?));
        return Stored::npy(bytes, range.ok_or_else(|| damaged(&"it lies beyond the end"))?);
    }
    let mut unpacked = Vec::new();
    let plausible = size.min(entry.compressed_size().saturating_mul(LARGEST_RATIO));
    let memory = usize::try_from(plausible).ok().filter(|&n| unpacked.try_reserve_exact(n).is_ok());
    memory.ok_or_else(|| {
        format!("it unpacks to {size} bytes, for which there is no memory; save it with np.savez, uncompressed")
    })?;
    // One byte more than there should be, so that there being more is seen.
    (&mut entry).take(size.saturating_add(1)).read_to_end(&mut unpacked).map_err(|e| damaged(&e))?;
    if unpacked.len() as u64 != size {
        return Err(damaged(&format_args!("it does not unpack to {size} bytes")));
    }
    let end = unpacked.len();
    Stored::npy(&Arc::new(Bytes::Read(unpacked)), 0..end)
}

/// Where the elements begin, and what is there. All of it lies within the file.
fn safetensors_header(bytes: &[u8]) -> Result<(usize, Metadata), String> {
    let truncated = || "it is no safetensors file, or a truncated one".to_owned();
    let (length, rest) = bytes.split_first_chunk().ok_or_else(truncated)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| truncated())?;
    let (header, elements) = rest.split_at_checked(length).ok_or_else(truncated)?;
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|e| format!("its header is damaged, or it is no safetensors file ({e})"))?;
    if metadata.data_len() != elements.len() {
        let (found, said) = (elements.len(), metadata.data_len());
        return Err(format!(
            "it is truncated or damaged: it has {found} bytes of elements, and its header says {said}"
        ));
    }
    Ok((bytes.len() - elements.len(), metadata))
}

fn safetensors_dtype(dtype: Safe) -> Result<Dtype, String> {
    Dtype::from_safetensors(dtype).ok_or_else(|| format!("it is of type {dtype:?}, which no input can be fed from"))
}
