//! What a report shows of a run, gathered in one reading of its metrics and in memory that does not grow with its steps.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::series::Series;
use crate::recorded::{self, RecordedError, RunDocument, Steps};
use crate::train::{ControlRecord, GateReason, StepRecord, Summary};

/// Bins of a curve: more than a page has room for.
const CURVE: u64 = 512;
/// Bins of the clock: a rate over few steps is mostly noise.
const CLOCK: u64 = 64;
/// Cells of a heat map, over all tensors.
const CELLS: u64 = 60_000;
/// Losses whose mean is the final one.
pub const FINAL: usize = 100;

/// Something that happens in some steps.
#[derive(Debug, Clone)]
pub struct Event {
    /// What, in words.
    pub name: String,
    /// How much it matters, for its colour.
    pub weight: Weight,
    /// How often.
    pub total: u64,
    /// The first and the last step, where it happened at all.
    pub steps: Option<(u64, u64)>,
    /// How often, by steps: the counts of the bins.
    pub when: Series,
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Something was wrong.
    Bad,
    /// The controller acted.
    Act,
    /// Something to know.
    Note,
}

impl Weight {
    /// Its class in the page's style.
    #[must_use]
    pub fn class(self) -> &'static str {
        match self {
            Self::Bad => "bad",
            Self::Act => "act",
            Self::Note => "note",
        }
    }
}

impl Event {
    fn new(name: &str, weight: Weight) -> Self {
        Self { name: name.to_owned(), weight, total: 0, steps: None, when: Series::new(CURVE) }
    }

    fn happened(&mut self, step: u64) {
        self.total += 1;
        self.steps = Some((self.steps.map_or(step, |(first, _)| first), step));
        self.when.push(step, Some(1.0));
    }
}

/// The events that are told apart.
#[derive(Debug)]
struct Events {
    loss: Event,
    /// As [`GateReason::ALL`].
    gates: Vec<(GateReason, Event)>,
    rolled_back: Event,
    rearmed: Event,
    calibrated: Event,
    to_sgd: Event,
    back: Event,
    stop: Event,
    replicas: Event,
    spoilt: Event,
    resumed: Event,
}

impl Events {
    fn new() -> Self {
        let gate = |reason: GateReason| {
            let (name, weight) = match reason {
                GateReason::NonFinite => ("refused: not finite", Weight::Bad),
                GateReason::LossScale => ("skipped by the loss scale", Weight::Note),
                GateReason::Norm => ("refused: norm", Weight::Act),
                GateReason::EntropyLow => ("refused: entropy below the band", Weight::Act),
                GateReason::EntropyHigh => ("refused: entropy above the band", Weight::Act),
                GateReason::Other => ("refused: other", Weight::Act),
            };
            (reason, Event::new(name, weight))
        };
        Self {
            loss: Event::new("loss not finite", Weight::Bad),
            gates: GateReason::ALL.into_iter().map(gate).collect(),
            rolled_back: Event::new("rolled back", Weight::Bad),
            rearmed: Event::new("gates re-armed", Weight::Note),
            calibrated: Event::new("targets calibrated", Weight::Note),
            to_sgd: Event::new("optimizer gave way to SGD", Weight::Act),
            back: Event::new("optimizer came back", Weight::Act),
            stop: Event::new("controller asked to stop", Weight::Bad),
            replicas: Event::new("replicas differed", Weight::Bad),
            spoilt: Event::new("batch spoilt on purpose", Weight::Note),
            resumed: Event::new("went on after an end", Weight::Note),
        }
    }

    fn step(&mut self, record: &StepRecord, switched_before: Option<bool>) {
        let step = record.step;
        let when = |holds: bool, event: &mut Event| {
            if holds {
                event.happened(step);
            }
        };
        when(record.loss.is_none(), &mut self.loss);
        when(record.fault.is_some(), &mut self.spoilt);
        when(record.replicas.as_ref().is_some_and(|r| !r.replica_differences.is_empty()), &mut self.replicas);
        let Some(control) = &record.control else { return };
        for (reason, event) in &mut self.gates {
            when(control.gate == Some(*reason), event);
        }
        when(control.rollback.is_some_and(|r| r.rolled_back), &mut self.rolled_back);
        when(control.rearmed, &mut self.rearmed);
        when(control.calibrated, &mut self.calibrated);
        when(control.stop, &mut self.stop);
        when(switched_before != Some(true) && control.switched == Some(true), &mut self.to_sgd);
        when(switched_before == Some(true) && control.switched == Some(false), &mut self.back);
    }

