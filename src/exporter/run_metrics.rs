//! The metrics of a run, and how steps change them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::train::{ControlRecord, GateReason, Observer, Setup, StepRecord, checkpoint::Written};

type Value = Gauge<f64, AtomicU64>;

/// What a run is, in labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RunLabels {
    /// Version of this program.
    pub version: String,
    /// Name of the bundle.
    pub model: String,
    /// Folder of the run.
    pub run: String,
    /// Platform and kind of device.
    pub device: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTensor {
    tensor: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Because {
    reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reason(GateReason);

impl EncodeLabelValue for Reason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.name().encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// Series of one tensor.
#[derive(Debug)]
struct TensorSeries {
    entropy: Value,
    norm: Value,
    scale: Value,
    spectral: Value,
}

/// The metrics of a run.
#[derive(Debug)]
pub struct RunMetrics {
    registry: Registry,
    steps: Counter,
    planned: Gauge,
    loss: Value,
    non_finite_losses: Counter,
    read_at: Value,
    entropy: Value,
    smoothed: Value,
    target: Value,
    norm: Value,
    threshold: Value,
    lr_scale: Value,
    momentum_scale: Value,
    switched: Gauge,
    spectral: Value,
    refusals: Family<Because, Counter>,
    rollbacks: Counter,
    rearmings: Counter,
    loss_scale_skips: Counter,
    tensors: Vec<TensorSeries>,
    checkpoints: Family<Outcome, Counter>,
    checkpoint_step: Gauge,
    checkpoint_at: Value,
    checkpoint_seconds: Value,
    checkpoint_bytes: Gauge,
    mismatches: Counter,
    ready: AtomicBool,
}

impl RunMetrics {
    /// For a run that is prepared, with series of their own for the first `most_tensors` of its tensors.
    #[must_use]
    pub fn of_run(setup: &Setup, most_tensors: usize) -> Self {
        let labels = RunLabels {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: setup.model.clone(),
            run: setup.folder.path().display().to_string(),
            device: setup.engine.platform(),
        };
        let tensors: Vec<&str> = setup.telemetry.iter().flat_map(|telemetry| telemetry.tensors()).collect();
        Self::new(labels, setup.steps, &tensors, most_tensors)
    }

    /// For a run over that many steps, with gradients of these tensors, of which the first `most_tensors` get series of their own.
    #[must_use]
    pub fn new(labels: RunLabels, planned: u64, tensors: &[&str], most_tensors: usize) -> Self {
        let mut registry = Registry::with_prefix("entropic");
        registry.register("run", "What runs", Info::new(labels));
        let mut r = Builder { registry: &mut registry };
        let per_tensor = [
            r.per_tensor("tensor_gradient_entropy", "Entropy of a tensor's gradient, 0 to 1", ratio()),
            r.per_tensor("tensor_gradient_norm", "Norm of a tensor's gradient, before clipping", None),
            r.per_tensor("tensor_update_scale", "Scale of a tensor's update", ratio()),
            r.per_tensor("tensor_spectral_entropy", "Spectral entropy of a tensor's update, 0 to 1", ratio()),
        ];
        let series = tensors.iter().take(most_tensors).map(|tensor| {
            let [entropy, norm, scale, spectral] = per_tensor.each_ref().map(|family| {
                let series = family.get_or_create_owned(&OfTensor { tensor: (*tensor).to_owned() });
                series.set(f64::NAN);
                series
            });
            TensorSeries { entropy, norm, scale, spectral }
        });
        let tensors = series.collect();
        let refusals = Family::<Because, Counter>::default();
        for reason in GateReason::ALL {
            let _ = refusals.get_or_create_owned(&Because { reason: Reason(reason) });
        }
        r.registry.register("gate_refusals", "Updates that gates refused", refusals.clone());
        let checkpoints = Family::<Outcome, Counter>::default();
        for result in ["written", "failed"] {
            let _ = checkpoints.get_or_create_owned(&Outcome { result });
        }
        r.registry.register("checkpoints", "Checkpoints by what became of them", checkpoints.clone());
        let metrics = Self {
            steps: r.counter("steps", "Steps done and read by the host"),
            planned: r.whole("planned_steps", "Steps that the run is to do in all"),
            loss: r.value("loss", "Training loss of the last step, before its update", None),
            non_finite_losses: r.counter("non_finite_losses", "Steps whose loss was not finite"),
            read_at: r.value(
                "last_step_timestamp",
                "When the last step was read, since the Unix epoch",
                Some(Unit::Seconds),
            ),
            entropy: r.value("gradient_entropy", "Entropy of the whole gradient, 0 to 1", ratio()),
            smoothed: r.value("gradient_entropy_smoothed", "Its mean over the last accepted steps", ratio()),
            target: r.value("gradient_entropy_target", "Its target, NaN until calibrated", ratio()),
            norm: r.value("gradient_norm", "Norm of the whole gradient, before clipping", None),
            threshold: r.value("gradient_norm_threshold", "Norm above which a step is refused, NaN until armed", None),
            lr_scale: r.value("learning_rate_scale", "What the laws of all tensors make of the learning rate", ratio()),
            momentum_scale: r.value("momentum_scale", "What they make of the momentum", ratio()),
            switched: r.whole("optimizer_switched", "1 where the last step was made by SGD with momentum"),
            spectral: r.value("spectral_entropy", "Mean spectral entropy of updates of matrices, 0 to 1", ratio()),
            refusals,
            rollbacks: r.counter("rollbacks", "Returns of held states to their copies"),
            rearmings: r.counter("gate_rearmings", "How often gates were re-armed"),
            loss_scale_skips: r.counter("loss_scale_skips", "Steps that overflowed under the step's own loss scale"),
            tensors,
            checkpoints,
            checkpoint_step: r.whole("last_checkpoint_step", "Steps in the last checkpoint"),
            checkpoint_at: r.value(
                "last_checkpoint_timestamp",
                "When it was written, since the Unix epoch",
                Some(Unit::Seconds),
            ),
            checkpoint_seconds: r.value(
                "last_checkpoint_duration",
                "How long writing it took, beside training",
                Some(Unit::Seconds),
            ),
            checkpoint_bytes: r.whole_of("last_checkpoint_size", "Its size", Unit::Bytes),
            mismatches: r.counter("replica_mismatches", "Comparisons in which replicas held different states"),
            ready: AtomicBool::new(false),
            registry,
        };
        metrics.planned.set(i64::try_from(planned).unwrap_or(i64::MAX));
        metrics
    }

    /// Whether a step was read.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// All metrics as OpenMetrics, or in Prometheus's text format.
    ///
    /// # Errors
    ///
    /// Never, as far as the library says; it writes into a string.
    pub fn encode(&self, open_metrics: bool) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        if open_metrics {
            prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        } else {
            prometheus_client::encoding::prometheus_text::encode(&mut text, &self.registry)?;
        }
        Ok(text)
    }

    fn control(&self, control: &ControlRecord) {
        self.entropy.set(or_nan(control.entropy));
        self.smoothed.set(or_nan(control.smoothed));
        self.target.set(or_nan(control.target));
        self.norm.set(control.norm.into());
        self.threshold.set(or_nan(control.norm_threshold));
        self.lr_scale.set(or_nan(control.lr_scale));
        self.momentum_scale.set(or_nan(control.momentum_scale));
        self.switched.set(i64::from(control.switched == Some(true)));
        self.spectral.set(or_nan(control.spectral_entropy));
        match control.gate {
            Some(GateReason::LossScale) => _ = self.loss_scale_skips.inc(),
            Some(reason) => _ = self.refusals.get_or_create_owned(&Because { reason: Reason(reason) }).inc(),
            None => {}
        }
        if control.rollback.is_some_and(|r| r.rolled_back) {
            self.rollbacks.inc();
        }
        if control.rearmed {
            self.rearmings.inc();
        }
        let values = control.tensor_entropy.iter().zip(&control.tensor_norm).zip(&control.tensor_scale);
        for (series, ((entropy, norm), scale)) in self.tensors.iter().zip(values) {
            series.entropy.set(or_nan(*entropy));
            series.norm.set((*norm).into());
            series.scale.set((*scale).into());
        }
        for (series, entropy) in self.tensors.iter().zip(&control.tensor_spectral_entropy) {
            series.spectral.set(or_nan(*entropy));
        }
    }
}

impl Observer for &RunMetrics {
    fn step(&mut self, record: &StepRecord) {
        self.steps.inc();
        self.loss.set(record.loss.unwrap_or(f64::NAN));
        if record.loss.is_none() {
            self.non_finite_losses.inc();
        }
        if let Some(control) = &record.control {
            self.control(control);
        }
        if record.replicas.as_ref().is_some_and(|r| !r.replica_differences.is_empty()) {
            self.mismatches.inc();
        }
        self.read_at.set(now());
        self.ready.store(true, Ordering::Relaxed);
    }

    fn checkpoint(&mut self, written: &Written) {
        let result = if written.result.is_ok() { "written" } else { "failed" };
        self.checkpoints.get_or_create_owned(&Outcome { result }).inc();
        if let Ok((_, bytes)) = &written.result {
            self.checkpoint_step.set(i64::try_from(written.step).unwrap_or(i64::MAX));
            self.checkpoint_at.set(now());
            self.checkpoint_seconds.set(written.took.as_secs_f64());
            self.checkpoint_bytes.set(i64::try_from(*bytes).unwrap_or(i64::MAX));
        }
    }
}

/// Registers metrics that are not known yet: NaN, or 0.
struct Builder<'r> {
    registry: &'r mut Registry,
}

