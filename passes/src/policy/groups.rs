//! The `[groups]` tables: what is different for tensors that are named together.
//!
//! A group is a name, tree-path patterns that say which tensors are in it, and what holds for them. A tensor is in one
//! group at most. Of what a group and the tables of patterns say about one tensor, factors multiply; for everything else a
//! pattern that names the tensor wins over its group, and the group over a pattern of stars, which names everything.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::pattern::{self, Pattern, nearest};
use super::{Checks, LawsPolicy, MicroTensor, Policy, PolicyError};

/// The keys of one group.
pub(super) const KEYS: &[&str] = &["include", "exclude", "scale", "momentum", "laws", "below", "factor", "max"];

/// Some tensors, and what is different for them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupPolicy {
    /// Tree-path patterns: a tensor that matches one of them is in the group, ...
    pub include: Vec<String>,
    /// ... unless it matches one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Further factor of their updates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Further factor of their momentum coefficients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// `true`: the law of each tensor acts on them, whatever their size. `false`: no law moves them, nor do those of all
    /// tensors. Structure, where it is `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub laws: Option<bool>,
    /// Instead of `laws.micro.below`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// Instead of `laws.micro.factor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// Instead of `laws.max`; what the laws of all tensors come to stays within `laws.max`. Structure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// What a policy says of the laws of one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorLaws {
    /// What is different in the law of each tensor.
    pub micro: MicroTensor,
    /// Whether any law may move its scales.
    pub moves: bool,
    /// Clamp of the laws' scale, instead of [`LawsPolicy::max`].
    pub max: Option<f64>,
}

impl Default for TensorLaws {
    fn default() -> Self {
        Self { micro: MicroTensor::default(), moves: true, max: None }
    }
}

impl TensorLaws {
    /// ln of the largest factor that the laws may scale the tensor's learning rate by; 0 where none may move it.
    pub(crate) fn log_max(&self, laws: &LawsPolicy) -> f64 {
        if self.moves { self.max.unwrap_or(laws.max).ln() } else { 0.0 }
    }

    /// That of its momentum.
    pub(crate) fn momentum_log_max(&self, laws: &LawsPolicy) -> f64 {
        if self.moves { laws.rule.momentum_max.ln() } else { 0.0 }
    }
}

impl GroupPolicy {
    /// Whether a tensor of this name is in the group.
    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|p| Pattern(p).matches(name));
        any(&self.include) && !any(&self.exclude)
    }

    /// Checks every value's range.
    pub(super) fn validate(&self, name: &str, check: Checks) -> Result<(), PolicyError> {
        let within = |key: &str, value: Option<f64>, low: f64, high: f64, range| {
            let ok = value.is_none_or(|v| (low..=high).contains(&v));
            check.number(&format!("groups.{name}.{key}"), value.unwrap_or_default(), ok, range)
        };
        let some = !self.include.is_empty();
        check.number(&format!("groups.{name}.include"), "[]", some, "one pattern or more; \"*\" is every tensor")?;
        within("scale", self.scale, 0.0, 1e3, "from 0 to 1000")?;
        within("momentum", self.momentum, 0.0, 1e3, "from 0 to 1000")?;
        within("below", self.below, 0.0, 10.0, "from 0 to 10")?;
        within("factor", self.factor, 0.1, 10.0, "from 0.1 to 10")?;
        within("max", self.max, 1.0, 100.0, "from 1 to 100, since scales lie between 1/max and max")
    }
}

