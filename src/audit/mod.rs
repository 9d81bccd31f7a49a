//! What control costs once it is compiled: a step without and with the controller, compiled for a target, side by side.
//!
//! Both are compiled by the target's own compiler, in a child process and without the device; [`kernel`] counts what
//! each of them launches, [`cost`] what it moves and computes where the compiler does not say, and [`Audit`] compares.

mod compile;
mod cost;
pub mod kernel;
mod replicas;
mod trips;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::Serialize;
use thiserror::Error;

use crate::isolate::IsolateError;
use crate::plugin::FindError;
use crate::target::Target;
use kernel::{HostConstruct, Kernel, KernelKind, Profile};

pub use compile::{Compile, CompilerReport, Memory, Optimized, compile, compile_spread};
pub use replicas::{Emitted, Exchanged, Held, ReplicaAudit};

/// Why a step was not audited.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The plugin was not found.
    #[error(transparent)]
    Plugin(#[from] FindError),
    /// The module breaks a rule; the compiler never saw it.
    #[error("{what} is not compiled, it breaks the rules of HLO: {source}")]
    Verify {
        /// Which module.
        what: String,
        /// All violations.
        source: hlo::verify::VerifyErrors,
    },
    /// The compiler refused the module, or died of it.
    #[error("{what} does not compile for {target}: {source}")]
    Compile {
        /// Which module.
        what: String,
        /// For what.
        target: String,
        /// What happened.
        source: IsolateError,
    },
    /// What came back is no module.
    #[error("what the compiler made of {what} cannot be read: {source}")]
    Optimized {
        /// Which module.
        what: String,
        /// Why.
        source: hlo::ImportError,
    },
}

/// A step without and with control, compiled for one target.
#[derive(Debug, Clone, Serialize)]
pub struct Audit {
    /// The target's name.
    pub target: String,
    /// The compiler's version, in the plugin's words.
    pub compiler: String,
    /// Who counted bytes and floating-point operations.
    pub counted_by: CountedBy,
    /// The step as it was.
    pub plain: Side,
    /// The step under control.
    pub injected: Side,
    /// Launches of kernels that only the injected step has.
    pub added: Vec<Kernel>,
    /// Launches of kernels that only the plain step has.
    pub removed: Vec<Kernel>,
    /// Aliases of the plain step that the injected one has, too.
    pub aliases_kept: usize,
    /// Aliases of the plain step that the injected one has lost, in words.
    pub aliases_lost: Vec<String>,
    /// What replicas hold and send each other, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<ReplicaAudit>,
    /// Where each operation of the controller went: its `op_name`, and the kernels that it is in.
    pub controller_ops: BTreeMap<String, Vec<String>>,
}

/// Who counted bytes and floating-point operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountedBy {
    /// The target's compiler.
    Compiler,
    /// This program, from the shapes of the optimized module.
    Shapes,
}

/// One of the two steps.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    /// Launches in one step, by kind.
    pub launches: BTreeMap<KernelKind, u64>,
    /// All launches in one step.
    pub all_launches: u64,
    /// Bytes read and written in one step.
    pub bytes_accessed: f64,
    /// Bytes of main memory read and written in one step, from the shapes of the optimized module.
    pub main_memory_bytes: u64,
    /// Floating-point operations of one step.
    pub flops: f64,
    /// Those of products and convolutions, counted from the optimized module.
    pub product_flops: u64,
    /// Memory.
    pub memory: Memory,
    /// Aliases of outputs with arguments.
    pub aliases: usize,
    /// What brings the host in.
    pub host: Vec<HostConstruct>,
    /// Communication between devices.
    pub collectives: Vec<kernel::Collective>,
    /// Everything that is launched.
    #[serde(skip)]
    pub kernels: Vec<Kernel>,
}

/// Communication of one kind in one step; less than nothing where there is less of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Communicated {
    /// How often it runs.
    pub launches: i64,
    /// Bytes of the results on one device.
    pub bytes: i64,
}

/// Collectives that add up, the later half of asynchronous ones included.
const SUMS: &[&str] = &["all-reduce", "all-reduce-start", "reduce-scatter"];

