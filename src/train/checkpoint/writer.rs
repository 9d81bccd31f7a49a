//! Writing checkpoints while training goes on.

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::format::{Array, Checkpoint};
use super::store::{CheckpointError, Store};
use crate::engine::EngineError;
use crate::train::stepper::StateCopy;

/// A checkpoint to write.
#[derive(Debug)]
pub struct Job {
    /// All of it but the elements of its arrays, and the checksum of the data.
    pub checkpoint: Checkpoint,
    /// These, on their way from the device, in the order of its arrays.
    pub copies: StateCopy,
    /// The metrics, which must be on the disk before the checkpoint that counts on them.
    pub metrics: File,
}

/// What became of a checkpoint.
#[derive(Debug)]
pub struct Written {
    /// Steps done.
    pub step: u64,
    /// Its folder and its size in bytes, or why there is none.
    pub result: Result<(PathBuf, u64), CheckpointError>,
    /// How long it took, in the background.
    pub took: Duration,
}

/// A thread that writes checkpoints, one after another.
#[derive(Debug)]
pub struct Writer {
    jobs: Option<SyncSender<Job>>,
    written: Receiver<Written>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts it. It begins with the checksum of the data: training need not wait for what the first checkpoint needs.
    #[must_use]
    pub fn new(store: Store, data_sha256: impl FnOnce() -> String + Send + 'static) -> Self {
        // A second one may wait while one is being written: more would only fill the host's memory.
        let (jobs, queue) = sync_channel(1);
        let (results, written) = channel();
        let thread = thread::spawn(move || write_all(&store, &data_sha256(), &queue, &results));
        Self { jobs: Some(jobs), written, thread: Some(thread) }
    }

    /// Hands over a checkpoint. Returns at once unless two are waiting.
    pub fn write(&self, job: Job) {
        if let Some(jobs) = &self.jobs
            && jobs.send(job).is_err()
        {
            tracing::error!("the thread that writes checkpoints has ended, which is a fault of this program");
        }
    }

    /// What has been written since this was asked last.
    pub fn written(&self) -> Vec<Written> {
        self.written.try_iter().collect()
    }

    /// Waits until all is written, and returns what has been since [`Writer::written`] was asked last.
    pub fn finish(mut self) -> Vec<Written> {
        self.jobs = None;
        self.join();
        self.written()
    }

    fn join(&mut self) {
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes checkpoints has failed, which is a fault of this program");
        }
    }
}

impl Drop for Writer {
    /// What was handed over is written before the process goes on.
    fn drop(&mut self) {
        self.jobs = None;
        self.join();
    }
}

fn write_all(store: &Store, data_sha256: &str, queue: &Receiver<Job>, results: &Sender<Written>) {
    for Job { mut checkpoint, copies, metrics } in queue {
        let started = Instant::now();
        let step = checkpoint.step;
        data_sha256.clone_into(&mut checkpoint.fingerprint.data_sha256);
        let filled = copies.wait().map(|values| fill(&mut checkpoint.arrays, values));
        let result = match filled {
            Ok(()) => metrics
                .sync_all()
                .map_err(|source| CheckpointError::Metrics { source })
                .and_then(|()| store.write(&checkpoint)),
            Err(error) => Err(error.into()),
        };
        if results.send(Written { step, result, took: started.elapsed() }).is_err() {
            return;
        }
    }
}

fn fill(arrays: &mut [Array], values: Vec<Vec<u8>>) {
    for (array, bytes) in arrays.iter_mut().zip(values) {
        array.bytes = bytes;
    }
}

impl From<EngineError> for CheckpointError {
    fn from(error: EngineError) -> Self {
        Self::State(Box::new(error))
    }
}
