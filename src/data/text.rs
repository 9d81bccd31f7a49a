//! Text as a stream of bytes, and windows drawn from it.
//!
//! [`Corpus`] joins the bytes of files in a fixed order. [`Split`] sets a tenth of
//! it aside, in blocks spread over the text. [`Split::training_window`] is a pure function of seed, step
//! and row.

use std::path::{Path, PathBuf};

use super::files::{self, Bytes, Wanted};
use super::parts::Parts;
use super::{DataError, below, mix};

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
        let found = files::find(paths, Wanted::Text)?;
        let mut corpus = Self { files: Vec::new(), len: 0 };
        for path in &found {
            let bytes = Bytes::open(path)?;
            let length = bytes.as_slice().len();
            if length > 0 {
                corpus.files.push(File { path: path.clone(), start: corpus.len, bytes });
                corpus.len += length;
            }
        }
        if corpus.len > 0 { Ok(corpus) } else { Err(DataError::empty(paths, &found, "text files")) }
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// SHA-256 of all text, in lower-case hexadecimal; of more than a gibibyte, of evenly spread parts of it. Names of files do
    /// not count.
    #[must_use]
    pub fn sha256(&self) -> String {
        super::sum::sum(self.files.iter().map(|file| file.bytes.as_slice()))
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

/// The corpus cut into a part to train on and a part held out.
///
/// The text is cut into blocks of equal size and every tenth is held out, so that the held-out part is like the
/// rest; no window lies in both. A text too short for that gives its last tenth, at least one window.
#[derive(Debug)]
pub struct Split {
    corpus: Corpus,
    parts: Parts,
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
        let parts = Parts::new(corpus.len, window, block);
        Ok(Self { corpus, parts })
    }

    /// The whole text.
    #[must_use]
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// Bytes to train on.
    #[must_use]
    pub fn training_len(&self) -> usize {
        self.parts.training.len()
    }

    /// Bytes held out.
    #[must_use]
    pub fn held_out_len(&self) -> usize {
        self.parts.held_out.len()
    }

    /// Fills `target` with a window to train on: uniform over all positions, drawn anew for each row of each step.
    ///
    /// `target` has the length of a window.
    pub fn training_window(&self, seed: u64, step: u64, row: u64, target: &mut [u8]) {
        let training = &self.parts.training;
        let draw = below(mix(mix(mix(seed) ^ step) ^ row), training.starts());
        self.corpus.copy(training.start(draw), target);
    }

    /// Number of held-out windows that do not overlap.
    #[must_use]
    pub fn held_out_windows(&self) -> usize {
        self.parts.held_out.windows()
    }

    /// Fills `target` with held-out window `index`, counted modulo [`Split::held_out_windows`].
    pub fn held_out_window(&self, index: usize, target: &mut [u8]) {
        self.corpus.copy(self.parts.held_out.window(index), target);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::files::MAP_FROM;

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
            for (segments, mark) in [(&split.parts.training, 1), (&split.parts.held_out, 2)] {
                for s in &segments.all {
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
}
