//! The program as a user meets it: arguments in, text and exit code out.
//!
//! Tests that train need the CPU plugin and fail without it; `make plugin` fetches it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::string_slice)]

mod audit;
mod broken;
mod cache;
mod data;
mod diff;
mod happy;
mod inputs;
mod loops;
mod plugins;
mod refusals;
mod replicas;
mod reports;
mod resume;
mod tiny;

#[path = "../support/broken.rs"]
mod broken_programs;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a run of the program left.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The program, to be run in the folder `at`.
fn program(at: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_entropic"));
    command.current_dir(at);
    // Not the user's own; and what one test compiled, another need not.
    command.env("ENTROPIC_CACHE_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("executables"));
    command
}

fn run<A: AsRef<OsStr>>(at: &Path, arguments: &[A]) -> Ran {
    program(at).args(arguments).output().unwrap().into()
}

/// Runs a command line, given as words, that must succeed; returns what it printed.
fn succeed(at: &Path, line: &str) -> String {
    let ran = run(at, &line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(ran.code, Some(0), "`entropic {line}` failed; if the plugin is missing, run `make plugin`\n{}", ran.err);
    ran.out
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn model(name: &str) -> PathBuf {
    root().join("models").join(name)
}

fn corpus(name: &str) -> PathBuf {
    root().join("tests").join("corpus").join(format!("{name}.hlo.pb"))
}

/// A folder with some text to train on, called `text`, and a copy of the bundle `mlp`.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..4000).map(|i| format!("{} squared is {}.\n", i, i * i)).collect();
    fs::write(folder.path().join("text"), text).unwrap();
    let mlp = folder.path().join("mlp");
    fs::create_dir(&mlp).unwrap();
    for entry in fs::read_dir(model("mlp")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, mlp.join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// Every path below a folder, sorted, with the size of files.
fn listing(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.push((path.clone(), 0));
            found.extend(listing(&path));
        } else {
            found.push((path.clone(), fs::metadata(&path).unwrap().len()));
        }
    }
    found.sort();
    found
}
