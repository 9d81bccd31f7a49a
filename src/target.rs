//! What a step is compiled for: a platform, and for a compilation without the device a description of it.
//!
//! A target's name is what `--target` takes: `cpu`, the GPUs `a100`, `h100`, `h200`, the TPUs `tpu-v4`, `tpu-v5e`,
//! `tpu-v5p`, `tpu-v6e`, these with a topology if not their smallest is meant (`tpu-v5e:4x4`).

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use passes::InjectOptions;
use passes::gate::PredicateStyle;
use passes::measure_entropy::ReductionStyle;
use passes::spectral::MatrixStyle;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What makes compilers differ in what they like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// XLA's CPU backend.
    #[default]
    Cpu,
    /// XLA's GPU backend for NVIDIA's devices.
    Cuda,
    /// TPUs.
    Tpu,
}

impl Platform {
    /// The platform that a PJRT client or topology calls itself; `None` for one that this program does not know.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "cpu" | "host" => Some(Self::Cpu),
            "cuda" | "gpu" => Some(Self::Cuda),
            "tpu" => Some(Self::Tpu),
            _ => None,
        }
    }

    /// The platform of a plugin that is not open yet: of a known name, or what a path of a library says. CPU where
    /// nothing says anything.
    #[must_use]
    pub fn of_plugin(given: &str) -> Self {
        if let Some(platform) = Self::from_name(given) {
            return platform;
        }
        let file = given.rsplit(['/', '\\']).next().unwrap_or_default().to_ascii_lowercase();
        if file.contains("tpu") {
            Self::Tpu
        } else if ["cuda", "gpu"].iter().any(|word| file.contains(word)) {
            Self::Cuda
        } else {
            Self::Cpu
        }
    }

    /// How control is emitted for its compiler, as measured in `docs/performance.md`.
    #[must_use]
    pub fn emission(self) -> InjectOptions {
        let (reduction, predicate) = match self {
            Self::Cpu => (ReductionStyle::Shares, PredicateStyle::Rooted),
            Self::Cuda => (ReductionStyle::Variadic, PredicateStyle::Shared),
            Self::Tpu => (ReductionStyle::Separate, PredicateStyle::Plain),
        };
        let matrices = if self == Self::Cpu { MatrixStyle::Each } else { MatrixStyle::Together };
        InjectOptions { reduction, predicate, matrices, replicas: None }
    }

    /// The known plugin for it.
    #[must_use]
    pub fn plugin(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Tpu => "tpu",
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plugin())
    }
}

/// What to compile for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    name: String,
    platform: Platform,
    /// The plugin's name for the devices, where it compiles without them.
    topology: Option<String>,
    /// A `GpuTargetConfigProto` as text.
    gpu: Option<&'static str>,
}

/// No target of that name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("there is no target {name:?}; there are {}, and a TPU's topology may follow, as in tpu-v5e:4x4", Target::NAMES.join(", "))]
pub struct UnknownTarget {
    /// What was asked for.
    pub name: String,
}

/// GPUs: name and description. The figures are the vendor's.
const GPUS: &[(&str, &str)] = &[
    ("a100", include_str!("targets/a100.textproto")),
    ("h100", include_str!("targets/h100.textproto")),
    ("h200", include_str!("targets/h200.textproto")),
];

/// TPUs: name, generation in a topology's name, the smallest topology of one host.
const TPUS: &[(&str, &str, &str)] =
    &[("tpu-v4", "v4", "2x2x1"), ("tpu-v5e", "v5e", "2x2"), ("tpu-v5p", "v5p", "2x2x1"), ("tpu-v6e", "v6e", "2x2")];

impl Target {
    /// All names, without topologies.
    pub const NAMES: &'static [&'static str] =
        &["cpu", "a100", "h100", "h200", "tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e"];

    /// The name, with the topology of a TPU.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The platform.
    #[must_use]
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// The name of the topology to compile for; `None` where compiling needs the device, which every machine has.
    #[must_use]
    pub fn topology(&self) -> Option<&str> {
        self.topology.as_deref()
    }

    /// Options of the topology of so many devices, where their number is not in its name.
    #[must_use]
    pub fn topology_options(&self, devices: NonZeroU32) -> Vec<(String, String)> {
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        // Slices, hosts of each, and devices of each of these.
        let one_host = format!("1x1x{devices}");
        self.gpu.map_or(Vec::new(), |gpu| vec![text("topology", &one_host), text("target_config", gpu)])
    }

    /// Environment variables without which the plugin does not compile where its devices are not.
    #[must_use]
    pub fn environment(&self) -> &'static [(&'static str, &'static str)] {
        match self.platform {
            // The library asks the cloud's metadata server otherwise; which devices are meant is the topology's to say.
            Platform::Tpu => &[
                ("TPU_SKIP_MDS_QUERY", "1"),
                ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
                ("TPU_WORKER_HOSTNAMES", "localhost"),
            ],
            Platform::Cpu | Platform::Cuda => &[],
        }
    }
}

impl FromStr for Target {
    type Err = UnknownTarget;

    fn from_str(name: &str) -> Result<Self, UnknownTarget> {
        let unknown = || UnknownTarget { name: name.to_owned() };
        let (device, shape) = name.split_once(':').map_or((name, None), |(device, shape)| (device, Some(shape)));
        if let Some((_, generation, smallest)) = TPUS.iter().find(|(known, ..)| *known == device) {
            let shape = shape.unwrap_or(smallest);
            let sound = shape.split('x').all(|extent| extent.parse::<u16>().is_ok_and(|extent| extent > 0));
            if !sound {
                return Err(unknown());
            }
            let topology = Some(format!("{generation}:{shape}"));
            return Ok(Self { name: format!("{device}:{shape}"), platform: Platform::Tpu, topology, gpu: None });
        }
        if shape.is_some() {
            return Err(unknown());
        }
        if device == "cpu" {
            return Ok(Self { name: name.to_owned(), platform: Platform::Cpu, topology: None, gpu: None });
        }
        let (_, gpu) = GPUS.iter().find(|(known, _)| *known == device).ok_or_else(unknown)?;
        Ok(Self { name: name.to_owned(), platform: Platform::Cuda, topology: Some(String::new()), gpu: Some(gpu) })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve() {
        for name in Target::NAMES {
            let target: Target = name.parse().unwrap();
            assert!(target.name().starts_with(name), "{target}");
            assert_eq!(target.topology().is_none(), target.platform() == Platform::Cpu);
        }
        let pod: Target = "tpu-v5e:4x4".parse().unwrap();
        assert_eq!((pod.name(), pod.topology()), ("tpu-v5e:4x4", Some("v5e:4x4")));
        assert!(!"h200".parse::<Target>().unwrap().topology_options(NonZeroU32::MIN).is_empty());
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for name in ["", "gpu", "h200:2", "cpu:2x2", "tpu", "tpu-v5e:", "tpu-v5e:2x", "tpu-v5e:0x2", "tpu-v7"] {
            let error = name.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("tpu-v5e:4x4") && error.contains(name), "{error}");
        }
    }
}
