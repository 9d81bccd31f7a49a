//! `docs/policy.md` against the code: every key is there, with its default.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;

use passes::Policy;

/// Key and default of every row of the table.
fn documented() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim_matches([' ', '`']).to_owned()).collect();
        assert_eq!(cells.len(), 7, "{row}");
        (cells[1].clone(), cells[2].clone())
    })
    .collect()
}

#[test]
fn every_key_is_documented() {
    let mut documented: Vec<_> = documented().into_iter().map(|(key, _)| key).collect();
    let mut keys = Policy::keys();
    documented.sort();
    keys.sort();
    assert_eq!(documented, keys);
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let default = toml::Value::try_from(Policy::default()).unwrap();
    for (key, value) in documented().iter().filter(|(key, _)| !key.contains("PATTERN") && !key.contains("NAME")) {
        let found = key.split('.').fold(&default, |table, part| &table[part]);
        assert_eq!(&found.to_string(), value, "`{key}`");
    }
}
