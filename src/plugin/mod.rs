//! Where PJRT plugins are, and how a name becomes a file.
//!
//! A plugin is named (`cpu`) or given as the path of its library. A named one
//! is looked for in the folder `ENTROPIC_PLUGIN_DIR`, where that is set, else in
//! the user's cache, where [`fetch`] puts it. Nothing is ever downloaded behind the
//! user's back: a missing plugin is an error that says how to get it.

mod fetch;

use std::env;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use fetch::{FetchError, Fetched, fetch};

/// Names a folder that holds plugin libraries, instead of the cache.
pub const PLUGIN_DIR: &str = "ENTROPIC_PLUGIN_DIR";

/// A plugin that this program knows by name, pinned to one release.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// What `--plugin` takes.
    pub name: &'static str,
    /// The package on the Python package index.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    /// File name of the library.
    pub library: &'static str,
    /// Where the library lies inside the package.
    pub member: &'static str,
    /// What the package is on each machine that has one.
    pub builds: &'static [Build],
}

/// A package for one kind of machine.
#[derive(Debug, Clone, Copy)]
pub struct Build {
    /// Operating system, as Rust names it.
    pub os: &'static str,
    /// Processor, as Rust names it.
    pub arch: &'static str,
    /// SHA-256 of the package.
    pub package_sha256: &'static str,
    /// SHA-256 of the library inside.
    pub library_sha256: &'static str,
}

/// Every plugin known by name.
pub const KNOWN: &[Known] = &[Known {
    name: "cpu",
    package: "xla-cpu-pjrt",
    version: "0.0.1",
    library: "xla_cpu_pjrt.so",
    member: "xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so",
    builds: &[
        Build {
            os: "linux",
            arch: "x86_64",
            package_sha256: "55837b6b7b47daa717f2d9a5a03563ea0ceaa338d06a81a1e2d3f060d960decc",
            library_sha256: "88c3f28c5900f48ad4a82cab9e79bba9537809743395e341485f8794268820dc",
        },
        Build {
            os: "linux",
            arch: "aarch64",
            package_sha256: "8f613be6e891858f40d64f9799319502fff42689661944fc18a6ffd8210b30c9",
            library_sha256: "fcf411f3e8ff635c2b2cf87215aa7016f460e66d236c3db08309e7486583532d",
        },
    ],
}];

/// Why a plugin was not found.
#[derive(Debug, Error)]
pub enum FindError {
    /// A known plugin that has not been fetched.
    #[error(
        "the plugin {name:?} is not at {}; fetch it with `entropic plugin fetch {name}` (in this repository `make plugin`), \
         or name a folder that has it in {PLUGIN_DIR}", path.display()
    )]
    NotFetched {
        /// Its name.
        name: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Neither a known name nor a file.
    #[error(
        "there is no plugin {given:?}: it is neither a known name ({}) nor an existing file; give the path of a library \
         that exports GetPjrtApi",
        known_names()
    )]
    NoSuchPlugin {
        /// What was asked for.
        given: String,
    },
    /// No place for the cache.
    #[error("no place for plugins: neither {PLUGIN_DIR} nor XDG_CACHE_HOME nor HOME is set; set one of them")]
    NoCache,
}

impl Known {
    /// The known plugin of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        KNOWN.iter().find(|k| k.name == name)
    }

    /// Where its library is, or belongs: in [`PLUGIN_DIR`], else in the cache.
    ///
    /// # Errors
    ///
    /// Where the environment names no place.
    pub fn location(&self) -> Result<PathBuf, FindError> {
        self.location_in(|variable| env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from))
    }

    fn location_in(&self, variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, FindError> {
        if let Some(folder) = variable(PLUGIN_DIR) {
            return Ok(folder.join(self.library));
        }
        let cache = variable("XDG_CACHE_HOME")
            .filter(|c| c.is_absolute())
            .or_else(|| variable("HOME").map(|home| home.join(".cache")))
            .ok_or(FindError::NoCache)?;
        let release = format!("{}-{}", self.package, self.version);
        Ok(cache.join("entropic").join("plugins").join(release).join(self.library))
    }

    /// The build for this machine.
    #[must_use]
    pub fn build(&self) -> Option<&'static Build> {
        self.builds.iter().find(|b| b.os == env::consts::OS && b.arch == env::consts::ARCH)
    }
}

/// The library of the plugin that `given` names: a known name, or a path.
///
/// # Errors
///
/// Where there is no such file, see [`FindError`].
pub fn find(given: &str) -> Result<PathBuf, FindError> {
    if let Some(known) = Known::by_name(given) {
        let path = known.location()?;
        return if path.is_file() { Ok(path) } else { Err(FindError::NotFetched { name: known.name, path }) };
    }
    let path = Path::new(given);
    if path.exists() { Ok(path.to_owned()) } else { Err(FindError::NoSuchPlugin { given: given.to_owned() }) }
}

fn known_names() -> String {
    KNOWN.iter().map(|k| k.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_the_environment_wins_over_the_cache() {
        let cpu = Known::by_name("cpu").unwrap();
        let cached = ".cache/entropic/plugins/xla-cpu-pjrt-0.0.1/xla_cpu_pjrt.so";
        for (set, expected) in [
            (
                vec![("ENTROPIC_PLUGIN_DIR", "/p"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/h")],
                "/p/xla_cpu_pjrt.so".to_owned(),
            ),
            (vec![("XDG_CACHE_HOME", "/h/.cache"), ("HOME", "/x")], format!("/h/{cached}")),
            (vec![("XDG_CACHE_HOME", "relative is invalid"), ("HOME", "/h")], format!("/h/{cached}")),
            (vec![("HOME", "/h")], format!("/h/{cached}")),
        ] {
            let variable = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v));
            assert_eq!(cpu.location_in(variable).unwrap(), PathBuf::from(expected));
        }
        assert!(cpu.location_in(|_| None).unwrap_err().to_string().contains("HOME"));
    }

    #[test]
    fn what_is_neither_name_nor_file_is_refused() {
        let error = find("gpuu").unwrap_err().to_string();
        assert!(error.contains("gpuu") && error.contains("cpu"), "{error}");
    }
}