    fn happened(self) -> Vec<Event> {
        let gates = self.gates.into_iter().map(|(_, event)| event);
        let rest = [self.rolled_back, self.rearmed, self.to_sgd, self.back, self.stop, self.calibrated, self.replicas];
        let all = [self.loss].into_iter().chain(gates).chain(rest).chain([self.spoilt, self.resumed]);
        all.filter(|event| event.total > 0).collect()
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Overview {
    /// Its folder.
    pub folder: PathBuf,
    /// What ran.
    pub run: RunDocument,
    /// What it came to, where it has ended in order.
    pub summary: Option<Summary>,
    /// Steps of the newest checkpoint.
    pub checkpoint: Option<u64>,
    /// The steps that it went on from.
    pub resumed_from: Vec<u64>,
    /// Steps that were recorded.
    pub steps: u64,
    /// Number of the last of them.
    pub last: u64,
    /// Number of the last line, where that was cut short.
    pub cut: Option<usize>,
    /// Seconds of training, as the last record has them.
    pub seconds: Option<f64>,
    /// Training losses.
    pub loss: Series,
    /// Entropy of the whole gradient.
    pub entropy: Series,
    /// Its mean over accepted steps.
    pub smoothed: Series,
    /// Its target.
    pub target: Series,
    /// Norm of the whole gradient.
    pub norm: Series,
    /// The limit of it.
    pub threshold: Series,
    /// What laws make of the learning rate.
    pub lr_scale: Series,
    /// What they make of the momentum.
    pub momentum_scale: Series,
    /// The back-off after a return.
    pub backoff: Series,
    /// Mean spectral entropy of updates of matrices.
    pub spectral: Series,
    /// Entropies, by tensor.
    pub tensors: Vec<Series>,
    /// Scales of updates, by tensor.
    pub scales: Vec<Series>,
    /// Scales of momentum, by tensor; empty where there are none.
    pub momenta: Vec<Series>,
    /// Seconds since the start.
    pub clock: Series,
    /// What happened at all.
    pub events: Vec<Event>,
    last_losses: VecDeque<Option<f64>>,
    last_entropy: Option<f64>,
}

impl Overview {
    /// Reads a run.
    ///
    /// # Errors
    ///
    /// Where the folder is no run, or a document is damaged.
    pub fn read(folder: &Path) -> Result<Self, RecordedError> {
        let run = RunDocument::read(folder)?;
        let summary = recorded::summary(folder)?;
        let checkpoint = recorded::last_checkpoint(folder);
        let resumed_from = match (&summary, &checkpoint) {
            (Some(summary), _) => summary.resumed_from.clone(),
            (None, Some(checkpoint)) => checkpoint.resumed_from.clone(),
            (None, None) => Vec::new(),
        };
        let written = summary.as_ref().and_then(|s| s.checkpoint);
        let curve = || Series::new(CURVE);
        let cells = (CELLS / (run.tensors.len() as u64).max(1)).clamp(32, CURVE / 2);
        let by_tensor = vec![Series::new(cells); run.tensors.len()];
        let mut overview = Self {
            folder: folder.to_owned(),
            summary,
            checkpoint: written.or(checkpoint.map(|c| c.step)),
            resumed_from,
            steps: 0,
            last: 0,
            cut: None,
            seconds: None,
            loss: curve(),
            entropy: curve(),
            smoothed: curve(),
            target: curve(),
            norm: curve(),
            threshold: curve(),
            lr_scale: curve(),
            momentum_scale: curve(),
            backoff: curve(),
            spectral: curve(),
            tensors: by_tensor.clone(),
            scales: by_tensor.clone(),
            momenta: by_tensor,
            clock: Series::new(CLOCK),
            events: Vec::new(),
            last_losses: VecDeque::with_capacity(FINAL),
            last_entropy: None,
            run,
        };
        let mut events = Events::new();
        let mut switched = None;
        let mut steps = Steps::open(folder)?;
        while let Some(record) = steps.next_step()? {
            events.step(&record, switched);
            switched = record.control.as_ref().and_then(|c| c.switched);
            overview.step(&record);
        }
        overview.cut = steps.cut();
        overview.resumed_from.iter().for_each(|&step| events.resumed.happened(step));
        overview.events = events.happened();
        // Where nothing was ever scaled, there is nothing to see.
        for series in [&mut overview.scales, &mut overview.momenta] {
            let moved = |s: &Series| s.filled().any(|(_, bin)| bin.low != 1.0 || bin.high != 1.0);
            if !series.iter().any(moved) {
                series.clear();
            }
        }
        Ok(overview)
    }

    fn step(&mut self, record: &StepRecord) {
        let step = record.step;
        self.steps += 1;
        self.last = step;
        self.seconds = Some(record.seconds);
        self.loss.push(step, record.loss);
        self.clock.push(step, Some(record.seconds));
        if self.last_losses.len() == FINAL {
            self.last_losses.pop_front();
        }
        self.last_losses.push_back(record.loss);
        if let Some(control) = &record.control {
            self.control(step, control);
        }
    }

    fn control(&mut self, step: u64, control: &ControlRecord) {
        let wide = |value: Option<f32>| value.map(f64::from);
        for (series, value) in [
            (&mut self.entropy, control.entropy),
            (&mut self.smoothed, control.smoothed),
            (&mut self.target, control.target),
            (&mut self.norm, Some(control.norm)),
            (&mut self.threshold, control.norm_threshold),
            (&mut self.lr_scale, control.lr_scale),
            (&mut self.momentum_scale, control.momentum_scale),
            (&mut self.backoff, control.rollback.map(|r| r.backoff)),
            (&mut self.spectral, control.spectral_entropy),
        ] {
            series.push(step, wide(value));
        }
        self.last_entropy = wide(control.smoothed.or(control.entropy)).or(self.last_entropy);
        for (n, series) in self.tensors.iter_mut().enumerate() {
            series.push(step, control.tensor_entropy.get(n).copied().flatten().map(f64::from));
        }
        for (all, values) in [(&mut self.scales, &control.tensor_scale), (&mut self.momenta, &control.tensor_momentum)]
        {
            for (series, &value) in all.iter_mut().zip(values) {
                series.push(step, Some(f64::from(value)));
            }
        }
    }

    /// The mean of the last losses that are finite, at most [`FINAL`] of them.
    #[must_use]
    pub fn final_loss(&self) -> Option<f64> {
        let finite: Vec<f64> = self.last_losses.iter().flatten().copied().filter(|loss| loss.is_finite()).collect();
        let share = 1.0 / finite.len() as f64;
        (!finite.is_empty()).then(|| finite.iter().map(|loss| loss * share).sum())
    }

    /// The last smoothed entropy.
    #[must_use]
    pub fn final_entropy(&self) -> Option<f64> {
        self.last_entropy
    }

    /// Updates that were refused, skips of the loss scale left out.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.events.iter().filter(|e| e.name.starts_with("refused")).map(|e| e.total).sum()
    }

    /// Returns of held states.
    #[must_use]
    pub fn rollbacks(&self) -> u64 {
        self.events.iter().filter(|e| e.name == "rolled back").map(|e| e.total).sum()
    }

    /// Steps per second over the whole run, as it was summed up or else as the clock of its steps says.
    #[must_use]
    pub fn steps_per_second(&self) -> Option<f64> {
        let summed = self.summary.as_ref().map(|s| s.steps_per_second);
        let clocked = self.seconds.filter(|s| *s > 0.0).map(|seconds| self.steps as f64 / seconds);
        summed.or(clocked).filter(|rate| rate.is_finite())
    }

    /// The name that the run goes by.
    #[must_use]
    pub fn name(&self) -> String {
        self.folder.display().to_string()
    }
}
