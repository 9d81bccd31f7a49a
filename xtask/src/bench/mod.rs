//! The table of docs/performance.md: what control costs, on the device and against other ways to have it.
//!
//! Each part is measured by one program in which contenders take turns (`benches/compare`; JAX and PyTorch wait for their
//! turns in processes of their own, `benches/python`), and leaves its times in target/bench. Statistics and table are made
//! here. Only what stands between the markers of docs/performance.md is written anew, after each part.

mod report;
mod samples;
mod start;
mod statistics;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use self::samples::Samples;
use crate::document;

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What to measure; all but `flags`, `launch`, `replicas` and `operations` if nothing is named.
    #[arg(value_enum, value_name = "PART")]
    parts: Vec<Part>,
    /// The plugin: cpu, another name or a path for a GPU. Both sets if none is given, that of the GPU where there is one.
    #[arg(long)]
    plugin: Option<String>,
    /// The bundle; gpt-nano on a CPU and gpt2-small on a GPU if none is given.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Rounds of each part, instead of its own number.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Seconds that a contender takes in a round, about, instead of each part's own number.
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Take what target/bench has of a part, instead of measuring it again.
    #[arg(long)]
    keep: bool,
    /// The document to write.
    #[arg(long, value_name = "FILE", default_value = "docs/performance.md")]
    out: PathBuf,
}

/// What is measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The plain step, under control, and with control written by hand: on one plugin.
    Control,
    /// `train`, a bare execute loop, and JAX.
    Loop,
    /// Control on the host in JAX.
    Jax,
    /// Control on the host in PyTorch.
    Torch,
    /// From the start of the process to the first step.
    Start,
    /// Compiler flags and client options of the CPU plugin.
    Flags,
    /// Several steps in one launch, of each model in [`LAUNCHED`].
    Launch,
    /// What replicas exchange for control and what comparing them takes, of the same models; for docs/devices.md.
    Replicas,
    /// What checkpoints take and what reading the metrics takes; for docs/operations.md.
    Operations,
}

/// Bundles of which several steps go into one launch: one whose steps are short, and one whose steps are not.
const LAUNCHED: [&str; 2] = ["mlp", "gpt-nano"];

/// Where the table of replicas is.
const DEVICES: &str = "docs/devices.md";
/// Where the table of checkpoints and metrics is.
const OPERATIONS: &str = "docs/operations.md";

/// What is measured on one kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Cpu,
    Gpu,
}

impl Part {
    /// How it is called on the command line and in target/bench.
    fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Loop => "loop",
            Self::Jax => "jax",
            Self::Torch => "torch",
            Self::Start => "start",
            Self::Flags => "flags",
            Self::Launch => "launch",
            Self::Replicas => "replicas",
            Self::Operations => "operations",
        }
    }

    /// Whether it is measured on all of [`LAUNCHED`].
    fn is_of_several_models(self) -> bool {
        matches!(self, Self::Launch | Self::Replicas)
    }

    /// Rounds, and seconds that a contender takes in each.
    fn schedule(self) -> (usize, f64) {
        match self {
            Self::Control => (40, 0.8),
            // The end of a stretch writes metrics to the disk, which a long stretch makes as rare as in a real run.
            Self::Loop => (20, 2.0),
            Self::Jax => (30, 1.0),
            Self::Torch => (20, 1.5),
            Self::Start => (10, 0.0),
            Self::Flags => (10, 0.6),
            Self::Launch => (30, 0.8),
            Self::Replicas => (20, 0.5),
            Self::Operations => (24, 3.0),
        }
    }
}

impl Set {
    fn parts(self) -> &'static [Part] {
        match self {
            Self::Cpu => &[Part::Control, Part::Loop, Part::Jax, Part::Torch, Part::Start],
            Self::Gpu => &[Part::Control, Part::Loop],
        }
    }

    fn marker(self) -> &'static str {
        match self {
            Self::Cpu => "bench",
            Self::Gpu => "bench-gpu",
        }
    }
}

