//! Tree-path patterns: literal text in which `*` stands for any text.
//!
//! A pattern that matches nothing is refused, since it is most likely misspelt.
//! Of several that match one name, the one with the most literal characters counts.

use std::collections::BTreeMap;

use super::PolicyError;

/// A tree path in which `*` stands for any text, the empty one included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern<'a>(pub &'a str);

impl Pattern<'_> {
    /// Whether the whole of `name` matches.
    #[must_use]
    pub fn matches(self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        let Some(mut rest) = rest.strip_suffix(last) else { return false };
        for part in parts {
            let Some((_, after)) = rest.split_once(part) else { return false };
            rest = after;
        }
        true
    }

    /// How many characters are literal.
    #[must_use]
    pub fn specificity(self) -> usize {
        self.0.chars().filter(|&c| c != '*').count()
    }
}

/// For each of `names` the value of the most specific pattern that matches it.
pub(super) fn assign<T: Copy + PartialEq>(
    table: &'static str,
    what: &'static str,
    patterns: &BTreeMap<String, T>,
    names: &[&str],
) -> Result<Vec<Option<T>>, PolicyError> {
    let unmatched = patterns.keys().find(|p| !names.iter().any(|name| Pattern(p).matches(name)));
    if let Some(pattern) = unmatched {
        let nearest = nearest(pattern, names.iter().copied()).map(str::to_owned);
        return Err(PolicyError::NoMatch { key: format!("{table}.{pattern:?}"), what, nearest });
    }
    names.iter().map(|name| most_specific(table, patterns, name)).collect()
}

fn most_specific<T: Copy + PartialEq>(
    table: &'static str,
    patterns: &BTreeMap<String, T>,
    name: &str,
) -> Result<Option<T>, PolicyError> {
    let mut best: Option<(&str, T)> = None;
    for (pattern, &value) in patterns.iter().filter(|(p, _)| Pattern(p).matches(name)) {
        let rank = |p: &str| (p == name, Pattern(p).specificity());
        match best {
            Some((other, _)) if rank(other) > rank(pattern) => {}
            Some((other, chosen)) if rank(other) == rank(pattern) && chosen != value => {
                return Err(PolicyError::Ambiguous {
                    table,
                    name: name.to_owned(),
                    first: other.to_owned(),
                    second: pattern.clone(),
                });
            }
            _ => best = Some((pattern, value)),
        }
    }
    Ok(best.map(|(_, value)| value))
}

/// The candidate most like `name`, where one is alike enough to be worth mentioning.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let score = |candidate: &str| strsim::jaro_winkler(name, candidate);
    candidates.into_iter().filter(|c| score(c) > 0.7).max_by(|a, b| score(a).total_cmp(&score(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_stands_for_any_text() {
        let check = |pattern, name, expected| assert_eq!(Pattern(pattern).matches(name), expected, "{pattern} {name}");
        check("a", "a", true);
        check("a", "ab", false);
        check("a", "ba", false);
        check("", "", true);
        check("*", "", true);
        check("*", "anything", true);
        check("a*", "a", true);
        check("a*b", "ab", true);
        check("a*b", "a.b.b", true);
        check("a*a", "a", false);
        check("p['h*']['w']", "p['h12']['w']", true);
        check("*['w']*", "p['w'][0]", true);
        check("*x*y*", "y x", false);
        check("**", "a", true);
    }

    fn table(entries: &[(&str, i32)]) -> BTreeMap<String, i32> {
        entries.iter().map(|&(k, v)| (k.to_owned(), v)).collect()
    }

    #[test]
    fn the_most_specific_pattern_counts() {
        let patterns = table(&[("*", 1), ("*.w", 2), ("h0.w", 3)]);
        let found = assign("t", "tensor", &patterns, &["h0.w", "h1.w", "b"]).unwrap();
        assert_eq!(found, [Some(3), Some(2), Some(1)]);
    }

    #[test]
    fn a_pattern_that_matches_nothing_and_a_tie_are_refused() {
        let unmatched = assign("t", "tensor", &table(&[("h0.ww", 1)]), &["h0.w", "b"]).unwrap_err().to_string();
        assert!(unmatched.contains("`t.\"h0.ww\"` names no tensor") && unmatched.contains("did you mean \"h0.w\""));
        let tie = assign("t", "tensor", &table(&[("h*", 1), ("*w", 2)]), &["hw"]).unwrap_err().to_string();
        assert!(tie.contains("\"*w\"") && tie.contains("\"h*\""), "{tie}");
        assert!(assign("t", "tensor", &table(&[("h*", 1), ("*w", 1)]), &["hw"]).is_ok());
    }
}
