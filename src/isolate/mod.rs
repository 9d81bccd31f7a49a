//! Work in a child process, so that a plugin that aborts on a bad program does not take us along.
//!
//! A [`Worker`] says which program to start; a [`Job`] is one private folder and one child in it. The parent writes
//! big inputs as files into the folder and runs a [`Task`], a value that travels as JSON; the child, `entropic worker
//! FOLDER`, does the task, leaves big results as files, and writes its reply to a file, since plugins print to both
//! standard streams. Whatever the child does, [`Job::run`] returns: a reply, or an [`IsolateError`] that says how the
//! child ended and what it said last.
//!
//! A child ends with its parent: it reads its standard input, which the parent holds open and never writes to.

mod child;
mod last_words;

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use thiserror::Error;

pub use child::{ServeError, paragraph, serve};

/// What a child is asked to do. One variant for each kind of [`Task`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// StableHLO becomes HLO.
    Convert(crate::input::Convert),
    /// A module is compiled for a target.
    Compile(crate::audit::Compile),
    /// HLO becomes an executable.
    Build(crate::build::Build),
}

/// A piece of work for a child.
pub trait Task: Clone + Into<Request> {
    /// What comes back.
    type Reply: Serialize + DeserializeOwned;

    /// Does the work; runs in the child. `folder` is the job's.
    ///
    /// # Errors
    ///
    /// Arrive in the parent as [`IsolateError::Failed`], the chain of causes in one paragraph.
    fn run(&self, folder: &Path) -> Result<Self::Reply, TaskError>;
}

/// Why a task failed, in the child.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

/// The subcommand that [`serve`]s.
pub const SUBCOMMAND: &str = "worker";

/// Files of a job that tasks must not use.
const REQUEST: &str = "request.json";
const REPLY: &str = "reply.json";
const OUTPUT: &str = "output";

/// How often a child with a time limit is looked at.
const POLL: Duration = Duration::from_millis(5);

/// What the child writes as its reply.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer<R> {
    Done(R),
    Failed(String),
}

