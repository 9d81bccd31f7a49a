//! Lists in messages.

/// At most so many names of one clause, and so many clauses.
const SHOWN: usize = 8;

/// What is said of each of many, in one paragraph: those of which the same is said stand together, and of many only the first
/// are named. `w1: a; b1, b2: no matrix; and 3 more`.
pub(crate) fn listed(said: impl IntoIterator<Item = (String, String)>) -> String {
    let mut clauses: Vec<(String, Vec<String>)> = Vec::new();
    for (name, reason) in said {
        match clauses.iter_mut().find(|(other, _)| *other == reason) {
            Some((_, names)) => names.push(name),
            None => clauses.push((reason, vec![name])),
        }
    }
    let clause = |(reason, names): &(String, Vec<String>)| format!("{}: {reason}", first(names, names.len(), ", "));
    let shown: Vec<String> = clauses.iter().take(SHOWN).map(clause).collect();
    let left: usize = clauses.iter().skip(SHOWN).map(|(_, names)| names.len()).sum();
    first(&shown, shown.len() + left, "; ")
}

/// The first of so many, and how many there are besides.
fn first(items: &[String], of: usize, separator: &str) -> String {
    let shown = items.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    let left = of - shown.len();
    let rest = (left > 0).then(|| format!("and {left} more"));
    shown.into_iter().chain(rest).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pairs: impl IntoIterator<Item = (usize, &'static str)>) -> String {
        listed(pairs.into_iter().map(|(name, reason)| (format!("t{name}"), reason.to_owned())))
    }

    #[test]
    fn those_of_which_the_same_is_said_stand_together() {
        assert_eq!(said([(1, "a"), (2, "b"), (3, "a")]), "t1, t3: a; t2: b");
        assert_eq!(said([(1, "a")]), "t1: a");
        assert_eq!(said([]), "");
    }

    #[test]
    fn of_many_the_first_are_named() {
        assert_eq!(said((0..8).map(|n| (n, "a"))), "t0, t1, t2, t3, t4, t5, t6, t7: a");
        assert_eq!(said((0..100).map(|n| (n, "a"))), "t0, t1, t2, t3, t4, t5, t6, t7, and 92 more: a");
        let reasons: Vec<String> = (0..12).map(|n| n.to_string()).collect();
        let text = listed(reasons.iter().flat_map(|r| [(format!("v{r}"), r.clone()), (format!("w{r}"), r.clone())]));
        assert!(text.starts_with("v0, w0: 0; v1, w1: 1; ") && text.ends_with("v7, w7: 7; and 8 more"), "{text}");
    }
}
