//! `entropic inject`: a controlled step out of an uncontrolled one.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

use super::{Compiling, Outcome, Reading, Replicating, print};
use crate::bundle::Bundle;
use crate::bundle::manifest::Controller;
use crate::engine::Engine;
use crate::files;
use crate::isolate::Worker;
use crate::model::Model;
use crate::policy_file;
use crate::target::Target;
use crate::verify;
use indicatif::HumanBytes;
use passes::layout::ArrayKind;
use passes::policy::{GroupPolicy, SpectralWork};
use passes::spectral::{Cost, TensorClass};
use passes::{ControllerLayout, Replicas};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The bundle or module to control.
    model: PathBuf,
    #[command(flatten)]
    reading: Reading,
    /// Where the result goes: a bundle's folder for a bundle; for a bare module a .hlo.pb file, with its manifest beside it
    /// under the same name with .manifest.json.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// The controller's policy: a TOML file, or one of the policies that come with the program. The default policy if none
    /// is given.
    #[arg(long, value_name = "FILE|default|article|spectral|monitor")]
    policy: Option<PathBuf>,
    /// What the result will be compiled for: cpu, a100, h100, h200, tpu-v4, tpu-v5e, tpu-v5p, tpu-v6e. Compilers differ in
    /// how sums over a gradient should be written; any of them takes any result.
    #[arg(long, default_value = "cpu", value_name = "TARGET")]
    target: Target,
    #[command(flatten)]
    replicating: Replicating,
    /// Put so many steps into one launch, in a loop on the device; the result takes as many batches at once.
    #[arg(long, value_name = "K", default_value = "1")]
    steps_per_launch: NonZeroU32,
    /// Run both modules for 20 steps under a neutral policy and compare every output bit for bit; with several steps
    /// in a launch, compare those with as many launches of one step, too. Nothing is written where they differ.
    #[arg(long)]
    verify: bool,
    /// The plugin to verify on: a known name, or the path of a library.
    #[arg(long, default_value = "cpu", value_name = "cpu|cuda|tpu|PATH", requires = "verify")]
    plugin: String,
    #[command(flatten)]
    compiling: Compiling,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let policy = policy_file::open(arguments.policy.as_deref())?;
    let model = Model::open_with(&arguments.model, &arguments.reading.reader())?;
    let into_itself =
        arguments.output.canonicalize().is_ok_and(|out| model.path().canonicalize().is_ok_and(|m| m == out));
    if into_itself {
        bail!("the output {} is the model itself; choose another path", arguments.output.display());
    }
    let replicas = arguments.replicating.replicas();
    if arguments.verify && replicas.is_some() {
        bail!(
            "--verify compares programs on one device, and one of several replicas is none; verify the step without \
             --replicas: control of the global gradient is the same"
        );
    }
    let injected = model.inject_into(&policy, arguments.target.platform(), replicas)?;
    let fused = injected.fuse(arguments.steps_per_launch, arguments.target.platform())?;
    let several = arguments.steps_per_launch > NonZeroU32::MIN;
    let mut text = String::new();
    if arguments.verify {
        let found = model.find()?;
        let original = found.original(&model);
        let worker = Worker::this_program()?;
        let engine = Engine::open(&arguments.plugin)?.with_cache(arguments.compiling.cache()).isolated(Some(worker));
        let verified = verify::verify(&engine, &original, &injected, &found.step)?;
        text += &format!(
            "verified on {}: {} outputs of {} steps are bit-identical ({} bytes){}\n",
            engine.platform(),
            verified.outputs,
            verified.steps,
            verified.bytes,
            if verified.non_finite { "; some values were not finite, so this says less than it could" } else { "" }
        );
        if several {
            let verified = verify::verify_launches(&engine, &injected, &fused, &found.step)?;
            text += &format!(
                "{} launches of {} steps are bit-identical to {} of one ({} bytes)\n",
                verified.steps / u64::from(arguments.steps_per_launch.get()),
                arguments.steps_per_launch,
                verified.steps,
                verified.bytes
            );
        }
    }
    let controlled = injected.manifest.controller.as_ref().map_or(0, |c| c.layout.tensors.len());
    let snapshot_cost = injected.manifest.controller.as_ref().map_or(String::new(), |c| snapshot_cost(&c.layout));
    let groups = injected.manifest.controller.as_ref().map_or(Ok(String::new()), groups)?;
    let spectral =
        injected.manifest.controller.as_ref().map(|c| spectral(&model, &c.layout, replicas)).unwrap_or_default();
    match &model {
        Model::Bundle(_) => fused.save(&arguments.output)?,
        Model::Bare { .. } => save_bare(fused, &arguments.output)?,
    }
    text += &format!("{}: {controlled} tensors under control\n{groups}", arguments.output.display());
    if let Some(replicas) = replicas {
        text += &format!("{} replicas\n", replicas.count);
    }
    if several {
        text += &format!("{} steps in one launch\n", arguments.steps_per_launch);
    }
    text += &snapshot_cost;
    text += &spectral;
    print(&text)?;
    Ok(Outcome::Done)
}

