//! Policies as users name them: a TOML file, or one of those that come with the program.

use std::io;
use std::path::{Path, PathBuf};

use passes::policy::{ARTICLE_POLICY, SPECTRAL_POLICY};
use passes::{Policy, PolicyError};
use thiserror::Error;

/// Why there is no policy.
#[derive(Debug, Error)]
pub enum PolicyFileError {
    /// It cannot be read.
    #[error("cannot read the policy {}: {source}; give a TOML file, or one of default, monitor, article, spectral", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is none.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<PolicyError>,
    },
}

/// Reads a policy file. `default`, `monitor`, `article` and `spectral` are policies that come with the program, unless there is a file of
/// that name; the default policy is taken where there is no path.
///
/// # Errors
///
/// Where there is no such file, or it holds no policy.
pub fn open(path: Option<&Path>) -> Result<Policy, PolicyFileError> {
    let Some(path) = path else { return Ok(Policy::default()) };
    let failed = |source| PolicyFileError::Parse { path: path.to_owned(), source: Box::new(source) };
    if !path.exists() {
        match path.to_str() {
            Some("default") => return Ok(Policy::default()),
            Some("monitor") => return Ok(Policy::monitor()),
            Some("article") => return Policy::parse(ARTICLE_POLICY).map_err(failed),
            Some("spectral") => return Policy::parse(SPECTRAL_POLICY).map_err(failed),
            _ => {}
        }
    }
    let text =
        std::fs::read_to_string(path).map_err(|source| PolicyFileError::Read { path: path.to_owned(), source })?;
    Policy::parse(&text).map_err(failed)
}
