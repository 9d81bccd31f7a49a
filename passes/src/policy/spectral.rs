//! The `[spectral]` table.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Checks, Policy, PolicyError, pattern};

/// How updates of matrices are moved towards equal singular values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpectralPolicy {
    /// Whether they are. Structure.
    pub enabled: bool,
    /// The norm of an update whose singular values were made equal, as a multiple of its norm before.
    pub k: f64,
    /// The share of what was made equal in the update; 0 leaves every bit as it is.
    pub alpha: f64,
    /// The spectral entropy up to which updates are moved; 1 moves all by the whole of `alpha`.
    pub target: f64,
    /// Newton-Schulz iterations. Structure.
    pub iterations: u32,
    /// The type that matrices are multiplied in. Structure.
    pub dtype: SpectralDtype,
    /// Matrices with a shorter side are left alone. Structure.
    pub min_side: u32,
    /// Who does the work where several replicas train together. Structure.
    pub replicas: SpectralWork,
    /// What is different for some tensors, by tree-path pattern.
    pub tensors: BTreeMap<String, SpectralTensor>,
}

/// What matrices are multiplied in; sums of products are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpectralDtype {
    /// Single precision.
    F32,
    /// 8 bits of precision, as Muon does it on accelerators.
    Bf16,
}

/// Who makes singular values equal where several replicas train together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpectralWork {
    /// Each replica does all of it; nothing is sent.
    Each,
    /// Each does its share of the matrices and is sent the others.
    Share,
}

/// What is different for some tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpectralTensor {
    /// Whether it is treated, whatever its class. Structure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Instead of [`SpectralPolicy::k`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<f64>,
    /// So many matrices of equal size lie side by side in it (query, key and value), and each is treated by itself.
    /// Structure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<u32>,
    /// The axis along which they do, from 0; the last one if none is given. Structure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub axis: Option<u32>,
}

impl Default for SpectralPolicy {
    fn default() -> Self {
        Self {
            enabled: false,
            k: 1.0,
            alpha: 1.0,
            target: 1.0,
            iterations: 5,
            dtype: SpectralDtype::F32,
            min_side: 16,
            replicas: SpectralWork::Each,
            tensors: BTreeMap::new(),
        }
    }
}

impl SpectralDtype {
    /// As in a policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl SpectralWork {
    /// As in a policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Each => "each",
            Self::Share => "share",
        }
    }
}

impl SpectralTensor {
    /// What of it shapes the graph.
    #[must_use]
    pub fn structure(self) -> Self {
        Self { k: None, ..self }
    }
}

