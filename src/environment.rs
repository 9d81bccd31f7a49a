//! Variables of the environment that name places.

use std::env;
use std::path::PathBuf;

/// A variable that names a path; an empty one counts as not set.
pub(crate) fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// This program's folder in the user's cache, by the rules of the XDG base directories.
pub(crate) fn cache_dir(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let cache = variable("XDG_CACHE_HOME")
        .filter(|cache| cache.is_absolute())
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("entropic"))
}
