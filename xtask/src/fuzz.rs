//! `cargo xtask fuzz`: everything that reads files is given bytes that nobody meant, under limits of time and memory.
//!
//! Each target of `fuzz/` starts from files of this repository: those that its reader reads, and `fuzz/seeds/TARGET`. What the
//! fuzzer learns stays in `fuzz/corpus/TARGET`, what fails goes to `fuzz/artifacts/TARGET`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use super::{cargo, cargo_command, root, run};

/// Inputs are at most so long: the smaller ones among the files that there are.
const LONGEST: u64 = 32 << 10;
/// No input may take longer, in seconds.
const SECONDS: u32 = 1;
/// No target may ever hold more memory, in MiB.
const MEMORY: u32 = 256;

/// Options of `fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What to fuzz, all of it if there is nothing.
    targets: Vec<Target>,
    /// Executions of each target.
    #[arg(long, default_value_t = 100_000)]
    executions: u64,
}

/// A reader of files, by the name of its target.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Target {
    HloProto,
    HloText,
    JaxExport,
    Manifest,
    Policy,
    Checkpoint,
    Metrics,
}

pub(crate) fn fuzz(options: &Options) -> Result<()> {
    let targets = if options.targets.is_empty() { Target::value_variants() } else { &options.targets };
    for target in targets {
        plant(*target)?;
    }
    // Memory errors are not what is looked for: the readers are safe Rust. Without a sanitizer a stable compiler will do.
    let build = ["fuzz", "build", "--sanitizer", "none"];
    run(cargo_command(&build).env("RUSTC_BOOTSTRAP", "1"))
        .context("if there is no `cargo fuzz`, `cargo install cargo-fuzz` brings it")?;
    let mut rows = Vec::new();
    for target in targets {
        rows.push(hunt(*target, options.executions)?);
    }
    rows.iter().for_each(|row| println!("{row}"));
    Ok(())
}

impl Target {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// How the names of files end that its reader reads.
    fn reads(self) -> &'static str {
        match self {
            Self::HloProto | Self::HloText => ".hlo.pb",
            Self::JaxExport => ".jax_export",
            Self::Manifest => "manifest.json",
            Self::Policy => ".toml",
            Self::Checkpoint | Self::Metrics => "",
        }
    }

    /// Where they are.
    fn folders(self) -> &'static [&'static str] {
        match self {
            Self::HloProto | Self::HloText | Self::JaxExport | Self::Manifest => {
                &["models", "tests", "crates/hlo/tests"]
            }
            Self::Policy => &["passes/policies"],
            Self::Checkpoint | Self::Metrics => &[],
        }
    }
}

/// Puts what a target starts from into its corpus.
fn plant(target: Target) -> Result<()> {
    let corpus = root().join("fuzz/corpus").join(target.name());
    fs::create_dir_all(&corpus)?;
    let mut found = Vec::new();
    for folder in target.folders() {
        find(&root().join(folder), target.reads(), &mut found)?;
    }
    let seeds = root().join("fuzz/seeds").join(target.name());
    if seeds.is_dir() {
        find(&seeds, "", &mut found)?;
    }
    ensure!(!found.is_empty(), "there is nothing that {} could start from", target.name());
    if matches!(target, Target::HloText) {
        cargo(&["build", "--quiet", "--package", "entropic"])?;
    }
    for path in found {
        let name = path.strip_prefix(root())?.to_string_lossy().replace(['/', '\\'], "_");
        let bytes = match target {
            Target::HloText if name.ends_with(".pb") => printed(&path)?,
            _ => fs::read(&path)?,
        };
        fs::write(corpus.join(name), bytes)?;
    }
    Ok(())
}

/// Files below a folder that are not too long, and whose names end so.
fn find(folder: &Path, end: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, end, found)?;
        } else if path.to_string_lossy().ends_with(end) && path.metadata()?.len() <= LONGEST {
            found.push(path);
        }
    }
    Ok(())
}

/// A module as HLO text.
fn printed(path: &Path) -> Result<Vec<u8>> {
    let program = root().join("target/debug/entropic");
    let output = Command::new(program).arg("show").arg(path).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "`entropic show {}` failed", path.display());
    Ok(output.stdout)
}

/// Runs one target; returns what it came to.
fn hunt(target: Target, executions: u64) -> Result<String> {
    let name = target.name();
    let mut command = cargo_command(&["fuzz", "run", "--sanitizer", "none", &name, "--"]);
    command.args([
        format!("-runs={executions}"),
        format!("-timeout={SECONDS}"),
        format!("-rss_limit_mb={MEMORY}"),
        format!("-max_len={LONGEST}"),
        "-print_final_stats=1".to_owned(),
    ]);
    command.current_dir(root()).env("RUSTC_BOOTSTRAP", "1");
    eprintln!("+ cargo fuzz run {name}: {executions} executions");
    let output = command.stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        std::io::stderr().write_all(&output.stderr)?;
        bail!("{name} failed; the input is in fuzz/artifacts/{name}: make a test of it");
    }
    let stat = |what: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(what)?.strip_prefix(':'));
        line.map_or("?", str::trim).to_owned()
    };
    Ok(format!(
        "{name}: {} executions, {} MiB at most, slowest {} s: nothing found",
        stat("number_of_executed_units"),
        stat("peak_rss_mb"),
        stat("slowest_unit_time_sec")
    ))
}