/// What copies of held states cost, in words; empty where there are none.
pub(super) fn snapshot_cost(layout: &ControllerLayout) -> String {
    if !layout.rollback {
        return String::new();
    }
    let copies = layout.inputs.iter().filter(|i| i.kind == ArrayKind::Snapshot).count();
    let bytes = HumanBytes(layout.snapshot_bytes);
    format!(
        "rollback: copies of {copies} held states take {bytes} more on the device; every step reads and writes that much more\n"
    )
}

/// More than this share of a step's operations is worth a warning.
const DEAR: f64 = 0.05;

/// Which updates get equal singular values, which are left alone and why, and what it costs; empty where none do.
fn spectral(model: &Model, layout: &ControllerLayout, replicas: Option<Replicas>) -> String {
    let Some(structure) = layout.spectral else { return String::new() };
    let tensors = layout.tensors.iter().zip(&layout.matrices);
    let mut text = String::new();
    let mut alone: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut treated, mut matrices) = (0_usize, 0_u64);
    for (tensor, found) in tensors {
        match (&found.matrices, &found.reason, &found.difference) {
            (Some(of), _, difference) => {
                treated += 1;
                matrices = matrices.saturating_add(of.count);
                if let Some(reason) = difference {
                    text += &format!("  {}: the whole of its update, weight decay included: {reason}\n", tensor.name);
                }
            }
            (None, Some(reason), _) if matches!(found.class, TensorClass::Matrix | TensorClass::Stack) => {
                text += &format!("  {}: left alone: {reason}\n", tensor.name);
            }
            _ => *alone.entry(found.class.name()).or_default() += 1,
        }
    }
    let alone: Vec<String> = alone.into_iter().map(|(class, count)| format!("{count} x {class}")).collect();
    let alone = if alone.is_empty() { String::new() } else { format!("; left alone: {}", alone.join(", ")) };
    let cost = Cost::of(model.module(), layout);
    let percent = cost.share() * 100.0;
    let loops = if cost.unknown_loops { ", with a loop that runs nobody knows how often counted once" } else { "" };
    let mut told = format!(
        "spectral: {matrices} matrices in {treated} tensors{alone}\n{text}spectral: {} iterations come to {percent:.2}% of the \
         operations of the step's products (from shapes{loops})\n",
        structure.iterations
    );
    if let (Some(replicas), SpectralWork::Share) = (replicas, structure.replicas) {
        let elements =
            layout.matrices.iter().filter_map(|m| m.matrices).map(|m| m.count * m.rows * m.columns).sum::<u64>();
        told += &format!(
            "spectral: each of {} replicas does its share and is sent the rest: about {} by all-gather in each step\n",
            replicas.count,
            HumanBytes(elements.saturating_mul(4))
        );
    }
    if cost.share() > DEAR {
        told += &format!(
            "warning: that is more than {:.0}%; larger batches, fewer `spectral.iterations` or fewer tensors cost less\n",
            DEAR * 100.0
        );
    }
    told
}

/// The policy's groups: what is different in each, and which tensors are in it.
fn groups(controller: &Controller) -> anyhow::Result<String> {
    let names: Vec<&str> = controller.layout.tensors.iter().map(|t| t.name.as_str()).collect();
    let groups = controller.policy.groups_of(&names)?;
    let line = |(group, policy): (&String, &GroupPolicy)| {
        let members = names.iter().zip(&groups).filter(|(_, of)| **of == Some(group.as_str()));
        let members: Vec<&str> = members.map(|(name, _)| *name).collect();
        format!("group {group} ({policy}): {}\n", members.join(", "))
    };
    Ok(controller.policy.groups.iter().map(line).collect())
}

/// Writes a module and its manifest beside it, or neither.
fn save_bare(mut bundle: Bundle, output: &Path) -> anyhow::Result<()> {
    let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = name.strip_suffix(".hlo.pb").or_else(|| name.strip_suffix(".pb")).unwrap_or(&name);
    let sidecar = output.with_file_name(format!("{stem}.manifest.json"));
    bundle.manifest.module = name.clone();
    let before = std::fs::read(&sidecar).ok();
    files::write(&sidecar, bundle.manifest.to_json()?.as_bytes())?;
    if let Err(error) = files::write(output, &bundle.module.export()) {
        // Both or none: the sidecar goes back to what it was.
        let restored = match before {
            Some(bytes) => files::write(&sidecar, &bytes).is_ok(),
            None => std::fs::remove_file(&sidecar).is_ok(),
        };
        let left = if restored { String::new() } else { format!("; {} was left behind", sidecar.display()) };
        return Err(anyhow::Error::new(error).context(format!("nothing was injected{left}")));
    }
    Ok(())
}
