//! Text as a stream of bytes, and windows drawn from it.
//!
//! [`Corpus`] joins the bytes of files in a fixed order. [`Split`] sets a tenth of
//! it aside, in blocks spread over the text. [`Split::training_window`] is a pure function of seed, step
//! and row: the same seed gives the same order whatever ran before, so that a run can be repeated and resumed.
//!
//! Files must not shrink while they are in use: they are mapped, and the system
//! ends a process that reads a mapping beyond the end of its file.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use mmap_io::MemoryMappedFile;
use thiserror::Error;

/// Files below this size are read rather than mapped: a mapping costs at least a page and an entry in the kernel's table.
const MAP_FROM: u64 = 64 * 1024;

/// Names of folders that are never entered: build products and things that nobody wrote.
const SKIPPED_FOLDERS: &[&str] = &["target", "node_modules", "__pycache__", "runs"];

/// How much of the head of a file decides whether it is text.
const SNIFFED: u64 = 8 * 1024;

/// One part in so many is held out.
const HELD_OUT: usize = 10;

/// Why there is no data to train on.
#[derive(Debug, Error)]
pub enum DataError {
    /// A path that cannot be read.
    #[error("cannot read the data {}: {source}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Nothing there.
    #[error("there is no data: {}; name files that are not empty, or folders with text files", what)]
    Empty {
        /// What was found.
        what: String,
    },
    /// Too little to cut windows from.
    #[error(
        "the data has {bytes} bytes, and a window has {window}; at least {needed} bytes are needed, for one window to train on \
         and one held out; give more files"
    )]
    TooShort {
        /// Bytes there are.
        bytes: usize,
        /// Bytes of a window.
        window: usize,
        /// Bytes needed.
        needed: usize,
    },
}

/// The bytes of files, joined in a fixed order.
#[derive(Debug)]
pub struct Corpus {
    files: Vec<File>,
    len: usize,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    /// Position of the first byte in the corpus.
    start: usize,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Read(Vec<u8>),
    Mapped(MemoryMappedFile),
}

impl Corpus {
    /// Opens files, and folders with all text files below them.
    ///
    /// Paths keep their order; inside a folder files are sorted by path. A folder's hidden entries, links, build products
    /// (`target`, `node_modules`, `__pycache__`, `runs`) and files that are not UTF-8 text are passed over; a file that is named itself is always taken.
    ///
    /// # Errors
    ///
    /// Where a path cannot be read, or nothing is found.
    pub fn open(paths: &[PathBuf]) -> Result<Self, DataError> {
        let mut found = Vec::new();
        for path in paths {
            let info = fs::metadata(path).map_err(|source| DataError::Read { path: path.clone(), source })?;
            if info.is_dir() {
                collect(path, &mut found)?;
            } else {
                found.push(path.clone());
            }
        }
        let mut corpus = Self { files: Vec::new(), len: 0 };
        for path in &found {
            let bytes = open(path).map_err(|source| DataError::Read { path: path.clone(), source })?;
            let length = bytes.as_slice().len();
            if length > 0 {
                corpus.files.push(File { path: path.clone(), start: corpus.len, bytes });
                corpus.len += length;
            }
        }
        if corpus.len > 0 {
            return Ok(corpus);
        }
        let named = paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        Err(DataError::Empty {
            what: match (paths.is_empty(), found.is_empty()) {
                (true, _) => "no path was given".to_owned(),
                (false, true) => format!("{named} has no text files"),
                (false, false) => format!("{named} has no bytes"),
            },
        })
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty corpus is refused when it is opened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The files in order, with their sizes in bytes.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&Path, usize)> + '_ {
        self.files.iter().map(|f| (f.path.as_path(), f.bytes.as_slice().len()))
    }

    /// Copies the bytes from position `at` on; what lies beyond the end is left as it was.
    pub fn copy(&self, at: usize, target: &mut [u8]) {
        let first = self.files.partition_point(|f| f.start <= at).saturating_sub(1);
        let mut at = at;
        let mut rest = target;
        for file in self.files.iter().skip(first) {
            let Some(source) = file.bytes.as_slice().get(at.saturating_sub(file.start)..) else { return };
            let count = source.len().min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            now.iter_mut().zip(source).for_each(|(t, s)| *t = *s);
            rest = later;
            at += count;
            if rest.is_empty() {
                return;
            }
        }
    }
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Mapped(map) => map.as_slice_bytes(0, map.len()).unwrap_or_default(),
        }
    }
}

/// A range of positions in the corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    start: usize,
    len: usize,
    /// Window starts in all segments before this one.
    starts_before: u64,
}

/// The corpus cut into a part to train on and a part held out.
///
/// The text is cut into blocks of equal size and every tenth is held out, so that the held-out part is like the
/// rest; no window lies in both. A text too short for that gives its last tenth, at least one window.
#[derive(Debug)]
pub struct Split {
    corpus: Corpus,
    window: usize,
    training: Vec<Segment>,
    training_starts: u64,
    held_out: Vec<Segment>,
}