impl fmt::Display for SpectralTensor {
    /// What is different, in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let enabled = self.enabled.map(|enabled| format!("enabled = {enabled}"));
        let k = self.k.map(|k| format!("k = {k}"));
        let split = self.split.map(|split| format!("split = {split}"));
        let axis = self.axis.map(|axis| format!("axis = {axis}"));
        let parts: Vec<String> = [enabled, k, split, axis].into_iter().flatten().collect();
        f.write_str(if parts.is_empty() { "nothing is different" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

impl SpectralPolicy {
    pub(super) fn validate(&self, check: Checks) -> Result<(), PolicyError> {
        let norm = |key: &str, k: f64| check.number(key, k, k > 0.0 && k <= 100.0, "above 0 and at most 100");
        norm("spectral.k", self.k)?;
        check.number("spectral.alpha", self.alpha, (0.0..=1.0).contains(&self.alpha), "from 0 to 1")?;
        let target = self.target > 0.0 && self.target <= 1.0;
        check.number("spectral.target", self.target, target, "above 0 and at most 1")?;
        check.number("spectral.iterations", self.iterations, (3..=5).contains(&self.iterations), "from 3 to 5")?;
        let side = (2..=1_000_000).contains(&self.min_side);
        check.number("spectral.min_side", self.min_side, side, "from 2 to 1000000")?;
        for (pattern, tensor) in &self.tensors {
            let key = |name: &str| format!("spectral.tensors.{pattern:?}.{name}");
            norm(&key("k"), tensor.k.unwrap_or(1.0))?;
            let split = tensor.split.unwrap_or(1);
            check.number(&key("split"), split, (1..=1024).contains(&split), "from 1 to 1024")?;
            let axis = tensor.axis.unwrap_or(0);
            check.number(&key("axis"), axis, axis < 8, "from 0 to 7")?;
        }
        Ok(())
    }
}

impl Policy {
    /// What patterns of `[spectral.tensors]` say of each of `names`.
    ///
    /// # Errors
    ///
    /// As [`Policy::tensor_scales`].
    pub fn spectral_tensors<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<SpectralTensor>, PolicyError> {
        let names: Vec<_> = names.into_iter().collect();
        let said = pattern::assign("spectral.tensors", "tensor", &self.spectral.tensors, &names)?;
        Ok(said.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// The pattern that asks for `name` to be treated: one that names it. Patterns of stars name everything and ask for
    /// nothing in particular.
    pub(crate) fn demands_spectral(&self, name: &str) -> Option<String> {
        let mut asking = self.spectral.tensors.iter().filter(|(_, tensor)| tensor.enabled == Some(true));
        let found = asking.find(|(pattern, _)| {
            pattern::Pattern(pattern).matches(name) && pattern::Pattern(pattern).specificity() > 0
        });
        found.map(|(pattern, _)| format!("spectral.tensors.{pattern:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_their_range_are_refused() {
        for (text, expected) in [
            ("[spectral]\nk = 0.0", "`spectral.k` is 0 in the policy; it must be above 0"),
            ("[spectral]\nk = nan", "spectral.k"),
            ("[spectral]\nalpha = 1.5", "`spectral.alpha` is 1.5"),
            ("[spectral]\ntarget = 0.0", "`spectral.target` is 0"),
            ("[spectral]\niterations = 2", "`spectral.iterations` is 2 in the policy; it must be from 3 to 5"),
            ("[spectral]\niterations = 6", "from 3 to 5"),
            ("[spectral]\ndtype = \"f16\"", "bf16"),
            ("[spectral]\nreplicas = \"all\"", "share"),
            ("[spectral]\nmin_side = 1", "spectral.min_side"),
            ("[spectral]\nmix = 1.0", "there is no key `spectral.mix`"),
            ("[spectral.tensors]\n\"*\" = { split = 0 }", "`spectral.tensors.\"*\".split` is 0"),
            ("[spectral.tensors]\n\"*\" = { axis = 8 }", "`spectral.tensors.\"*\".axis` is 8"),
            ("[spectral.tensors]\n\"*\" = { k = -1.0 }", "`spectral.tensors.\"*\".k` is -1"),
            ("[spectral.tensors]\n\"*\" = { parts = 3 }", "unknown field `parts`"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn patterns_say_what_is_different() {
        let text =
            "[spectral.tensors]\n\"*['qkv']\" = { split = 3, axis = 1 }\n\"*['wte']\" = { enabled = true, k = 2.0 }";
        let policy = Policy::parse(text).unwrap();
        let said = policy.spectral_tensors(["p['qkv']", "p['wte']", "p['b']"]).unwrap();
        assert_eq!(said[0], SpectralTensor { split: Some(3), axis: Some(1), ..Default::default() });
        assert_eq!(said[1].structure(), SpectralTensor { enabled: Some(true), ..Default::default() });
        assert_eq!(said[2], SpectralTensor::default());
        assert_eq!(policy.demands_spectral("p['wte']").as_deref(), Some("spectral.tensors.\"*['wte']\""));
        assert_eq!(policy.demands_spectral("p['qkv']"), None);
        assert!(policy.spectral_tensors(["p['b']"]).unwrap_err().to_string().contains("names no tensor"));
    }
}