impl Policy {
    /// The group that each of `names` is in, by its name; none where it is in no group.
    ///
    /// # Errors
    ///
    /// Where a pattern matches none of them, a group excludes all that it includes, or one of them is in two groups.
    pub fn groups_of<'a>(&self, names: &[&'a str]) -> Result<Vec<Option<&str>>, PolicyError> {
        for (group, policy) in &self.groups {
            let lists = [("include", &policy.include), ("exclude", &policy.exclude)];
            let mut patterns = lists.iter().flat_map(|(list, patterns)| patterns.iter().map(move |p| (list, p)));
            if let Some((list, pattern)) = patterns.find(|(_, p)| !names.iter().any(|name| Pattern(p).matches(name))) {
                let nearest = nearest(pattern, names.iter().copied()).map(str::to_owned);
                let key = format!("groups.{group}.{list} = [{pattern:?}]");
                return Err(PolicyError::NoMatch { key, what: "tensor", nearest });
            }
            if !names.iter().any(|name| policy.holds(name)) {
                return Err(PolicyError::EmptyGroup { group: group.clone() });
            }
        }
        let group_of = |name: &&'a str| {
            let mut holding = self.groups.iter().filter(|(_, group)| group.holds(name)).map(|(group, _)| group);
            match (holding.next(), holding.next()) {
                (Some(first), Some(second)) => Err(PolicyError::TwoGroups {
                    tensor: (*name).to_owned(),
                    first: first.clone(),
                    second: second.clone(),
                }),
                (found, _) => Ok(found.map(String::as_str)),
            }
        };
        names.iter().map(group_of).collect()
    }

    /// The groups themselves, for each of `names`.
    fn members(&self, names: &[&str]) -> Result<Vec<Option<&GroupPolicy>>, PolicyError> {
        let groups = self.groups_of(names)?;
        Ok(groups.into_iter().map(|group| group.and_then(|group| self.groups.get(group))).collect())
    }

    /// Each of `factors`, which belong to `names`, times that of the tensor's group.
    pub(super) fn times_groups(
        &self,
        factors: impl Iterator<Item = f64>,
        names: &[&str],
        of: fn(&GroupPolicy) -> Option<f64>,
    ) -> Result<Vec<f64>, PolicyError> {
        let groups = self.members(names)?;
        Ok(factors.zip(groups).map(|(factor, group)| factor * group.and_then(of).unwrap_or(1.0)).collect())
    }

    /// The factor that patterns and groups give the momentum coefficients of each of `names`, without the one for all.
    ///
    /// # Errors
    ///
    /// As [`Policy::tensor_scales`].
    pub fn tensor_momentum<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<f64>, PolicyError> {
        let names: Vec<_> = names.into_iter().collect();
        self.times_groups(self.momentum.tensor_scales(&names)?.into_iter(), &names, |group| group.momentum)
    }

    /// What patterns and groups say of the laws of each of `names`.
    ///
    /// # Errors
    ///
    /// As [`Policy::tensor_scales`].
    pub fn tensor_laws<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<TensorLaws>, PolicyError> {
        let names: Vec<_> = names.into_iter().collect();
        let patterns = self.laws.micro.tensors.clone();
        let (of_all, of_some): (BTreeMap<_, _>, _) =
            patterns.into_iter().partition(|(pattern, _)| Pattern(pattern).specificity() == 0);
        let said = |patterns| pattern::assign("laws.micro.tensors", "tensor", patterns, &names);
        let (of_all, of_some, groups) = (said(&of_all)?, said(&of_some)?, self.members(&names)?);
        let said = of_some.into_iter().zip(of_all).zip(groups);
        Ok(said.map(|((of_some, of_all), group)| merged(of_some, group, of_all)).collect())
    }

    /// The key that demands momentum of `name`: a pattern that names it, or a group that it is in. Patterns of stars name
    /// everything and demand nothing.
    pub(crate) fn demands_momentum(&self, name: &str) -> Option<String> {
        let named = |group: &GroupPolicy| {
            let mut patterns = group.include.iter().filter(|p| Pattern(p).matches(name));
            group.momentum.is_some() && group.holds(name) && patterns.any(|p| Pattern(p).specificity() > 0)
        };
        let pattern = self.momentum.demands(name).map(|pattern| format!("momentum.tensors.{pattern:?}"));
        let group = || self.groups.iter().find(|(_, group)| named(group));
        pattern.or_else(|| group().map(|(group, _)| format!("groups.{group}.momentum")))
    }

    /// Whether any group scales updates. Structure.
    pub(super) fn groups_scale(&self) -> bool {
        self.groups.values().any(|group| group.scale.is_some())
    }

    /// Whether any group scales momentum. Structure.
    pub(super) fn groups_scale_momentum(&self) -> bool {
        self.groups.values().any(|group| group.momentum.is_some())
    }

    /// Whether any group has a clamp of its own for what laws do. Structure.
    pub(crate) fn groups_clamp(&self) -> bool {
        self.groups.values().any(|group| group.max.is_some() || group.laws == Some(false))
    }
}