impl Split {
    /// Cuts the corpus for windows of `window` bytes.
    ///
    /// # Errors
    ///
    /// Where it has fewer than two windows.
    pub fn new(corpus: Corpus, window: usize) -> Result<Self, DataError> {
        let window = window.max(1);
        let needed = window.saturating_mul(2);
        if corpus.len < needed {
            return Err(DataError::TooShort { bytes: corpus.len, window, needed });
        }
        // A block holds several windows, since those across its border are lost.
        let block = window.saturating_mul(16).max(4096);
        let blocks = corpus.len / block;
        let (mut training, mut held_out) = (Vec::new(), Vec::new());
        if blocks < HELD_OUT {
            let held = (corpus.len / HELD_OUT).max(window);
            training.push((0, corpus.len - held));
            held_out.push((corpus.len - held, held));
        } else {
            let mut start = 0;
            for index in (HELD_OUT - 1..blocks).step_by(HELD_OUT) {
                training.push((start, index * block - start));
                held_out.push((index * block, block));
                start = (index + 1) * block;
            }
            training.push((start, corpus.len - start));
        }
        let (training, training_starts) = segments(&training, window);
        let (held_out, _) = segments(&held_out, window);
        Ok(Self { corpus, window, training, training_starts, held_out })
    }

    /// The whole text.
    #[must_use]
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// Bytes to train on.
    #[must_use]
    pub fn training_len(&self) -> usize {
        self.training.iter().map(|s| s.len).sum()
    }

    /// Bytes held out.
    #[must_use]
    pub fn held_out_len(&self) -> usize {
        self.held_out.iter().map(|s| s.len).sum()
    }

    /// Fills `target` with a window to train on: uniform over all positions, drawn anew for each row of each step.
    ///
    /// `target` has the length of a window.
    pub fn training_window(&self, seed: u64, step: u64, row: u64, target: &mut [u8]) {
        let draw = below(mix(mix(mix(seed) ^ step) ^ row), self.training_starts);
        let after = self.training.partition_point(|s| s.starts_before <= draw);
        if let Some(segment) = self.training.get(after.saturating_sub(1)) {
            let offset = usize::try_from(draw - segment.starts_before).unwrap_or(0);
            self.corpus.copy(segment.start + offset, target);
        }
    }

    /// Number of held-out windows that do not overlap.
    #[must_use]
    pub fn held_out_windows(&self) -> usize {
        self.held_out.iter().map(|s| s.len / self.window).sum()
    }

    /// Fills `target` with held-out window `index`, counted modulo [`Split::held_out_windows`].
    pub fn held_out_window(&self, index: usize, target: &mut [u8]) {
        let mut index = index % self.held_out_windows().max(1);
        for segment in &self.held_out {
            let count = segment.len / self.window;
            if index < count {
                self.corpus.copy(segment.start + index * self.window, target);
                return;
            }
            index -= count;
        }
    }
}

/// Segments that hold a window, and the number of window starts in all of them.
fn segments(ranges: &[(usize, usize)], window: usize) -> (Vec<Segment>, u64) {
    let mut starts = 0;
    let mut segments = Vec::new();
    for &(start, len) in ranges.iter().filter(|&&(_, len)| len >= window) {
        segments.push(Segment { start, len, starts_before: starts });
        starts += (len - window + 1) as u64;
    }
    (segments, starts)
}

/// The finalizer of SplitMix64: a fixed bijection whose output looks random. Changing it changes every run.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Maps a random number to `0..bound` by its high bits; the bias is below `bound / 2^64`.
pub(crate) fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