impl Builder<'_> {
    fn counter(&mut self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.registry.register(name, help, counter.clone());
        counter
    }

    fn whole(&mut self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.registry.register(name, help, gauge.clone());
        gauge
    }

    fn whole_of(&mut self, name: &str, help: &str, unit: Unit) -> Gauge {
        let gauge = Gauge::default();
        self.registry.register_with_unit(name, help, unit, gauge.clone());
        gauge
    }

    fn value(&mut self, name: &str, help: &str, unit: Option<Unit>) -> Value {
        let gauge = Value::default();
        gauge.set(f64::NAN);
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, gauge.clone()),
            None => self.registry.register(name, help, gauge.clone()),
        }
        gauge
    }

    fn per_tensor(&mut self, name: &str, help: &str, unit: Option<Unit>) -> Family<OfTensor, Value> {
        let family = Family::default();
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, family.clone()),
            None => self.registry.register(name, help, family.clone()),
        }
        family
    }
}

/// Prometheus's word is in the singular, the library's in the plural.
fn ratio() -> Option<Unit> {
    Some(Unit::Other("ratio".to_owned()))
}

fn or_nan(value: Option<f32>) -> f64 {
    value.map_or(f64::NAN, f64::from)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(f64::NAN, |since| since.as_secs_f64())
}