impl fmt::Display for GroupPolicy {
    /// What is different, in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let laws = self.laws.map(|laws| if laws { "own laws whatever the size" } else { "no laws" }.to_owned());
        let number = |name: &str, value: Option<f64>| value.map(|value| format!("{name} {value}"));
        let parts = [
            number("scale", self.scale),
            number("momentum", self.momentum),
            laws,
            number("below", self.below),
            number("factor", self.factor),
            number("max", self.max),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(if parts.is_empty() { "nothing is different" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

/// What holds for a tensor of which a pattern that names it, its group, and a pattern of stars say this.
fn merged(of_some: Option<MicroTensor>, group: Option<&GroupPolicy>, of_all: Option<MicroTensor>) -> TensorLaws {
    let Some(group) = group else {
        return TensorLaws { micro: of_some.or(of_all).unwrap_or_default(), ..TensorLaws::default() };
    };
    let own = MicroTensor { enabled: group.laws, below: group.below, factor: group.factor };
    let (first, second) = match of_some {
        Some(of_some) => (of_some, own),
        None => (own, of_all.unwrap_or_default()),
    };
    TensorLaws {
        micro: MicroTensor {
            enabled: first.enabled.or(second.enabled),
            below: first.below.or(second.below),
            factor: first.factor.or(second.factor),
        },
        moves: group.laws != Some(false) || of_some.and_then(|said| said.enabled) == Some(true),
        max: group.max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["p['wte']", "p['wpe']", "p['w1']", "p['b1']"];

    fn error(text: &str) -> String {
        match Policy::parse(text) {
            Err(error) => error.to_string(),
            Ok(policy) => policy.groups_of(&NAMES).unwrap_err().to_string(),
        }
    }

    #[test]
    fn every_key_is_read() {
        let text = "[groups.embeddings]\ninclude = [\"*['w?e']\"]\nexclude = [\"*b*\"]\nscale = 0.5\nmomentum = 0.9\n\
                    laws = true\nbelow = 0.7\nfactor = 1.2\nmax = 3.0";
        let expected = GroupPolicy {
            include: vec!["*['w?e']".into()],
            exclude: vec!["*b*".into()],
            scale: Some(0.5),
            momentum: Some(0.9),
            laws: Some(true),
            below: Some(0.7),
            factor: Some(1.2),
            max: Some(3.0),
        };
        let policy = Policy::parse(text).unwrap();
        assert_eq!(policy.groups["embeddings"], expected);
        let told = "scale 0.5, momentum 0.9, own laws whatever the size, below 0.7, factor 1.2, max 3";
        assert_eq!(expected.to_string(), told);
        assert!(policy.scales() && policy.scales_momentum() && policy.groups_clamp());
        let nothing = Policy::parse("[groups.all]\ninclude = [\"*\"]").unwrap();
        assert_eq!(nothing.groups["all"].to_string(), "nothing is different");
        assert!(!nothing.scales() && !nothing.scales_momentum() && !nothing.groups_clamp());
    }

    #[test]
    fn what_is_wrong_is_refused_with_key_and_reason() {
        for (text, expected) in [
            ("[groups.a]\ninclude = []", "`groups.a.include` is [] in the policy; it must be one pattern or more"),
            ("[groups.a]\nscale = 1.0", "missing field `include`"),
            ("[groups.a]\ninclude = [\"*\"]\nscale = -1.0", "`groups.a.scale` is -1 in the policy; it must be from 0"),
            ("[groups.a]\ninclude = [\"*\"]\nmomentum = 1e4", "`groups.a.momentum` is 10000"),
            ("[groups.a]\ninclude = [\"*\"]\nbelow = nan", "`groups.a.below` is NaN"),
            ("[groups.a]\ninclude = [\"*\"]\nfactor = 0.0", "from 0.1 to 10"),
            ("[groups.a]\ninclude = [\"*\"]\nmax = 0.5", "from 1 to 100"),
            (
                "[groups.a]\ninclude = [\"*\"]\nscael = 1.0",
                "line 3 of the policy: there is no key `groups.a.scael`; did",
            ),
            ("[groups.a]\ninclude = [\"*\"]\nscael = 1.0", "did you mean `groups.a.scale`?"),
            ("[groups]\ninclude = [\"*\"]", "invalid type"),
            ("[group.a]\ninclude = [\"*\"]", "did you mean `groups`?"),
            ("[groups.a]\ninclude = [\"*['wtee']\"]", "`groups.a.include = [\"*['wtee']\"]` names no tensor"),
            ("[groups.a]\ninclude = [\"p['wtee']\"]", "did you mean \"p['wte']\"?"),
            ("[groups.a]\ninclude = [\"*\"]\nexclude = [\"*bias*\"]", "`groups.a.exclude = [\"*bias*\"]` names no"),
            ("[groups.a]\ninclude = [\"*['w1']\"]\nexclude = [\"*\"]", "`groups.a` excludes every tensor"),
            (
                "[groups.a]\ninclude = [\"*w*\"]\n[groups.b]\ninclude = [\"*1*\"]",
                "\"p['w1']\" is in two groups of the policy, `groups.a` and `groups.b`",
            ),
        ] {
            let error = error(text);
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn factors_multiply() {
        let text = "[scale.tensors]\n\"*w*\" = 0.5\n[momentum.tensors]\n\"*['wte']\" = 0.5\n\
                    [groups.emb]\ninclude = [\"*e']\"]\nexclude = [\"*wpe*\"]\nscale = 3.0\nmomentum = 0.8";
        let policy = Policy::parse(text).unwrap();
        assert_eq!(policy.groups_of(&NAMES).unwrap(), [Some("emb"), None, None, None]);
        assert_eq!(policy.tensor_scales(NAMES).unwrap(), [1.5, 0.5, 0.5, 1.0]);
        assert_eq!(policy.tensor_momentum(NAMES).unwrap(), [0.4, 1.0, 1.0, 1.0]);
        assert_eq!(policy.demands_momentum("p['wte']").as_deref(), Some("momentum.tensors.\"*['wte']\""));
        let all = Policy::parse("[groups.a]\ninclude = [\"*\"]\nmomentum = 0.8").unwrap();
        assert_eq!(all.demands_momentum("p['wte']"), None);
        let some = Policy::parse("[groups.a]\ninclude = [\"*\", \"*te*\"]\nmomentum = 0.8").unwrap();
        assert_eq!(some.demands_momentum("p['wte']").as_deref(), Some("groups.a.momentum"));
        assert_eq!(some.demands_momentum("p['wpe']"), None);
    }

    #[test]
    fn patterns_that_name_a_tensor_win_over_its_group_and_stars_do_not() {
        let text = "[groups.w]\ninclude = [\"*w*\"]\nlaws = false\nbelow = 0.6\nmax = 4.0\n[laws.micro.tensors]\n\
                    \"*\" = { enabled = true, below = 0.1, factor = 2.0 }\n\"*['w1']\" = { enabled = true, factor = 3.0 }";
        let found = Policy::parse(text).unwrap().tensor_laws(NAMES).unwrap();
        let micro =
            |enabled, below, factor| MicroTensor { enabled: Some(enabled), below: Some(below), factor: Some(factor) };
        let group = TensorLaws { micro: micro(false, 0.6, 2.0), moves: false, max: Some(4.0) };
        let named = TensorLaws { micro: micro(true, 0.6, 3.0), moves: true, max: Some(4.0) };
        let neither = TensorLaws { micro: micro(true, 0.1, 2.0), moves: true, max: None };
        assert_eq!(found, [group, group, named, neither]);
        let laws = LawsPolicy::default();
        assert_eq!(found.iter().map(|t| t.log_max(&laws)).collect::<Vec<_>>(), [0.0, 0.0, 4_f64.ln(), 2_f64.ln()]);
        assert_eq!([group, named].map(|t| t.momentum_log_max(&laws)), [0.0, 1.2_f64.ln()]);
    }
}