/// Why there is no reply.
#[derive(Debug, Error)]
pub enum IsolateError {
    /// The folder of the job.
    #[error("cannot use {} to talk to a child process: {source}", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The child did not start.
    #[error("cannot start {} as a child process: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A signal ended the child: its plugin aborted, as a rule.
    #[error("the child process was ended by {signal}{}", said(last_words))]
    Died {
        /// Name of the signal, and what it means.
        signal: String,
        /// The last that it printed.
        last_words: String,
    },
    /// The child ended without a reply.
    #[error("the child process exited with code {code} and gave no reply{}", said(last_words))]
    Exited {
        /// Its exit code.
        code: i32,
        /// The last that it printed.
        last_words: String,
    },
    /// The task failed in the child, in order.
    #[error("{message}")]
    Failed {
        /// Why.
        message: String,
    },
    /// The child took too long and was ended.
    #[error("the child process was ended, it took longer than {} s{}", limit.as_secs_f64(), said(last_words))]
    TimedOut {
        /// The time it had.
        limit: Duration,
        /// The last that it printed.
        last_words: String,
    },
    /// A reply that is none.
    #[error("the reply of {} is not understood: {source}; is it another version of this program?", program.display())]
    Reply {
        /// The program.
        program: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// How this program is started again, where that is not by its own file; see [`started_by`].
static STARTED_BY: OnceLock<(PathBuf, Vec<OsString>)> = OnceLock::new();

/// Says how this program is started where it lives in another one: by `program` with `arguments` before its own, as in
/// `python -m entropic`. What was said first counts.
pub fn started_by(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = OsString>) {
    STARTED_BY.get_or_init(|| (program.into(), arguments.into_iter().collect()));
}

/// How to start a child: the program, its environment, its time.
#[derive(Debug, Clone)]
pub struct Worker {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    limit: Option<Duration>,
}

impl Worker {
    /// A child of the given program, which must be `entropic`.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), environment: Vec::new(), limit: None }
    }

    /// A child of the running program.
    ///
    /// # Errors
    ///
    /// Where the system does not say which file that is.
    pub fn this_program() -> Result<Self, IsolateError> {
        if let Some((program, arguments)) = STARTED_BY.get() {
            return Ok(Self { arguments: arguments.clone(), ..Self::new(program) });
        }
        let failed = |source| IsolateError::Start { program: PathBuf::from("this program"), source };
        env::current_exe().map(Self::new).map_err(failed)
    }

    /// Sets a variable in the child's environment, which otherwise is ours.
    #[must_use]
    pub fn environment(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Gives each child this much time; without a limit it has as long as it takes.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// A folder for one child.
    ///
    /// # Errors
    ///
    /// Where no temporary folder can be made.
    pub fn job(&self) -> Result<Job, IsolateError> {
        let failed = |source| IsolateError::Folder { path: env::temp_dir(), source };
        let mut builder = tempfile::Builder::new();
        builder.prefix("entropic-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
        Ok(Job { worker: self.clone(), folder: builder.tempdir().map_err(failed)? })
    }
}

/// One child and its private folder, which goes when this is dropped.
#[derive(Debug)]
pub struct Job {
    worker: Worker,
    folder: TempDir,
}

impl Job {
    /// The folder. It is the child's current folder, too, so paths in a task are absolute or relative to it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Puts a file into the folder.
    ///
    /// # Errors
    ///
    /// Where the system refuses.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), IsolateError> {
        let path = self.folder().join(name);
        fs::write(&path, bytes).map_err(|source| IsolateError::Folder { path, source })
    }

    /// Reads a file that the child left in the folder.
    ///
    /// # Errors
    ///
    /// Where it did not.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, IsolateError> {
        let path = self.folder().join(name);
        fs::read(&path).map_err(|source| IsolateError::Folder { path, source })
    }

    /// Runs a task in a child and waits for it.
    ///
    /// A reply that was written counts, whatever the plugin does while its process ends.
    ///
    /// # Errors
    ///
    /// Where the child does not start, dies, takes too long, or says that the task failed.
    pub fn run<T: Task>(&self, task: &T) -> Result<T::Reply, IsolateError> {
        let unreadable = |source| IsolateError::Reply { program: self.worker.program.clone(), source };
        let request: Request = task.clone().into();
        self.write(REQUEST, &serde_json::to_vec(&request).map_err(unreadable)?)?;
        let ended = self.wait(self.start()?)?;
        match (fs::read(self.folder().join(REPLY)), ended) {
            (Ok(reply), Some(_)) => match serde_json::from_slice(&reply).map_err(unreadable)? {
                Answer::Done(reply) => Ok(reply),
                Answer::Failed(message) => Err(IsolateError::Failed { message }),
            },
            (Err(_), Some(status)) => Err(self.died(status)),
            (_, None) => {
                let limit = self.worker.limit.unwrap_or_default();
                Err(IsolateError::TimedOut { limit, last_words: self.last_words() })
            }
        }
    }

    fn start(&self) -> Result<Child, IsolateError> {
        let path = self.folder().join(OUTPUT);
        let failed = |source| IsolateError::Folder { path: path.clone(), source };
        let output = File::create(&path).map_err(failed)?;
        let errors = output.try_clone().map_err(failed)?;
        let failed = |source| IsolateError::Start { program: self.worker.program.clone(), source };
        // The child runs elsewhere: what it leaves when it aborts goes with the folder.
        let program = std::path::absolute(&self.worker.program).map_err(failed)?;
        let mut command = Command::new(program);
        // Ctrl-C is the parent's to answer: it may want to end in order, and the child ends when the parent does.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
            .args(&self.worker.arguments)
            .arg(SUBCOMMAND)
            .arg(self.folder())
            .current_dir(self.folder())
            .envs(self.worker.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(failed)
    }

    /// How the child ended; `None` where it was out of time and was ended.
    fn wait(&self, mut child: Child) -> Result<Option<ExitStatus>, IsolateError> {
        let failed = |source| IsolateError::Start { program: self.worker.program.clone(), source };
        // `Child::wait` closes standard input, which says to the child that we are gone.
        let _alive = child.stdin.take();
        let Some(limit) = self.worker.limit else { return child.wait().map(Some).map_err(failed) };
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                return Ok(Some(status));
            }
            if start.elapsed() >= limit {
                // It may have ended by itself just now; either way it is gone after the wait.
                let _ = child.kill();
                child.wait().map_err(failed)?;
                return Ok(None);
            }
            std::thread::sleep(POLL.min(limit));
        }
    }

    fn died(&self, status: ExitStatus) -> IsolateError {
        let last_words = self.last_words();
        match status.code() {
            Some(code) => IsolateError::Exited { code, last_words },
            None => IsolateError::Died { signal: signal(status), last_words },
        }
    }

    fn last_words(&self) -> String {
        last_words::of(&self.folder().join(OUTPUT))
    }
}

fn said(last_words: &str) -> String {
    if last_words.is_empty() { String::new() } else { format!("; it said: {last_words}") }
}

#[cfg(unix)]
fn signal(status: ExitStatus) -> String {
    use nix::sys::signal::Signal;
    use std::os::unix::process::ExitStatusExt;
    let number = status.signal().unwrap_or_default();
    let Ok(signal) = Signal::try_from(number) else { return format!("signal {number}") };
    let meaning = match signal {
        Signal::SIGABRT => " (it aborted)",
        Signal::SIGSEGV | Signal::SIGBUS => " (an invalid memory access)",
        Signal::SIGILL => " (an illegal instruction)",
        Signal::SIGFPE => " (an arithmetic fault)",
        Signal::SIGKILL => " (as the system does to a process that takes too much memory)",
        _ => "",
    };
    format!("{signal}{meaning}")
}

#[cfg(not(unix))]
fn signal(status: ExitStatus) -> String {
    status.to_string()
}
