//! Contenders in another process, which computes nothing while it waits for its turn (benches/python/serve.py).

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child as Process, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::rounds::Contender;
use crate::{Options, text};

/// An engine in a process of its own. It ends with the last contender.
pub(crate) struct Child {
    pipes: Rc<RefCell<Pipes>>,
    hello: Hello,
}

#[derive(Debug, Deserialize)]
struct Hello {
    names: Vec<String>,
    versions: String,
}

#[derive(Debug, Deserialize)]
struct Answer {
    seconds: f64,
}

struct Pipes {
    process: Process,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Child {
    /// Starts an engine, `jax` or `torch`, for the bundle of the options.
    pub(crate) fn start(options: &Options, engine: &str) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(&options.python);
        command.arg(root.join("benches/python/serve.py")).arg(engine).arg("--model");
        command.arg(options.model.file_name().context("--model has no name")?).args(text());
        command.env("PYTHONPATH", root.join("models/export"));
        command.env("JAX_PLATFORMS", if options.plugin == "cpu" { "cpu" } else { "cuda" });
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}; `cargo xtask bench` makes one", options.python.display()))?;
        let requests = process.stdin.take().context("no pipe")?;
        let answers = BufReader::new(process.stdout.take().context("no pipe")?);
        let mut pipes = Pipes { process, requests, answers };
        let hello = pipes.read().with_context(|| format!("the {engine} process did not start"))?;
        Ok(Self { pipes: Rc::new(RefCell::new(pipes)), hello })
    }

    pub(crate) fn versions(&self) -> String {
        self.hello.versions.clone()
    }

    /// One of its contenders.
    pub(crate) fn contender(&self, name: &str) -> Contender {
        let (pipes, own, known) = (self.pipes.clone(), name.to_owned(), self.hello.names.iter().any(|n| n == name));
        Contender::new(name, move |steps| {
            anyhow::ensure!(known, "the other process has no contender {own}");
            let mut pipes = pipes.borrow_mut();
            writeln!(pipes.requests, "{own} {steps}")?;
            let Answer { seconds } = pipes.read().with_context(|| format!("{own} ended early"))?;
            Ok(seconds)
        })
    }
}

impl Pipes {
    fn read<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("it says {line:?}"))
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        // It holds nothing that is worth an orderly end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
