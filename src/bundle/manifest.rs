//! The contents of `manifest.json`, format version 1.
//!
//! `models/README.md` is the reference of the format. Unknown keys, unknown roles and
//! other versions are refused; what the manifest says about the module is checked by [`super::check`].

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;

use passes::{ControllerLayout, Policy};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Dtype;
use crate::document::{self, Flaw};
use crate::target::Platform;

/// The version that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// What a bundle is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Name of the bundle.
    pub name: String,
    /// File name of the step.
    pub module: String,
    /// The parameters of the step, by number.
    pub inputs: Vec<Input>,
    /// The elements of the step's result.
    pub outputs: Vec<Output>,
    /// How to make the initial state.
    pub init: Option<Init>,
    /// How to compute a held-out loss.
    pub eval: Option<Eval>,
    /// How to make a batch.
    pub data: Option<Data>,
    /// Platforms that the step was lowered for.
    pub target_platforms: Vec<String>,
    /// Packages that made the bundle, and their versions.
    pub versions: BTreeMap<String, String>,
    /// How the step is launched, where that is not one step on one device.
    #[serde(default, skip_serializing_if = "Launch::is_single")]
    pub launch: Launch,
    /// The controller, in a bundle that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<Controller>,
}

/// On how many devices a step runs, and how many steps one launch does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Launch {
    /// Devices, or groups of them, that run the same program on different data.
    pub replicas: NonZeroU32,
    /// Devices that share the work of one replica; the program says by its shardings how.
    pub partitions: NonZeroU32,
    /// Steps of one launch. Where it is more than one, batch inputs, loss and telemetry have it as their first dimension.
    pub steps: NonZeroU32,
}

impl Default for Launch {
    /// One step on one device.
    fn default() -> Self {
        Self { replicas: NonZeroU32::MIN, partitions: NonZeroU32::MIN, steps: NonZeroU32::MIN }
    }
}

impl Launch {
    /// Whether it is one step on one device.
    #[must_use]
    pub fn is_single(&self) -> bool {
        *self == Self::default()
    }

    /// The dimensions of one step's batch or report, which has `shape` in a launch; `None` where it is not one for each step.
    #[must_use]
    pub fn one_step<'a>(&self, shape: &'a [i64]) -> Option<&'a [i64]> {
        match shape.split_first() {
            _ if self.steps == NonZeroU32::MIN => Some(shape),
            Some((&steps, one)) if steps == i64::from(self.steps.get()) => Some(one),
            _ => None,
        }
    }

    /// Devices that the program runs on.
    #[must_use]
    pub fn devices(&self) -> u64 {
        u64::from(self.replicas.get()) * u64::from(self.partitions.get())
    }
}

/// A parameter of the step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Argument name and tree path.
    pub name: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<i64>,
    /// What it is for.
    pub role: InputRole,
}

/// An element of the step's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Tree path.
    pub name: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<i64>,
    /// What it is for.
    pub role: OutputRole,
    /// The input whose next value it is.
    pub input: Option<usize>,
}

/// What an input is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputRole {
    /// A trainable tensor.
    Param,
    /// State of the optimizer.
    Opt,
    /// A random key.
    Rng,
    /// Any other state.
    State,
    /// Data.
    Batch,
    /// State of the controller.
    Control,
    /// The controller's policy numbers: the same value in every step.
    Policy,
}

/// What an output is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputRole {
    /// The next value of a trainable tensor.
    Param,
    /// The next value of optimizer state.
    Opt,
    /// The next random key.
    Rng,
    /// The next value of any other state.
    State,
    /// The loss.
    Loss,
    /// Anything else.
    Aux,
    /// The next value of controller state.
    Control,
    /// What the controller reports.
    Telemetry,
}

/// The computation that makes the initial state from a seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Init {
    /// File name.
    pub file: String,
    /// Type of the seed, a scalar.
    pub seed_dtype: Dtype,
    /// Element `k` of its result is the initial value of input `outputs[k]`.
    pub outputs: Vec<usize>,
}

/// The computation of a held-out loss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// File name.
    pub file: String,
    /// Its parameter `k` is the value of input `inputs[k]`.
    pub inputs: Vec<usize>,
}

/// How to make a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// What a token is.
    pub kind: DataKind,
    /// The batch input, an integer array `[batch, window]`.
    pub input: usize,
    /// Rows.
    pub batch: usize,
    /// Tokens per row.
    pub window: usize,
    /// Number of token ids.
    pub vocab: u64,
    /// Unit of the loss.
    pub loss_unit: String,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataKind {
    /// A byte of the text.
    Bytes,
    /// An id of a tokenizer; byte values are valid ids.
    Tokens,
}

/// The controller that was injected into the step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Controller {
    /// The policy it was injected with.
    pub policy: Policy,
    /// Whose compiler it was emitted for. It computes the same elsewhere, slower or less exactly.
    #[serde(default)]
    pub platform: Platform,
    /// Where its state, policy numbers and telemetry are among inputs and outputs.
    pub layout: ControllerLayout,
}

