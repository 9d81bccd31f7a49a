//! What a run is made of, as far as going on from a checkpoint depends on it.

use std::fmt;
use std::num::NonZeroU32;

use passes::Policy;
use serde::{Deserialize, Serialize};

use crate::train::Corruption;

/// What a run is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// SHA-256 of the module of one step, controller included.
    pub module_sha256: String,
    /// The controller's policy, where there is a controller.
    pub policy: Option<Policy>,
    /// SHA-256 of the data, see [`crate::train::BatchMaker::sha256`].
    pub data_sha256: String,
    /// Seeds the initial state and the order of the data.
    pub seed: u32,
    /// Replicas that share each global batch.
    pub replicas: NonZeroU32,
    /// What was spoilt on purpose.
    pub corruption: Option<Corruption>,
    /// What it ran on.
    pub machine: Machine,
}

/// What decides about the last bit of a result beside the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Platform and kind of device.
    pub device: String,
    /// The plugin and its version.
    pub plugin: String,
    /// Whether only deterministic kernels were taken.
    pub deterministic: bool,
    /// Threads that the CPU plugin shares work among; it adds up in another order with another number of them.
    pub threads: usize,
}

/// One thing that is not as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// The module.
    Module,
    /// The numbers of the policy.
    Policy,
    /// The data.
    Data,
    /// The seed.
    Seed,
    /// The number of replicas.
    Replicas,
    /// What is spoilt on purpose.
    Corruption,
    /// Device, plugin or number of threads. The run can go on, and not bit for bit.
    Machine,
}

impl Difference {
    /// Whether the run would no longer be that run.
    #[must_use]
    pub fn is_refused(self) -> bool {
        self != Self::Machine
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Module => {
                "the train step is another one (module, controller, or the version of this program that injected it)"
            }
            Self::Policy => "the policy has other numbers (--allow-policy-change goes on with those of now)",
            Self::Data => "the data are others",
            Self::Seed => "the seed is another one",
            Self::Replicas => "the number of replicas is another one",
            Self::Corruption => "other batches are spoilt on purpose",
            Self::Machine => "the device, the plugin or the number of threads is another one",
        })
    }
}

impl Fingerprint {
    /// What differs from `then`.
    #[must_use]
    pub fn differences(&self, then: &Self) -> Vec<Difference> {
        let all = [
            (self.module_sha256 == then.module_sha256, Difference::Module),
            (self.policy == then.policy, Difference::Policy),
            (self.data_sha256 == then.data_sha256, Difference::Data),
            (self.seed == then.seed, Difference::Seed),
            (self.replicas == then.replicas, Difference::Replicas),
            (self.corruption == then.corruption, Difference::Corruption),
            (self.machine == then.machine, Difference::Machine),
        ];
        all.into_iter().filter(|(same, _)| !same).map(|(_, difference)| difference).collect()
    }
}