/// Measures, and writes the tables.
pub(crate) fn bench(options: &Options) -> Result<()> {
    let no_gpu = "no NVIDIA driver is loaded here (/dev/nvidiactl is missing)";
    let has_gpu = Path::new("/dev/nvidiactl").exists();
    let sets: &[(Set, &str)] = match options.plugin.as_deref() {
        Some("cpu") => &[(Set::Cpu, "cpu")],
        Some(_) if !has_gpu => bail!("the benches of the GPU cannot run: {no_gpu}"),
        Some(plugin) => &[(Set::Gpu, plugin)],
        None if has_gpu => &[(Set::Cpu, "cpu"), (Set::Gpu, "cuda")],
        None => {
            eprintln!("the benches of the GPU are skipped: {no_gpu}");
            &[(Set::Cpu, "cpu")]
        }
    };
    let document = document::read(&crate::root().join(&options.out))?;
    for &(set, _) in sets {
        document::between_markers(&document, set.marker(), "")?;
    }
    let named = |part| options.parts.is_empty() || options.parts.contains(&part);
    if named(Part::Start) {
        crate::cargo(&["build", "--release"])?;
    }
    let engines = [Part::Control, Part::Loop, Part::Jax, Part::Torch, Part::Flags];
    let python = if engines.into_iter().any(named) { crate::python_with_jax()? } else { PathBuf::from("python3") };
    let mut failures = Vec::new();
    for &(set, plugin) in sets {
        let model = options.model.as_deref().unwrap_or(if set == Set::Cpu { "gpt-nano" } else { "gpt2-small" });
        let bench = Bench { options, set, plugin, model, python: &python };
        let launched = LAUNCHED.map(|model| Bench { model, ..bench });
        let parts: Vec<_> = if options.parts.is_empty() { set.parts().to_vec() } else { options.parts.clone() };
        if !options.keep {
            for &part in &parts {
                bench.forget(part)?;
                for bench in launched.iter().filter(|_| part.is_of_several_models()) {
                    bench.forget(part)?;
                }
            }
        }
        for part in parts {
            // One part less is better than none at all.
            let measured = match part {
                _ if part.is_of_several_models() => launched.iter().try_for_each(|bench| bench.measure(part)),
                _ => bench.measure(part),
            };
            if let Err(error) = measured {
                eprintln!("error: {}: {error:#}", part.name());
                failures.push(part.name());
            }
            bench.write()?;
        }
    }
    if !failures.is_empty() {
        bail!("not measured: {}; errors are above, and `--keep` keeps what was measured", failures.join(", "));
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Bench<'a> {
    options: &'a Options,
    set: Set,
    plugin: &'a str,
    model: &'a str,
    python: &'a Path,
}

impl Bench<'_> {
    fn folder(&self) -> PathBuf {
        crate::root().join("target").join("bench").join(format!("{}-{}", self.set.marker(), self.model))
    }

    fn file(&self, part: Part) -> PathBuf {
        self.folder().join(format!("{}.json", part.name()))
    }

    /// What is left of an earlier measurement must not pass for the one that is to come.
    fn forget(&self, part: Part) -> Result<()> {
        let file = self.file(part);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    fn measure(&self, part: Part) -> Result<()> {
        let file = self.file(part);
        if self.options.keep && Samples::read(&file).is_ok() {
            return Ok(());
        }
        let folder = self.folder();
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let (rounds, seconds) = part.schedule();
        let (rounds, seconds) = (self.options.rounds.unwrap_or(rounds), self.options.seconds.unwrap_or(seconds));
        let model = format!("models/{}", self.model);
        if part == Part::Start {
            let binary = crate::root().join("target").join("release").join("entropic");
            return start::measure(&binary, &model, &folder, rounds)?.write(&file);
        }
        let scripts = crate::root().join("benches").join("python");
        let handwritten = folder.join("handwritten");
        match part {
            Part::Control => {
                let mut command = Command::new(self.python);
                command.arg(scripts.join("handwritten.py")).args(["--model", self.model, "--out"]).arg(&handwritten);
                command.env("PYTHONPATH", crate::root().join("models").join("export"));
                crate::run(command.env("JAX_PLATFORMS", "cpu"))?;
            }
            Part::Torch => self.install("--requirement", &scripts.join("requirements.txt").display().to_string())?,
            _ if self.set == Set::Gpu => self.install("jax[cuda13]==0.10.2", "jaxlib==0.10.2")?,
            _ => {}
        }
        let number = |x: f64| x.to_string();
        let path = |path: &Path| path.display().to_string();
        let arguments = [
            ["--model", &model],
            ["--plugin", self.plugin],
            ["--python", &path(self.python)],
            ["--handwritten", &path(&handwritten)],
            ["--rounds", &rounds.to_string()],
            ["--seconds", &number(seconds)],
            ["--out", &path(&file)],
        ];
        crate::cargo(&[&["bench", "--bench", "compare", "--", part.name()][..], arguments.as_flattened()].concat())
    }

    fn install(&self, first: &str, second: &str) -> Result<()> {
        crate::run(Command::new(self.python).args(["-m", "pip", "install", "--quiet", first, second]))
    }

    /// Writes what there is.
    fn write(&self) -> Result<()> {
        let path = crate::root().join(&self.options.out);
        let mut text = document::read(&path)?;
        let samples = |part| Samples::read(&self.file(part)).unwrap_or_default();
        let measured: Vec<_> = self.set.parts().iter().map(|&part| (part, samples(part))).collect();
        let heading = format!("`{}`; {}.", self.model, machine());
        // A table of nothing would replace what another machine measured.
        if measured.iter().any(|(_, samples)| !samples.rounds.is_empty()) {
            let table = report::table(&report::rows(self.set, &samples));
            let content = format!("{heading} {}\n\n{table}", told(&measured));
            text = document::between_markers(&text, self.set.marker(), &content)?;
        }
        let flags = samples(Part::Flags);
        if self.set == Set::Cpu && !flags.rounds.is_empty() {
            let about = format!("{heading} {}", told(&[(Part::Flags, flags.clone())]));
            text = document::between_markers(&text, "bench-flags", &format!("{about}\n\n{}", report::flags(&flags)))?;
        }
        let of_several = |part| -> Vec<(&str, Samples)> {
            let read = LAUNCHED.map(|model| (model, Samples::read(&Bench { model, ..*self }.file(part))));
            read.into_iter().filter_map(|(model, samples)| Some((model, samples.ok()?))).collect()
        };
        let launched = of_several(Part::Launch);
        if self.set == Set::Cpu && !launched.is_empty() {
            let runs: Vec<_> = launched.iter().map(|(_, samples)| (Part::Launch, samples.clone())).collect();
            let about = format!("{}. {}", machine(), told(&runs));
            text = document::between_markers(
                &text,
                "bench-launch",
                &format!("{about}\n\n{}", report::launches(&launched)),
            )?;
        }
        document::write(&path, &text)?;
        let replicas = of_several(Part::Replicas);
        if self.set == Set::Cpu && !replicas.is_empty() {
            let path = crate::root().join(DEVICES);
            let runs: Vec<_> = replicas.iter().map(|(_, samples)| (Part::Replicas, samples.clone())).collect();
            let content = format!("{}. {}\n\n{}", machine(), told(&runs), report::replicas(&replicas));
            document::write(&path, &document::between_markers(&document::read(&path)?, "bench-replicas", &content)?)?;
        }
        let operations = samples(Part::Operations);
        if self.set == Set::Cpu && !operations.rounds.is_empty() {
            let path = crate::root().join(OPERATIONS);
            let about = format!("{heading} {}", told(&[(Part::Operations, operations.clone())]));
            let content = format!("{about}\n\n{}", report::operations(&operations));
            document::write(&path, &document::between_markers(&document::read(&path)?, "bench-operations", &content)?)?;
        }
        Ok(())
    }
}

/// What ran, and how often.
fn told(measured: &[(Part, Samples)]) -> String {
    let mut versions: Vec<_> = measured.iter().flat_map(|(_, samples)| samples.versions.clone()).collect();
    versions.sort();
    versions.dedup();
    let rounds = measured.iter().filter(|(_, samples)| !samples.rounds.is_empty());
    let rounds = rounds.map(|(part, samples)| match part {
        Part::Start => format!("{} {}", part.name(), samples.rounds.len()),
        _ => format!("{} {} of {} steps each", part.name(), samples.rounds.len(), samples.steps),
    });
    format!("{}. Rounds: {}.", versions.join("; "), rounds.collect::<Vec<_>>().join(", "))
}

/// The machine.
fn machine() -> String {
    let read = |path: &str, key: &str| {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once([':', '='])?.1.trim().trim_matches('"').to_owned())
    };
    let cpu = read("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let system = read("/etc/os-release", "PRETTY_NAME").unwrap_or_else(|| std::env::consts::OS.to_owned());
    let gpu = Command::new("nvidia-smi").args(["--query-gpu=name", "--format=csv,noheader"]).output().ok();
    let gpu = gpu.filter(|output| output.status.success());
    let gpu = gpu.map(|output| format!(", {}", String::from_utf8_lossy(&output.stdout).trim())).unwrap_or_default();
    format!("{cpu}, {cores} cores{gpu}, {system}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_markers_for_every_table() {
        let text = document::read(&crate::root().join("docs").join("performance.md")).unwrap();
        for marker in ["bench", "bench-gpu", "bench-flags", "bench-launch"] {
            document::between_markers(&text, marker, "").unwrap();
        }
        let text = document::read(&crate::root().join(DEVICES)).unwrap();
        document::between_markers(&text, "bench-replicas", "").unwrap();
        let text = document::read(&crate::root().join(OPERATIONS)).unwrap();
        document::between_markers(&text, "bench-operations", "").unwrap();
    }

    #[test]
    fn what_ran_is_told_once_and_what_did_not_is_left_out() {
        let samples = |version: &str, rounds| Samples {
            versions: vec![version.to_owned()],
            steps: 8,
            rounds: vec![Default::default(); rounds],
            ..Samples::default()
        };
        let measured = [
            (Part::Loop, samples("jax 1", 3)),
            (Part::Jax, samples("jax 1", 0)),
            (Part::Start, samples("entropic", 2)),
        ];
        assert_eq!(told(&measured), "entropic; jax 1. Rounds: loop 3 of 8 steps each, start 2.");
    }

    #[test]
    fn the_machine_has_a_processor_and_cores() {
        assert!(machine().contains(" cores"), "{}", machine());
    }
}
