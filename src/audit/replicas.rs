//! What replicas send each other: what passes put into the step, and what the target's compiler makes of it.
//!
//! A compiler may put several reductions into one, so that which of them are the gradients' and which are the statistics' is
//! known of the emitted module; of the compiled ones it is known what both take together, and what control adds.

use std::num::NonZeroU32;

use hlo::{Module, Opcode};
use serde::Serialize;

use super::kernel::Collective;
use crate::bundle::Manifest;
use crate::bundle::manifest::InputRole;

/// The `op_name` of what makes one of the values of all replicas; what it is follows.
const REDUCED: &str = "entropic/gradient-all-reduce/";

/// The `op_name` of the statistics' reduction.
const STATISTICS: &str = "entropic/reduce-statistics";

/// What the replicas of a step hold and send each other, without and with control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplicaAudit {
    /// How many there are.
    pub replicas: NonZeroU32,
    /// What each holds from step to step without control.
    pub plain_states: Held,
    /// The same under control.
    pub controlled_states: Held,
    /// Reductions over replicas in the controlled step, as passes emitted them.
    pub emitted: Emitted,
    /// All collectives of the plain step, as its compiler left them.
    pub plain: Exchanged,
    /// The same of the controlled step.
    pub controlled: Exchanged,
}

/// What one replica holds from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Held {
    /// Arrays.
    pub states: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Collectives together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Exchanged {
    /// How often one runs in a step.
    pub launches: u64,
    /// Bytes of their results on one device.
    pub bytes: u64,
}

/// Reductions over replicas, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Emitted {
    /// Gradients.
    pub gradients: Exchanged,
    /// The loss, statistics of the data, metrics, keys, and the counts that weigh replicas.
    pub other: Exchanged,
    /// The controller's statistics of each replica's own gradients.
    pub statistics: Exchanged,
}

impl Exchanged {
    fn add(&mut self, launches: u64, bytes: u64) {
        self.launches = self.launches.saturating_add(launches);
        self.bytes = self.bytes.saturating_add(bytes.saturating_mul(launches));
    }

    /// Those of a compiled step.
    #[must_use]
    pub fn of(collectives: &[Collective]) -> Self {
        let mut all = Self::default();
        collectives.iter().for_each(|collective| all.add(collective.launches, collective.bytes));
        all
    }
}

impl Held {
    /// What a step with that manifest holds.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        let held = manifest.inputs.iter().filter(|input| input.role != InputRole::Batch);
        held.fold(Self::default(), |all, input| {
            let bytes = hlo::Shape::array(input.dtype.primitive(), &input.shape).byte_size();
            Self { states: all.states + 1, bytes: all.bytes.saturating_add(bytes) }
        })
    }
}

impl Emitted {
    /// The reductions over replicas in a module of single steps, of which these are the names of parameters.
    #[must_use]
    pub fn of(module: &Module, parameters: &[String]) -> Self {
        let mut emitted = Self::default();
        let reduced = module.entry_computation().instructions().filter(|(_, i)| i.opcode == Opcode::AllReduce);
        for (_, instruction) in reduced {
            let op_name = instruction.op_name();
            let of_parameter = op_name.strip_prefix(REDUCED).is_some_and(|name| parameters.iter().any(|p| p == name));
            let kind = match op_name {
                STATISTICS => &mut emitted.statistics,
                _ if of_parameter => &mut emitted.gradients,
                _ => &mut emitted.other,
            };
            kind.add(1, instruction.shape.byte_size());
        }
        emitted
    }
}

impl ReplicaAudit {
    /// Launches of collectives that control adds, less those that it saves.
    #[must_use]
    pub fn added_launches(&self) -> i64 {
        super::difference(self.plain.launches, self.controlled.launches)
    }

    /// Bytes of collectives that control adds.
    #[must_use]
    pub fn added_bytes(&self) -> i64 {
        super::difference(self.plain.bytes, self.controlled.bytes)
    }
}
