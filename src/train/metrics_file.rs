//! `metrics.jsonl`, which goes on growing when the disk is full for a while.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Lines reach the system at least this often.
const EVERY: Duration = Duration::from_secs(1);

/// Lines that wait for a disk are kept up to so many bytes.
const MOST_WAITING: usize = 64 << 20;

/// A file of lines. What could not be written is kept and written later, in order; the file never holds half of a line for longer
/// than one attempt takes.
#[derive(Debug)]
pub(super) struct MetricsFile {
    file: File,
    /// Bytes of it that are whole lines.
    written: u64,
    waiting: Vec<u8>,
    tried: Instant,
}

impl MetricsFile {
    /// Makes the file.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Self::reopen(path, 0)
    }

    /// Opens the file and forgets what comes after its first `keep` bytes. It may be shorter.
    pub(super) fn reopen(path: &Path, keep: u64) -> io::Result<Self> {
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        let written = file.metadata()?.len().min(keep);
        Self::lock(file, written)
    }

    /// One process writes to a run. The lock goes with the process.
    fn lock(file: File, written: u64) -> io::Result<Self> {
        #[cfg(unix)]
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            let in_use = error == rustix::io::Errno::WOULDBLOCK;
            if in_use { io::Error::other("another process is training this run") } else { error.into() }
        })?;
        file.set_len(written)?;
        Ok(Self { file, written, waiting: Vec::new(), tried: Instant::now() })
    }

    /// Bytes of the file once all is written.
    pub(super) fn len(&self) -> u64 {
        self.written + self.waiting.len() as u64
    }

    /// Whether no line waits.
    pub(super) fn is_written(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Appends a line.
    pub(super) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.waiting.len().saturating_add(line.len()) > MOST_WAITING {
            let waiting = self.waiting.len() >> 20;
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                format!("{waiting} MiB of metrics wait to be written, and no more are kept in memory"),
            ));
        }
        self.waiting.extend_from_slice(line);
        self.waiting.push(b'\n');
        if self.tried.elapsed() >= EVERY { self.flush() } else { Ok(()) }
    }

    /// Whether a line that does not fit would be lost.
    pub(super) fn is_overfull(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::QuotaExceeded && error.raw_os_error().is_none()
    }

    /// Hands all lines to the system.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.tried = Instant::now();
        self.file.seek(SeekFrom::Start(self.written))?;
        if let Err(error) = self.file.write_all(&self.waiting) {
            // Half a line would be worse than none; where that fails too, the next attempt overwrites it.
            let _ = self.file.set_len(self.written);
            return Err(error);
        }
        self.written = self.len();
        self.waiting.clear();
        Ok(())
    }

    /// A handle that brings what the system has to the disk.
    pub(super) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_comes_after_a_checkpoint_is_forgotten_and_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut file = MetricsFile::create(&path).unwrap();
        for line in ["one", "two", "three"] {
            file.append(line.as_bytes()).unwrap();
        }
        assert_eq!(file.len(), 14);
        file.flush().unwrap();
        drop(file);
        let mut file = MetricsFile::reopen(&path, 8).unwrap();
        assert_eq!(file.len(), 8);
        file.append(b"3").unwrap();
        file.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n3\n");
        drop(file);
        assert_eq!(MetricsFile::reopen(&path, 100).unwrap().len(), 10);
    }

    #[test]
    #[cfg(unix)]
    fn two_processes_do_not_write_one_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let _first = MetricsFile::create(&path).unwrap();
        let second = MetricsFile::reopen(&path, 0).unwrap_err().to_string();
        assert!(second.contains("another process"), "{second}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn lines_wait_for_a_full_disk() {
        // A device that is always full.
        let file = File::options().write(true).open("/dev/full").unwrap();
        let mut metrics = MetricsFile { file, written: 0, waiting: Vec::new(), tried: Instant::now() };
        metrics.append(b"one").unwrap();
        assert!(metrics.flush().is_err());
        assert_eq!((metrics.written, metrics.waiting.as_slice()), (0, b"one\n".as_slice()));
    }
}
