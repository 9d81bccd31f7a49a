//! The committed modules, read where the tests need them.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::{Path, PathBuf};

/// Name and bytes of every module of the corpus, of the model bundles and of `data/`, in order of their paths.
pub(crate) fn modules() -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut paths = files(&root.join("tests/corpus"));
    paths.extend(files(&root.join("crates/hlo/tests/data")));
    for bundle in std::fs::read_dir(root.join("models")).unwrap() {
        let bundle = bundle.unwrap().path();
        if bundle.is_dir() {
            paths.extend(files(&bundle));
        }
    }
    paths.sort();
    paths.into_iter().map(|p| (name(&p), std::fs::read(&p).unwrap())).collect()
}

/// The module of that name, `folder/file`.
pub(crate) fn module(name: &str) -> (String, Vec<u8>) {
    modules().into_iter().find(|m| m.0 == name).unwrap_or_else(|| panic!("no module {name}"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|e| e.unwrap().path()).filter(|p| p.to_string_lossy().ends_with(".hlo.pb")).collect()
}

fn name(path: &Path) -> String {
    let mut parts: Vec<_> = path.iter().rev().take(2).map(|p| p.to_string_lossy().into_owned()).collect();
    parts.reverse();
    parts.join("/")
}