/// Why text is no manifest.
#[derive(Debug, Error)]
#[error("{flaw}{}", advice(flaw))]
pub struct ManifestError {
    /// What is wrong with it.
    pub flaw: Flaw,
}

fn advice(flaw: &Flaw) -> &'static str {
    match flaw {
        Flaw::Version { .. } => "; use a matching release of entropic, or export again",
        Flaw::Json { .. } => "",
    }
}

impl Manifest {
    /// Reads the text of a `manifest.json`.
    ///
    /// # Errors
    ///
    /// Where it is not JSON, lacks a key, has an unknown or a duplicate one, or is of another version.
    pub fn from_json(text: &str) -> Result<Self, ManifestError> {
        document::read(text.as_bytes(), FORMAT_VERSION).map_err(|flaw| ManifestError { flaw })
    }

    /// The text of a `manifest.json`: one line per input and output.
    ///
    /// # Errors
    ///
    /// Only where a value cannot be JSON, such as a policy number that is not finite.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut lines = vec![
            line("format_version", &self.format_version)?,
            line("name", &self.name)?,
            line("module", &self.module)?,
            list("inputs", &self.inputs)?,
            list("outputs", &self.outputs)?,
            line("init", &self.init)?,
            line("eval", &self.eval)?,
            line("data", &self.data)?,
            line("target_platforms", &self.target_platforms)?,
            line("versions", &self.versions)?,
        ];
        if !self.launch.is_single() {
            lines.push(line("launch", &self.launch)?);
        }
        if let Some(controller) = &self.controller {
            lines.push(line("controller", controller)?);
        }
        Ok(format!("{{\n{}\n}}\n", lines.join(",\n")))
    }
}

impl InputRole {
    /// Whether an input of this role is carried from step to step.
    #[must_use]
    pub fn is_state(self) -> bool {
        !matches!(self, Self::Batch | Self::Policy)
    }

    /// The role of an output that is the next value of such an input.
    #[must_use]
    pub fn successor(self) -> Option<OutputRole> {
        Some(match self {
            Self::Param => OutputRole::Param,
            Self::Opt => OutputRole::Opt,
            Self::Rng => OutputRole::Rng,
            Self::State => OutputRole::State,
            Self::Control => OutputRole::Control,
            Self::Batch | Self::Policy => return None,
        })
    }
}

impl OutputRole {
    /// Whether an output of this role is something that each step reports, and not what the next one begins from.
    #[must_use]
    pub fn is_report(self) -> bool {
        matches!(self, Self::Loss | Self::Aux | Self::Telemetry)
    }
}

/// `"key": value` on a line of its own.
fn line(key: &str, value: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(format!("  \"{key}\": {}", spaced(value)?))
}

/// `"key": [...]` with one element per line.
fn list(key: &str, values: &[impl Serialize]) -> Result<String, serde_json::Error> {
    let lines =
        values.iter().map(|v| Ok(format!("    {}", spaced(v)?))).collect::<Result<Vec<_>, serde_json::Error>>()?;
    Ok(format!("  \"{key}\": [\n{}\n  ]", lines.join(",\n")))
}

/// JSON on one line, with a space after commas and colons.
fn spaced(value: &impl Serialize) -> Result<String, serde_json::Error> {
    struct Spaced;
    impl serde_json::ser::Formatter for Spaced {
        fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
            writer.write_all(b": ")
        }
    }
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced))?;
    // serde_json writes UTF-8 only.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MLP: &str = include_str!("../../models/mlp/manifest.json");

    #[test]
    fn the_committed_manifests_survive_byte_for_byte() {
        for text in [MLP, include_str!("../../models/gpt-nano/manifest.json")] {
            assert_eq!(Manifest::from_json(text).unwrap().to_json().unwrap(), text);
        }
    }

    #[test]
    fn refusals_say_where_and_what() {
        for (from, to, parts) in [
            ("\"format_version\": 1", "\"format_version\": 9", &["format_version 9", "reads 1"][..]),
            ("\"role\": \"batch\"", "\"role\": \"bacth\"", &["inputs[16].role", "bacth"]),
            ("\"int32\", \"shape\": []", "\"i32\", \"shape\": []", &["inputs[5].dtype", "no dtype"]),
            ("\"name\": \"mlp\",", "\"name\": \"mlp\", \"extra\": 1,", &["extra", "unknown field"]),
            ("\"name\": \"mlp\",", "", &["missing field `name`"]),
            ("\"name\": \"mlp\",", "\"name\": \"mlp\", \"name\": \"mlp\",", &["duplicate field `name`"]),
            ("\"shape\": [64, 9]", "\"shape\": [64, 9.5]", &["inputs[16].shape[1]", "line 22"]),
            ("}\n}\n", "}\n", &["line 4"]),
            ("}\n}\n", "}\n} {}", &["more after the end"]),
        ] {
            assert!(MLP.contains(from), "{from}");
            let error = Manifest::from_json(&MLP.replacen(from, to, 1)).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{error:?} lacks {part:?}");
            }
        }
    }
}
