//! The rooms and the arrows between them, as ARCHITECTURE.md states them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// For every package of the workspace, the packages of the workspace that it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("entropic", &["entropic-hlo", "entropic-passes", "entropic-pjrt"]),
    ("entropic-passes", &["entropic-hlo"]),
    ("entropic-hlo", &[]),
    ("entropic-pjrt", &[]),
    ("entropic-python", &["entropic", "entropic-hlo", "entropic-passes"]),
    ("xtask", &[]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

#[test]
fn rooms_depend_only_downwards() {
    let metadata = MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap();
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let members: Vec<&str> = metadata.workspace_packages().iter().map(|p| p.name.as_str()).collect();
    assert_eq!(members.len(), ARROWS.len(), "a package without a line in ARROWS: {members:?}");
    for package in metadata.workspace_packages() {
        let allowed = allowed[package.name.as_str()];
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            let inside = members.contains(&dependency.name.as_str());
            assert!(
                !inside || allowed.contains(&dependency.name.as_str()),
                "{} must not depend on {}",
                package.name,
                dependency.name
            );
        }
    }
}

#[test]
fn unsafe_code_stays_in_the_pjrt_client() {
    let word = ["un", "safe"].concat();
    let uses = |text: &str| {
        text.lines().any(|l| {
            let code = l.split("//").next().unwrap_or_default();
            [" {", " fn", " impl", " extern"].iter().any(|next| code.contains(&format!("{word}{next}")))
        })
    };
    for room in ["src", "passes", "xtask", "crates/hlo", "crates/python", "tests", "benches"] {
        for (path, text) in sources(&root().join(room)) {
            assert!(!uses(&text), "{} has {word} code", path.display());
        }
    }
    // The check itself sees it where it is.
    assert!(sources(&root().join("crates/pjrt/src")).iter().any(|(_, text)| uses(text)));
}

#[test]
fn only_the_extension_module_knows_python() {
    let metadata = MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap();
    let knows = |package: &cargo_metadata::Package| package.dependencies.iter().any(|d| d.name.starts_with("pyo3"));
    let knowing: Vec<_> =
        metadata.workspace_packages().into_iter().filter(|p| knows(p)).map(|p| p.name.to_string()).collect();
    assert_eq!(knowing, ["entropic-python"]);
    // `cargo build` and `cargo test` without more leave it alone, so that they need no Python.
    let defaults: Vec<_> = metadata.workspace_default_packages().iter().map(|p| p.name.to_string()).collect();
    assert_eq!(defaults, ["entropic"]);
}

#[test]
fn passes_touch_nothing_outside_their_arguments() {
    for (path, text) in sources(&root().join("passes/src")) {
        // Unit tests sit at the end of a file and may do as they like.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code: String = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        for outside in ["std::fs", "std::env", "std::time", "std::net", "std::process", "println!", "eprintln!"] {
            assert!(!code.contains(outside), "{} uses {outside}", path.display());
        }
    }
}