/// Limits on what control may cost. What is `None` has no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Launches that may be added, those that are gone subtracted.
    pub extra_kernels: Option<u64>,
    /// Bytes accessed that may be added, in percent.
    pub extra_bytes: Option<f64>,
    /// Scratch memory that may be added, in percent.
    pub extra_temp: Option<f64>,
    /// Whether nothing may be added that brings the host in.
    pub no_host: bool,
    /// Whether devices may send each other nothing more but sums.
    pub only_sums: bool,
}

impl Audit {
    /// Compares what a compiler made of two steps, the second of which is the first under control.
    #[must_use]
    pub fn compare(target: &Target, plain: &Optimized, injected: &Optimized) -> Self {
        let profile = |side: &Optimized| Profile::of(&side.module, target.platform());
        let profiles = (profile(plain), profile(injected));
        let told = |side: &Optimized| side.report.flops.is_some() && side.report.bytes_accessed.is_some();
        let counted_by = if told(plain) && told(injected) { CountedBy::Compiler } else { CountedBy::Shapes };
        let (added, removed) = differing(&profiles.0.kernels, &profiles.1.kernels);
        let after: Vec<_> = injected.module.aliases();
        let (mut aliases_kept, mut aliases_lost) = (0, Vec::new());
        for alias in plain.module.aliases() {
            if after.iter().any(|a| a.output == alias.output && a.parameter == alias.parameter) {
                aliases_kept += 1;
            } else {
                aliases_lost.push(format!("output {:?} with argument {}", alias.output, alias.parameter));
            }
        }
        let mut controller_ops: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for kernel in &profiles.1.kernels {
            for op in &kernel.controller_ops {
                controller_ops.entry(op.clone()).or_default().push(kernel.name.clone());
            }
        }
        Self {
            target: target.to_string(),
            compiler: injected.report.platform_version.clone(),
            counted_by,
            plain: Side::new(plain, profiles.0, counted_by),
            injected: Side::new(injected, profiles.1, counted_by),
            added,
            removed,
            aliases_kept,
            aliases_lost,
            replicas: None,
            controller_ops,
        }
    }

    /// The same, of steps of so many replicas: what they hold without and with control, and what passes had them send each other.
    #[must_use]
    pub fn of_replicas(
        mut self,
        replicas: NonZeroU32,
        [plain_states, controlled_states]: [Held; 2],
        emitted: Emitted,
    ) -> Self {
        let [plain, controlled] = [&self.plain, &self.injected].map(|side| Exchanged::of(&side.collectives));
        let audit = ReplicaAudit { replicas, plain_states, controlled_states, emitted, plain, controlled };
        self.replicas = Some(audit);
        self
    }

    /// Launches added, less launches gone.
    #[must_use]
    pub fn extra_kernels(&self) -> i64 {
        difference(self.plain.all_launches, self.injected.all_launches)
    }

    /// Communication added, by operation; what is gone is subtracted, and what is equal left out.
    #[must_use]
    pub fn extra_collectives(&self) -> BTreeMap<String, Communicated> {
        let mut extra: BTreeMap<String, Communicated> = BTreeMap::new();
        for (side, sign) in [(&self.injected, 1), (&self.plain, -1)] {
            for collective in &side.collectives {
                let signed = |n: u64| sign * i64::try_from(n).unwrap_or(i64::MAX);
                let more = extra.entry(collective.opcode.clone()).or_default();
                more.launches = more.launches.saturating_add(signed(collective.launches));
                more.bytes = more.bytes.saturating_add(signed(collective.bytes.saturating_mul(collective.launches)));
            }
        }
        extra.retain(|_, more| *more != Communicated::default());
        extra
    }

    /// Bytes accessed added, in percent.
    #[must_use]
    pub fn extra_bytes(&self) -> f64 {
        percent(self.plain.bytes_accessed, self.injected.bytes_accessed)
    }

    /// Bytes of main memory added, in percent.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a percentage of bytes")]
    pub fn extra_main_memory(&self) -> f64 {
        percent(self.plain.main_memory_bytes as f64, self.injected.main_memory_bytes as f64)
    }

    /// Scratch memory added, in percent.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a percentage of bytes")]
    pub fn extra_temp(&self) -> f64 {
        percent(self.plain.memory.temporary as f64, self.injected.memory.temporary as f64)
    }

