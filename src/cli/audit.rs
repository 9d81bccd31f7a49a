//! `entropic audit`: what control costs on a target, from the target's own compiler.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{BinaryBytes, ProgressBar};

use super::{Outcome, Reading, Replicating, print, table};
use crate::audit::kernel::KernelKind;
use crate::audit::{Audit, CountedBy, Emitted, Held, Limits, ReplicaAudit, Side, compile_spread};
use crate::files;
use crate::isolate::Worker;
use crate::model::Model;
use crate::policy_file;
use crate::target::Target;
use hlo::Module;
use passes::Replicas;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The bundle or module to audit, without a controller.
    model: PathBuf,
    #[command(flatten)]
    reading: Reading,
    /// What to compile for: cpu, a100, h100, h200, or tpu-v4, tpu-v5e, tpu-v5p, tpu-v6e with a topology such as
    /// tpu-v5e:4x4. The device need not be here, its plugin must be.
    #[arg(long, value_name = "TARGET")]
    target: Target,
    /// The controller's policy: a TOML file, or one of the policies that come with the program. The default policy if none
    /// is given.
    #[arg(long, value_name = "FILE|default|article|spectral|monitor")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    replicating: Replicating,
    /// Compare launches of so many steps, in a loop on the device; figures are then those of a launch.
    #[arg(long, value_name = "K", default_value = "1")]
    steps_per_launch: NonZeroU32,
    /// Print JSON instead of tables: all kernels that differ, and the kernel of every operation of the controller.
    #[arg(long)]
    json: bool,
    /// Write what the compiler made of both steps into this folder: plain.hlo.pb and controlled.hlo.pb.
    #[arg(long, value_name = "FOLDER")]
    dump: Option<PathBuf>,
    /// Fail where control adds more launches than this, those that it saves subtracted.
    #[arg(long, value_name = "COUNT")]
    max_extra_kernels: Option<u64>,
    /// Fail where bytes accessed grow by more than this.
    #[arg(long, value_name = "PERCENT")]
    max_extra_bytes: Option<f64>,
    /// Fail where scratch memory grows by more than this.
    #[arg(long, value_name = "PERCENT")]
    max_extra_temp: Option<f64>,
    /// Fail where control brings the host into the step.
    #[arg(long)]
    no_host: bool,
    /// Fail where control has devices send each other more than sums: no parameter and no gradient is gathered for it.
    #[arg(long)]
    only_sums: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let policy = policy_file::open(arguments.policy.as_deref())?;
    let model = Model::open_with(&arguments.model, &arguments.reading.reader())?;
    let platform = arguments.target.platform();
    let replicas = arguments.replicating.replicas();
    let single = model.inject_into(&policy, platform, replicas)?;
    let injected = single.fuse(arguments.steps_per_launch, platform)?;
    let plain = plain(&model, replicas, arguments.steps_per_launch, &arguments.target)?;
    let spinner = ProgressBar::new_spinner().with_message(format!("compiling twice for {}", arguments.target));
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    let worker = Worker::this_program()?;
    let count = arguments.replicating.replicas;
    let compile = |module: &Module, what| compile_spread(&worker, &arguments.target, count, module, what);
    let both = compile(&plain, "the step without control")
        .and_then(|plain| Ok((plain, compile(&injected.module, "the step under control")?)));
    spinner.finish_and_clear();
    let (plain, controlled) = both?;
    if let Some(folder) = &arguments.dump {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        files::write(&folder.join("plain.hlo.pb"), &plain.module.export())?;
        files::write(&folder.join("controlled.hlo.pb"), &controlled.module.export())?;
    }
    let mut audit = Audit::compare(&arguments.target, &plain, &controlled);
    if let Some(replicas) = replicas {
        let found = model.find()?;
        let parameters: Vec<_> = found.step.parameters.iter().map(|parameter| parameter.name.clone()).collect();
        let held = [&found.manifest, &single.manifest].map(Held::of);
        audit = audit.of_replicas(replicas.count, held, Emitted::of(&single.module, &parameters));
    }
    if arguments.json {
        print(&(serde_json::to_string_pretty(&audit)? + "\n"))?;
    } else {
        print(&describe(&audit, arguments.steps_per_launch))?;
    }
    let limits = Limits {
        extra_kernels: arguments.max_extra_kernels,
        extra_bytes: arguments.max_extra_bytes,
        extra_temp: arguments.max_extra_temp,
        no_host: arguments.no_host,
        only_sums: arguments.only_sums,
    };
    let exceeded = audit.exceeded(&limits);
    if !exceeded.is_empty() {
        bail!("{} for {}: {}", arguments.model.display(), audit.target, exceeded.join("; "));
    }
    Ok(Outcome::Done)
}