fn open(path: &Path) -> io::Result<Bytes> {
    let info = fs::metadata(path)?;
    // Pipes and devices have no length to map.
    if !info.is_file() || info.len() < MAP_FROM {
        return fs::read(path).map(Bytes::Read);
    }
    MemoryMappedFile::open_ro(path).map(Bytes::Mapped).map_err(io::Error::other)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| DataError::Read { path, source }
    };
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
                collect(&path, found)?;
            }
        } else if info.is_file() && is_text(&path).map_err(failed(&path))? {
            found.push(path);
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// `count` bytes that no two positions close to each other share a run of.
    fn noise(count: usize) -> Vec<u8> {
        (0..count).map(|i| (mix(i as u64) % 251) as u8).collect()
    }

    #[test]
    fn folders_give_their_text_files_sorted() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        write(at, "b.txt", b"bb");
        write(at, "a/z.txt", b"az");
        write(at, ".git/config", b"no");
        write(at, "target/x.txt", b"no");
        write(at, ".hidden", b"no");
        write(at, "zero.bin", b"n\0o");
        write(at, "latin1", b"\xe9t\xe9");
        write(at, "empty", b"");
        let named = write(at, "x/named.bin", b"\0\x01");
        let corpus = Corpus::open(&[named.clone(), at.to_owned()]).unwrap();
        let names: Vec<_> = corpus.files().map(|(p, n)| (p.strip_prefix(at).unwrap().to_owned(), n)).collect();
        assert_eq!(names, [("x/named.bin".into(), 2), ("a/z.txt".into(), 2), ("b.txt".into(), 2)]);
        let mut all = [0; 6];
        corpus.copy(0, &mut all);
        assert_eq!(&all, b"\0\x01azbb");
        let mut part = [0; 3];
        corpus.copy(1, &mut part);
        assert_eq!(&part, b"\x01az");
    }

    #[test]
    fn long_files_are_mapped_and_read_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let long = noise(MAP_FROM as usize * 2 + 3);
        let paths = [write(folder.path(), "long", &long), write(folder.path(), "short", b"end")];
        let corpus = Corpus::open(&paths).unwrap();
        assert!(matches!(corpus.files[0].bytes, Bytes::Mapped(_)) && matches!(corpus.files[1].bytes, Bytes::Read(_)));
        let mut bytes = vec![0; corpus.len()];
        corpus.copy(0, &mut bytes);
        assert_eq!(bytes, [&long[..], b"end"].concat());
    }

    #[test]
    fn without_bytes_there_is_no_corpus() {
        let folder = tempfile::tempdir().unwrap();
        let empty = write(folder.path(), "empty", b"");
        for (paths, part) in [
            (vec![], "no path was given"),
            (vec![empty], "has no bytes"),
            (vec![folder.path().join("none")], "cannot read the data"),
        ] {
            let error = Corpus::open(&paths).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        fs::remove_file(folder.path().join("empty")).unwrap();
        assert!(Corpus::open(&[folder.path().to_owned()]).unwrap_err().to_string().contains("no text files"));
    }

    #[test]
    fn held_out_windows_share_no_byte_with_training_windows() {
        let folder = tempfile::tempdir().unwrap();
        // 18 and 400 bytes: the shortest texts; 400_000: many blocks.
        for (length, window) in [(18, 9), (400, 9), (40_000, 129), (400_000, 129), (400_001, 9)] {
            let corpus = Corpus::open(&[write(folder.path(), "text", &noise(length))]).unwrap();
            let split = Split::new(corpus, window).unwrap();
            let mut role = vec![0u8; length];
            for (segments, mark) in [(&split.training, 1), (&split.held_out, 2)] {
                for s in segments.iter() {
                    assert!(s.len >= window);
                    role[s.start..s.start + s.len].iter_mut().for_each(|r| *r |= mark);
                }
            }
            assert!(!role.contains(&3), "{length} bytes: parts overlap");
            let held = split.held_out_len();
            assert!(held >= window && held <= (length / 9).max(window), "{length} bytes: {held} held out");
            assert!(split.training_len() + held <= length && split.held_out_windows() > 0);
        }
    }

    #[test]
    fn too_short_a_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let corpus = Corpus::open(&[write(folder.path(), "text", &noise(17))]).unwrap();
        let error = Split::new(corpus, 9).unwrap_err().to_string();
        assert!(error.contains("17 bytes") && error.contains("18 bytes are needed"), "{error}");
    }

    #[test]
    fn windows_depend_on_seed_step_and_row_alone() {
        let folder = tempfile::tempdir().unwrap();
        let text = noise(100_000);
        let corpus = Corpus::open(&[write(folder.path(), "text", &text)]).unwrap();
        let split = Split::new(corpus, 16).unwrap();
        let window = |seed, step, row| {
            let mut window = [0; 16];
            split.training_window(seed, step, row, &mut window);
            window
        };
        assert_eq!(window(1, 2, 3), window(1, 2, 3));
        let others = [window(1, 2, 3), window(2, 2, 3), window(1, 3, 3), window(1, 2, 4), window(3, 2, 1)];
        for (i, a) in others.iter().enumerate() {
            assert!(others[..i].iter().all(|b| a != b));
            assert!(text.windows(16).any(|w| w == a));
        }
        // Draws spread over the text: each quarter gets about a quarter of them.
        let mut quarters = [0; 4];
        for step in 0..4000 {
            let position = text.windows(16).position(|w| w == window(7, step, 0)).unwrap();
            quarters[position * 4 / text.len()] += 1;
        }
        assert!(quarters.iter().all(|&q| (850..1150).contains(&q)), "{quarters:?}");
    }

    #[test]
    fn the_order_of_windows_is_pinned() {
        // Published runs are repeated by their seed: these numbers must not change.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!([mix(1), mix(2), mix(3)].map(|r| below(r, 1000)), [566, 591, 113]);
    }
}
