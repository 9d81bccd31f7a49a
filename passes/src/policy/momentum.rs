//! The `[momentum]` table.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::pattern::{self, Pattern};
use super::{Checks, PolicyError};

/// By how much momentum coefficients are scaled: b becomes min(b·s, max(b, `cap`)), where s is `scale` times the
/// tensor's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MomentumPolicy {
    /// Factor of every coefficient.
    pub scale: f64,
    /// No coefficient is raised above this; one that is larger already is not raised at all.
    pub cap: f64,
    /// Further factors by tree-path pattern.
    pub tensors: BTreeMap<String, f64>,
}

impl Default for MomentumPolicy {
    fn default() -> Self {
        // A memory of 1/(1 - 0.99) = 100 steps: ten times that of the usual 0.9, and so at most ten times the step of a
        // trace, which grows by 1/(1 - b) where the learning rate stays.
        Self { scale: 1.0, cap: 0.99, tensors: BTreeMap::new() }
    }
}

impl MomentumPolicy {
    /// Whether coefficients are scaled at all: a factor other than 1, or any pattern. Structure.
    #[must_use]
    pub fn scales(&self) -> bool {
        self.scale != 1.0 || !self.tensors.is_empty()
    }

    /// The factor that patterns give each of `names`, without the one for all.
    ///
    /// # Errors
    ///
    /// Where a pattern matches none of them, or two match one equally well.
    pub(super) fn tensor_scales(&self, names: &[&str]) -> Result<Vec<f64>, PolicyError> {
        let found = pattern::assign("momentum.tensors", "tensor", &self.tensors, names)?;
        Ok(found.into_iter().map(|scale| scale.unwrap_or(1.0)).collect())
    }

    /// The pattern that demands momentum of `name`: any that matches, other than one that matches every name.
    #[must_use]
    pub(super) fn demands(&self, name: &str) -> Option<&str> {
        let names = |p: &&String| Pattern(p).specificity() > 0 && Pattern(p).matches(name);
        self.tensors.keys().find(names).map(String::as_str)
    }

    /// Checks every value's range.
    pub(super) fn validate(&self, check: Checks) -> Result<(), PolicyError> {
        let scale = |key: &str, value: f64| check.number(key, value, (0.0..=1e3).contains(&value), "from 0 to 1000");
        scale("momentum.scale", self.scale)?;
        self.tensors.iter().try_for_each(|(p, &value)| scale(&format!("momentum.tensors.{p:?}"), value))?;
        // In f32, 0.9999 is still well below 1.
        check.number("momentum.cap", self.cap, (0.0..=0.9999).contains(&self.cap), "from 0 to 0.9999")
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::Policy;

    #[test]
    fn only_a_pattern_that_names_something_demands() {
        let policy = Policy::parse("[momentum.tensors]\n\"*\" = 1.0\n\"*['w1']\" = 0.5").unwrap().momentum;
        assert!(policy.scales());
        assert_eq!(policy.demands("p['w1']"), Some("*['w1']"));
        assert_eq!(policy.demands("p['w2']"), None);
        assert_eq!(policy.tensor_scales(&["p['w1']", "p['w2']"]).unwrap(), [0.5, 1.0]);
        assert!(policy.tensor_scales(&["p['b']"]).unwrap_err().to_string().contains("`momentum.tensors.\"*['w1']\"`"));
    }

    #[test]
    fn what_changes_nothing_asks_for_nothing() {
        assert!(!Policy::parse("[momentum]\nscale = 1.0\ncap = 0.9").unwrap().momentum.scales());
        assert!(Policy::parse("[momentum]\nscale = 0.9").unwrap().momentum.scales());
    }

    #[test]
    fn values_outside_their_range_are_refused() {
        for (text, expected) in [
            ("[momentum]\ncap = 1.0", "`momentum.cap` is 1 in the policy; it must be from 0 to 0.9999"),
            ("[momentum]\ncap = nan", "momentum.cap"),
            ("[momentum]\nscale = -1.0", "`momentum.scale` is -1"),
            ("[momentum.tensors]\n\"*\" = 1e4", "`momentum.tensors.\"*\"` is 10000"),
            ("[momentum]\nscales = 1.0", "did you mean `momentum.scale`?"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        for text in ["[momentum]\ncap = 0.0\nscale = 0.0", "[momentum]\ncap = 0.9999\nscale = 1000"] {
            Policy::parse(text).unwrap();
        }
    }
}