/// The step without control, data-parallel where there are replicas, so many times in a launch.
fn plain(model: &Model, replicas: Option<Replicas>, steps: NonZeroU32, target: &Target) -> anyhow::Result<Module> {
    if let Some(replicas) = replicas {
        return Ok(model.replicate(replicas)?.fuse(steps, target.platform())?.module);
    }
    if steps == NonZeroU32::MIN {
        return Ok(model.module().clone());
    }
    Ok(model.find()?.original(model).fuse(steps, target.platform())?.module)
}

fn describe(audit: &Audit, steps: NonZeroU32) -> String {
    let (plain, injected) = (&audit.plain, &audit.injected);
    let one = if steps == NonZeroU32::MIN { "one step".to_owned() } else { format!("one launch of {steps} steps") };
    let mut table = table(&[&one, "plain", "controlled", "difference"]);
    for kind in KernelKind::ALL {
        let count = |side: &Side| side.launches.get(&kind).copied().unwrap_or(0);
        let (before, after) = (count(plain), count(injected));
        if before + after > 0 {
            table.add_row([kind.label().to_owned(), before.to_string(), after.to_string(), signed(before, after)]);
        }
    }
    let launches = signed(plain.all_launches, injected.all_launches);
    table.add_row([
        "launched in all".to_owned(),
        plain.all_launches.to_string(),
        injected.all_launches.to_string(),
        launches,
    ]);
    let percent = |extra: f64| format!("{extra:+.3}%");
    let (before, after) = (large(plain.bytes_accessed, "B"), large(injected.bytes_accessed, "B"));
    table.add_row(["bytes accessed".to_owned(), before, after, percent(audit.extra_bytes())]);
    let main = |side: &Side| large(side.main_memory_bytes as f64, "B");
    table.add_row(["bytes of main memory".to_owned(), main(plain), main(injected), percent(audit.extra_main_memory())]);
    let more = if plain.flops == injected.flops { 0.0 } else { (injected.flops / plain.flops - 1.0) * 100.0 };
    table.add_row([
        "floating-point operations".to_owned(),
        large(plain.flops, ""),
        large(injected.flops, ""),
        percent(more),
    ]);
    let (before, after) = (plain.memory, injected.memory);
    for (label, before, after) in [
        ("arguments", before.arguments, after.arguments),
        ("scratch memory", before.temporary, after.temporary),
        ("donated", before.aliased, after.aliased),
    ] {
        let size = |bytes: i64| BinaryBytes(u64::try_from(bytes).unwrap_or(0)).to_string();
        table.add_row([label.to_owned(), size(before), size(after), format!("{:+} B", after.saturating_sub(before))]);
    }
    let kept = format!("{} of {} kept", audit.aliases_kept, plain.aliases);
    table.add_row(["aliases".to_owned(), plain.aliases.to_string(), injected.aliases.to_string(), kept]);
    let bytes = |side: &Side| {
        side.collectives.iter().fold(0_u64, |sum, c| c.bytes.saturating_mul(c.launches).saturating_add(sum))
    };
    if bytes(plain) + bytes(injected) > 0 {
        let size = |side: &Side| BinaryBytes(bytes(side)).to_string();
        table.add_row([
            "bytes communicated".to_owned(),
            size(plain),
            size(injected),
            signed(bytes(plain), bytes(injected)),
        ]);
    }
    let (before, after) = (plain.host.len() as u64, injected.host.len() as u64);
    table.add_row([
        "constructs with the host".to_owned(),
        before.to_string(),
        after.to_string(),
        signed(before, after),
    ]);
    let counted = match audit.counted_by {
        CountedBy::Compiler => "counted by the compiler",
        CountedBy::Shapes => "counted from shapes",
    };
    let compiler = audit.compiler.lines().next().unwrap_or_default();
    let mut text = format!(
        "{table}\ntarget {} ({compiler}); bytes accessed and operations {counted}, bytes of main memory from shapes\n",
        audit.target
    );
    for (opcode, more) in audit.extra_collectives() {
        text += &format!("{opcode}: {:+} in a step, {:+} bytes\n", more.launches, more.bytes);
    }
    text += &spectral(audit);
    text += &audit.replicas.as_ref().map(exchanged).unwrap_or_default();
    text += &kernels("kernels that only the controlled step has", &audit.added);
    text += &kernels("kernels that only the plain step has", &audit.removed);
    text += &placement(audit);
    for host in audit.extra_host() {
        text += &format!("brings the host in: %{}, {} ({})\n", host.name, host.what, host.op_name);
    }
    for lost in &audit.aliases_lost {
        text += &format!("alias lost: {lost}\n");
    }
    text
}