    /// Whatever brings the host into the injected step and is not in the plain one.
    #[must_use]
    pub fn extra_host(&self) -> Vec<&HostConstruct> {
        let key = |h: &HostConstruct| (h.what.clone(), h.op_name.clone());
        let mut known: Vec<_> = self.plain.host.iter().map(key).collect();
        let is_new = |h: &&HostConstruct| match known.iter().position(|k| *k == key(h)) {
            Some(position) => {
                known.swap_remove(position);
                false
            }
            None => true,
        };
        self.injected.host.iter().filter(is_new).collect()
    }

    /// In words, each limit that is exceeded. An alias that is lost always is: it costs a copy of a state.
    #[must_use]
    pub fn exceeded(&self, limits: &Limits) -> Vec<String> {
        let mut exceeded = Vec::new();
        let kernels = self.extra_kernels();
        if let Some(limit) = limits.extra_kernels.filter(|&l| i128::from(kernels) > i128::from(l)) {
            exceeded.push(format!("{kernels} more kernels are launched in a step, {limit} are allowed"));
        }
        let mut check = |what: &str, extra: f64, limit: Option<f64>| {
            if let Some(limit) = limit.filter(|&l| extra > l) {
                exceeded.push(format!("{what} grow by {extra:.3}%, {limit}% are allowed"));
            }
        };
        check("bytes accessed", self.extra_bytes(), limits.extra_bytes);
        check("bytes of scratch memory", self.extra_temp(), limits.extra_temp);
        if limits.no_host {
            for h in self.extra_host() {
                exceeded.push(format!("%{} brings the host in: {} ({})", h.name, h.what, h.op_name));
            }
        }
        if limits.only_sums {
            for (opcode, more) in self.extra_collectives() {
                if more.launches > 0 && !SUMS.contains(&opcode.as_str()) {
                    exceeded.push(format!("{} more {opcode} run in a step, with {} bytes", more.launches, more.bytes));
                }
            }
        }
        for lost in &self.aliases_lost {
            exceeded.push(format!("the alias of {lost} is lost, so that state is copied in every step"));
        }
        exceeded
    }
}

impl Side {
    #[allow(clippy::cast_precision_loss, reason = "figures of a report")]
    fn new(optimized: &Optimized, profile: Profile, counted_by: CountedBy) -> Self {
        let report = &optimized.report;
        let (bytes, flops) = match counted_by {
            CountedBy::Compiler => (report.bytes_accessed, report.flops),
            CountedBy::Shapes => (None, None),
        };
        Self {
            launches: KernelKind::ALL.into_iter().map(|kind| (kind, profile.launches(kind))).collect(),
            all_launches: profile.all_launches(),
            bytes_accessed: bytes.unwrap_or(profile.bytes() as f64),
            main_memory_bytes: profile.main_memory_bytes(),
            flops: flops.unwrap_or(profile.flops() as f64),
            product_flops: profile
                .kernels
                .iter()
                .fold(0, |sum, k| k.product_flops.saturating_mul(k.launches).saturating_add(sum)),
            memory: report.memory,
            aliases: optimized.module.aliases().len(),
            host: profile.host,
            collectives: profile.collectives,
            kernels: profile.kernels,
        }
    }
}

/// The kernels that only the second side has, and those that only the first has, as often as they differ.
///
/// A kernel is the same on both sides where, apart from the controller's, the same operations are in it.
fn differing(plain: &[Kernel], injected: &[Kernel]) -> (Vec<Kernel>, Vec<Kernel>) {
    let mut unmatched: BTreeMap<(KernelKind, &[String]), Vec<&Kernel>> = BTreeMap::new();
    for kernel in plain {
        unmatched.entry((kernel.kind, &kernel.signature)).or_default().push(kernel);
    }
    let mut added = Vec::new();
    for kernel in injected {
        let twin = unmatched.get_mut(&(kernel.kind, kernel.signature.as_slice())).and_then(Vec::pop);
        // A kernel of the controller alone has an empty signature, as has one that the compiler made by itself.
        if twin.is_none() {
            added.push(kernel.clone());
        }
    }
    (added, unmatched.into_values().flatten().cloned().collect())
}

fn difference(before: u64, after: u64) -> i64 {
    i64::try_from(i128::from(after) - i128::from(before)).unwrap_or(i64::MAX)
}

/// How much larger `after` is, in percent of `before`.
fn percent(before: f64, after: f64) -> f64 {
    if before == after { 0.0 } else { (after / before - 1.0) * 100.0 }
}
