//! Names for emitted instructions.

use hlo::build::sanitize;

/// Short, HLO-safe names for tree paths: components that all of them begin with are dropped, the last one never.
///
/// `params['h0']['qkv']`, `params['wte']` turn into `h0.qkv`, `wte`.
pub(crate) fn short(paths: &[&str]) -> Vec<String> {
    let safe: Vec<String> = paths.iter().map(|p| sanitize(p)).collect();
    let split: Vec<Vec<&str>> = safe.iter().map(|p| p.split('.').collect()).collect();
    let shortest = split.iter().map(Vec::len).min().unwrap_or(1);
    let common = (0..shortest.saturating_sub(1))
        .take_while(|&i| split.windows(2).all(|pair| matches!(pair, [a, b] if a.get(i) == b.get(i))))
        .count();
    split.iter().map(|parts| parts.iter().skip(common).copied().collect::<Vec<_>>().join(".")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_components_are_dropped() {
        let check = |paths: &[&str], expected: &[&str]| assert_eq!(short(paths), expected);
        check(&["params['h0']['qkv']", "params['wte']"], &["h0.qkv", "wte"]);
        check(&["state.params['a']['w']", "state.params['a']['b']"], &["w", "b"]);
        check(&["p['w']"], &["w"]);
        check(&["Arg_0.1", "Arg_1.2"], &["Arg_0.1", "Arg_1.2"]);
        check(&["w", "p['w']"], &["w", "p.w"]);
        check(&[], &[]);
    }
}