/// What making singular values of updates equal costs, of which nothing else in control has products; empty where that is not
/// done.
#[allow(clippy::cast_precision_loss, reason = "figures of a report")]
fn spectral(audit: &Audit) -> String {
    let counted = audit.injected.product_flops.saturating_sub(audit.plain.product_flops);
    if counted == 0 {
        return String::new();
    }
    let share = counted as f64 / audit.plain.product_flops.max(1) as f64 * 100.0;
    let mut text = format!(
        "spectral: control adds {} in products, {share:.2}% of those of the plain step, counted from the optimized modules\n",
        large(counted as f64, "FLOP")
    );
    if audit.counted_by == CountedBy::Compiler {
        let more = audit.injected.flops - audit.plain.flops;
        text += &format!("spectral: all of control adds {} by the compiler's own count\n", large(more, "FLOP"));
    }
    text
}

/// What replicas hold and send each other.
fn exchanged(audit: &ReplicaAudit) -> String {
    let all = |what: &str, e: crate::audit::Exchanged| format!("{} of {what} with {} bytes", e.launches, e.bytes);
    let (held, before, emitted) = (audit.controlled_states, audit.plain_states, audit.emitted);
    format!(
        "{} replicas, each of which holds {} states of {} bytes ({} of {} without control)\n\
         reductions over replicas as emitted: {}, {}, {}\n\
         collectives as compiled: {} with {} bytes without control, {} with {} bytes under control; control adds {:+} and {:+} \
         bytes\n",
        audit.replicas,
        held.states,
        held.bytes,
        before.states,
        before.bytes,
        all("gradients", emitted.gradients),
        all("loss, keys and statistics of the data", emitted.other),
        all("the controller's statistics", emitted.statistics),
        audit.plain.launches,
        audit.plain.bytes,
        audit.controlled.launches,
        audit.controlled.bytes,
        audit.added_launches(),
        audit.added_bytes()
    )
}

/// Kernels by what they are made of, those of the controller alone first.
fn kernels(title: &str, kernels: &[crate::audit::kernel::Kernel]) -> String {
    let (mut control, mut mixed, mut other) = (0_u64, 0_u64, 0_u64);
    for kernel in kernels {
        let count = if kernel.is_control() {
            &mut control
        } else if kernel.controller_ops.is_empty() {
            &mut other
        } else {
            &mut mixed
        };
        *count = count.saturating_add(kernel.launches);
    }
    format!(
        "{title}: {} launches ({control} of the controller alone, {mixed} of it and the step, {other} of the step regrouped)\n",
        control.saturating_add(mixed).saturating_add(other)
    )
}

/// How many of the controller's operations went into kernels of the step, by pass.
fn placement(audit: &Audit) -> String {
    let own: BTreeMap<&str, bool> = audit.injected.kernels.iter().map(|k| (k.name.as_str(), k.is_control())).collect();
    let mut passes: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (op, kernels) in &audit.controller_ops {
        let pass = op.split('/').nth(1).unwrap_or_default();
        let (fused, alone) = passes.entry(pass).or_default();
        if kernels.iter().any(|name| own.get(name.as_str()) == Some(&false)) {
            *fused += 1;
        } else {
            *alone += 1;
        }
    }
    let mut text = "where the controller's operations went, by what they are for:\n".to_owned();
    for (pass, (fused, alone)) in passes {
        text += &format!("  {pass}: {fused} into kernels of the step, {alone} into kernels of their own\n");
    }
    text
}

fn signed(before: u64, after: u64) -> String {
    if after >= before { format!("+{}", after - before) } else { format!("-{}", before - after) }
}

/// A large number with a decimal prefix.
fn large(number: f64, unit: &str) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P"];
    let mut scaled = number;
    let mut index = 0;
    while scaled >= 1000.0 && index + 1 < prefixes.len() {
        scaled /= 1000.0;
        index += 1;
    }
    let prefix = prefixes.get(index).copied().unwrap_or_default();
    format!("{scaled:.3} {prefix}{unit}").trim_end().to_owned()
}
