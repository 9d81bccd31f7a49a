//! Project commands: `cargo xtask COMMAND`.
//!
//! Each one runs the commands that it prints and stops at the first that fails. The Makefile
//! and `.ci/run` call these, so that what CI does is what a person does.

mod bench;
mod crash;
mod demos;
mod document;
mod fuzz;
mod xla_rs;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;

/// Project commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Everything that needs no JAX: plugin, formatting, lints, tests, doc tests.
    Test,
    /// Lint the feature xla-rs; part of `test`.
    XlaRs,
    /// Everything that needs JAX: installs it into .venv, then runs the Python tests offline.
    TestPython,
    /// What needs other programs: Prometheus scrapes a run, Chromium shows a report; and runs are killed and go on.
    TestOps,
    /// Export the committed bundles again, into models/.
    Models(Models),
    /// Write docs/actuators.md: what is found in each step of the corpus and in each bundle.
    Matrix(Matrix),
    /// Run the experiments of docs/demos.md, which takes most of an hour for all of them, and write their tables and plots.
    Demos(demos::Options),
    /// Kill training at random moments, have it go on, and compare where it ends with a run that was left alone.
    Crash(crash::Options),
    /// Give readers of files bytes that nobody meant. Needs cargo-fuzz.
    Fuzz(fuzz::Options),
    /// Do the training runs of docs/evidence.md that are not on record in runs/, and write its tables: under two hours on two cores.
    Evidence(Evidence),
    /// Measure what control costs, against JAX and PyTorch too, and write the table of docs/performance.md: about ten minutes.
    Bench(bench::Options),
}

/// Options of `models`.
#[derive(Debug, clap::Args)]
struct Models {
    /// Write nothing; fail where a committed file is not what the exporter makes.
    #[arg(long)]
    check: bool,
}

/// Options of `evidence`.
#[derive(Debug, clap::Args)]
struct Evidence {
    /// Other sizes, variants of spectral, fewer corrupted batches, and each kind of corruption by itself, too.
    #[arg(long)]
    full: bool,
    /// Further options of `python -m evidence run`: `-- --text FOLDER --jobs 1`.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Options of `matrix`.
#[derive(Debug, clap::Args)]
struct Matrix {
    /// Write nothing; fail where the committed file is not what the code generates.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Test => test(),
        Task::XlaRs => xla_rs::check(),
        Task::TestPython => test_python(),
        Task::TestOps => test_ops(),
        Task::Models(Models { check }) => models(check),
        Task::Matrix(Matrix { check }) => matrix(check),
        Task::Demos(options) => demos::demos(&options),
        Task::Crash(options) => crash::crash(&options),
        Task::Fuzz(options) => fuzz::fuzz(&options),
        Task::Evidence(options) => evidence(&options),
        Task::Bench(options) => bench::bench(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn test() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["run", "--quiet", "--package", "entropic", "--", "plugin", "fetch", "cpu"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    xla_rs::check()?;
    cargo(&["test", "--workspace"])
}

fn test_python() -> Result<()> {
    let python = python_with_jax()?;
    // What is tested is what users install: the package, and the program that it brings; only quicker to build.
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--no-deps", "."]).env("MATURIN_PEP517_ARGS", "--profile dev");
    run(&mut install)?;
    let program = python.with_file_name("entropic");
    install_requirements(&python, "evidence")?;
    for tests in ["models", "python/tests", "evidence"] {
        let mut command = Command::new(&python);
        run(command.args(["-m", "pytest", "--quiet", tests]).env("PIP_NO_INDEX", "1").env("ENTROPIC_BIN", &program))?;
    }
    test_with_oldest_jax(&python)
}

/// Training runs through the package as users build it.
fn evidence(options: &Evidence) -> Result<()> {
    let python = python_with_jax()?;
    install_requirements(&python, "evidence")?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--no-deps", "."]))?;
    let mut command = Command::new(&python);
    command.args(["-m", "evidence", "run"]).env("PYTHONPATH", root().join("models").join("export"));
    run(command.args(options.full.then_some("--full")).args(&options.rest))
}

/// The same package under the oldest release of JAX that it asks for.
fn test_with_oldest_jax(python: &Path) -> Result<()> {
    let folder = root().join("target").join("oldest-jax");
    let requirements = root().join("python").join("oldest-jax.txt");
    let install = ["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"];
    run(Command::new(python).args(install).arg(&folder).arg("--requirement").arg(requirements))?;
    let tests = ["control", "way_back", "devices"].map(|name| format!("python/tests/test_{name}.py"));
    run(Command::new(python)
        .args(["-m", "pytest", "--quiet"])
        .args(tests)
        .env("PYTHONPATH", folder)
        .env("PIP_NO_INDEX", "1"))
}

fn test_ops() -> Result<()> {
    cargo(&["test", "--workspace", "--test", "prometheus", "--test", "report_browser", "--", "--ignored"])?;
    crash::crash(&crash::Options::default())
}

fn models(check: bool) -> Result<()> {
    let python = python_with_jax()?;
    let mut command = Command::new(python);
    command.args(["-m", "entropic_export.bundles"]).env("PYTHONPATH", root().join("models").join("export"));
    if check {
        command.arg("--check");
    }
    run(&mut command)
}

/// The test that holds the committed file to the code is what writes it, too, so that this program needs no HLO.
fn matrix(check: bool) -> Result<()> {
    let mut command = cargo_command(&["test", "--package", "entropic", "--test", "matrix"]);
    if !check {
        command.env("ENTROPIC_WRITE_MATRIX", "1");
    }
    run(&mut command)
}

/// The interpreter of `.venv`, which is made and filled with `models/requirements.txt` where it is not yet.
fn python_with_jax() -> Result<PathBuf> {
    let folder = root().join(".venv");
    let python = folder.join("bin").join("python");
    if !python.is_file() {
        make_venv(&folder)?;
    }
    install_requirements(&python, "models")?;
    Ok(python)
}

/// Installs what the `requirements.txt` of a folder names.
fn install_requirements(python: &Path, folder: &str) -> Result<()> {
    let requirements = root().join(folder).join("requirements.txt");
    run(Command::new(python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(requirements))
}

/// Makes a virtual environment. Where Python comes without `venv` (Debian packages it apart), `virtualenv` does it.
fn make_venv(folder: &Path) -> Result<()> {
    if run(Command::new("python3").args(["-m", "venv"]).arg(folder)).is_ok() {
        return Ok(());
    }
    // What a failed attempt left has no pip.
    let _ = std::fs::remove_dir_all(folder);
    let tool = root().join("target").join("virtualenv");
    let install = ["-m", "pip", "install", "--quiet", "--upgrade", "virtualenv", "--target"];
    run(Command::new("python3").args(install).arg(&tool)).context(
        "neither venv nor virtualenv is there; install python3 with venv (Debian: `apt install python3-venv`)",
    )?;
    run(Command::new("python3").args(["-m", "virtualenv", "--quiet"]).arg(folder).env("PYTHONPATH", tool))
}

fn cargo(arguments: &[&str]) -> Result<()> {
    run(&mut cargo_command(arguments))
}

fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

/// Prints a command, runs it in the repository's root, and fails where it fails.
fn run(command: &mut Command) -> Result<()> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let line = format!("{name} {}", arguments.join(" "));
    eprintln!("+ {line}");
    let status = command.current_dir(root()).status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
