//! Where PJRT plugins are, and how a name becomes a file.
//!
//! A plugin is given as the path of its library, or named (`cpu`). A named one is looked for
//! in the folder `ENTROPIC_PLUGIN_DIR`, then in the user's cache, where [`fetch`] puts it, then in the
//! Python environment ([`python`]), and the first that is there is taken. Nothing is ever downloaded
//! behind the user's back: a missing plugin is an error that says how to get it.

pub mod cuda;
mod fetch;
mod known;
pub mod python;
mod trust;

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use crate::environment::{cache_dir, variable};

pub use cuda::data_dir as cuda_data_dir;
pub use fetch::{FetchError, Fetched, differing, fetch};
pub use known::{Build, KNOWN, Known, Member, Package, PythonTags};
pub use trust::{TrustError, check};

/// Names a folder that holds plugin libraries, before the cache.
pub const PLUGIN_DIR: &str = "ENTROPIC_PLUGIN_DIR";

/// A library that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The library.
    pub path: PathBuf,
    /// Where it was found.
    pub origin: Origin,
}

/// Where a plugin was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// At the path that was given.
    Given,
    /// In the folder that [`PLUGIN_DIR`] names.
    PluginDir,
    /// In the user's cache.
    Cache,
    /// In the Python environment.
    Python,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Given => "given",
            Self::PluginDir => PLUGIN_DIR,
            Self::Cache => "cache",
            Self::Python => "Python environment",
        })
    }
}

/// Why a plugin was not found.
#[derive(Debug, Error)]
pub enum FindError {
    /// A known plugin that is nowhere.
    #[error(
        "the plugin {name:?} is not at {} nor, as {library}, in the Python environment; fetch it with `entropic plugin \
         fetch {name}`{}, or name a folder that has it in {PLUGIN_DIR}",
        path.display(),
        if *name == "cpu" { " (in this repository `make plugin`)" } else { "" }
    )]
    NotFetched {
        /// Its name.
        name: &'static str,
        /// Where a fetch would put it.
        path: PathBuf,
        /// File name of its library.
        library: &'static str,
    },
    /// Neither a known name nor a file.
    #[error(
        "there is no plugin {given:?}: it is neither a known name ({}) nor an existing file; give the path of a library \
         that exports GetPjrtApi",
        Known::names()
    )]
    NoSuchPlugin {
        /// What was asked for.
        given: String,
    },
    /// It is in the cache, and should not be run.
    #[error(transparent)]
    Untrusted(#[from] TrustError),
    /// No place for the cache.
    #[error("no place for plugins: neither {PLUGIN_DIR} nor XDG_CACHE_HOME nor HOME is set; set one of them")]
    NoCache,
}

impl Known {
    /// Where a fetch puts its library: in [`PLUGIN_DIR`], else in the cache.
    ///
    /// # Errors
    ///
    /// Where the environment names no place.
    pub fn place(&self) -> Result<Found, FindError> {
        self.places(variable).into_iter().next().ok_or(FindError::NoCache)
    }

    /// Where it is, in the order of search: the first is the one that its name means. The Python environment is asked only
    /// when `all` are wanted, or when there is nothing before it.
    #[must_use]
    pub fn found(&self, all: bool) -> Vec<Found> {
        let mut found: Vec<_> = self.places(variable).into_iter().filter(|f| f.path.is_file()).collect();
        if all || found.is_empty() {
            let paths = self.python.iter().filter_map(|library| python::file(library));
            found.extend(paths.map(|path| Found { path, origin: Origin::Python }));
        }
        found
    }

    /// The places that do not depend on Python, whether the library is there or not.
    fn places(&self, variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<Found> {
        let folder = variable(PLUGIN_DIR).map(|folder| (folder, Origin::PluginDir));
        let release = format!("{}-{}", self.package.name, self.package.version);
        let cache = cache_dir(&variable).map(|cache| (cache.join("plugins").join(release), Origin::Cache));
        let places = folder.into_iter().chain(cache);
        places.map(|(folder, origin)| Found { path: folder.join(self.library), origin }).collect()
    }
}

/// The library of the plugin that `given` names, a known name or a path, to be loaded.
///
/// # Errors
///
/// Where there is no such file, or it lies in the cache and may not be [trusted](check), see [`FindError`].
pub fn find(given: &str) -> Result<PathBuf, FindError> {
    let found = locate(given)?;
    if let Some(known) = Known::by_name(given) {
        check(known, &found)?;
    }
    Ok(found.path)
}

/// As [`find`], and where that was, to be looked at.
///
/// # Errors
///
/// Where there is no such file, see [`FindError`].
pub fn locate(given: &str) -> Result<Found, FindError> {
    if let Some(known) = Known::by_name(given) {
        let missing = |path| FindError::NotFetched { name: known.name, path, library: known.library };
        return match known.found(false).into_iter().next() {
            Some(found) => Ok(found),
            None => Err(missing(known.place()?.path)),
        };
    }
    let path = PathBuf::from(given);
    if path.exists() {
        Ok(Found { path, origin: Origin::Given })
    } else {
        Err(FindError::NoSuchPlugin { given: given.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_the_environment_comes_before_the_cache() {
        let cached = ".cache/entropic/plugins/xla-cpu-pjrt-0.0.1/xla_cpu_pjrt.so";
        for (set, expected) in [
            (
                vec![("ENTROPIC_PLUGIN_DIR", "/p"), ("XDG_CACHE_HOME", "/h/.cache"), ("HOME", "/x")],
                vec!["/p/xla_cpu_pjrt.so".to_owned(), format!("/h/{cached}")],
            ),
            (vec![("XDG_CACHE_HOME", "/h/.cache"), ("HOME", "/x")], vec![format!("/h/{cached}")]),
            (vec![("XDG_CACHE_HOME", "relative is invalid"), ("HOME", "/h")], vec![format!("/h/{cached}")]),
            (vec![("HOME", "/h")], vec![format!("/h/{cached}")]),
            (vec![], vec![]),
        ] {
            let variable = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v));
            let places = Known::by_name("cpu").unwrap().places(variable);
            let paths: Vec<_> = places.into_iter().map(|f| f.path.display().to_string()).collect();
            assert_eq!(paths, expected);
        }
    }

    #[test]
    fn what_is_neither_name_nor_file_is_refused() {
        let error = find("gpuu").unwrap_err().to_string();
        assert!(error.contains("gpuu") && error.contains("cpu, cuda, tpu"), "{error}");
    }
}
