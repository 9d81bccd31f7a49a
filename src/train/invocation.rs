//! What a run was asked to be: written down when it starts, so that it can be prepared again to go on.

use std::num::NonZeroU32;
use std::path::PathBuf;

use passes::{Policy, Replicas};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Share;
use crate::bundle::{Bundle, BundleError};
use crate::input::Reader;
use crate::model::{Model, ModelError};
use crate::target::Platform;

/// What a run was asked to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invocation {
    /// The bundle.
    pub model: PathBuf,
    /// The platform whose code is taken from a file for several.
    pub platform: Option<String>,
    /// Files and folders of data.
    pub data: Vec<PathBuf>,
    /// Number of steps.
    pub steps: u64,
    /// Steps of one launch, those of the bundle if there is no number.
    pub steps_per_launch: Option<NonZeroU32>,
    /// Seeds the initial state and the order of the data.
    pub seed: u32,
    /// How the step is made data-parallel, where it is.
    pub replicas: Option<Replicas>,
    /// Name or path of the plugin.
    pub plugin: String,
    /// Whether kernels of a GPU are to give the same bits in every run.
    pub deterministic: bool,
    /// Whether no controller is put in.
    pub no_control: bool,
    /// The controller's policy, where one was given.
    pub policy: Option<Policy>,
    /// The share of training batches to spoil on purpose.
    pub corrupt: Option<Share>,
}

/// Why a run cannot be prepared.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The controller cannot be put in.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Replicas of a controlled step.
    #[error(
        "{} has a controller, and a step becomes data-parallel before control is put into it; give the bundle it was injected \
         into, or inject that with --replicas", path.display()
    )]
    ReplicatesController {
        /// The bundle.
        path: PathBuf,
    },
    /// No control of a controlled step.
    #[error(
        "{} has a controller, so it cannot be trained without; train the bundle it was injected into", path.display()
    )]
    HasController {
        /// The bundle.
        path: PathBuf,
    },
}

impl Invocation {
    /// The bundle to train, made data-parallel and controlled as asked for; and the policy whose numbers take the place of
    /// those it was injected with, where there is one.
    ///
    /// # Errors
    ///
    /// Where it cannot be read, or cannot be made so.
    pub fn bundle(&self) -> Result<(Bundle, Option<Policy>), PrepareError> {
        let reader = Reader::default().platform(self.platform.as_deref()).prefer(&self.plugin);
        let bundle = Bundle::open_with(&self.model, &reader)?;
        let path = || self.model.clone();
        if bundle.manifest.controller.is_some() {
            return match (self.no_control, self.replicas) {
                (true, _) => Err(PrepareError::HasController { path: path() }),
                (false, Some(_)) => Err(PrepareError::ReplicatesController { path: path() }),
                // Numbers of another policy need no other program.
                (false, None) => Ok((bundle, self.policy.clone())),
            };
        }
        if !self.no_control {
            let policy = self.policy.clone().unwrap_or_default();
            let platform = Platform::of_plugin(&self.plugin);
            return Ok((Model::Bundle(Box::new(bundle)).inject_into(&policy, platform, self.replicas)?, None));
        }
        Ok(match self.replicas {
            Some(replicas) => (Model::Bundle(Box::new(bundle)).replicate(replicas)?, None),
            None => (bundle, None),
        })
    }
}
