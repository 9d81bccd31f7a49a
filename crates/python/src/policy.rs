//! Policies, from where Python has them.

use std::path::PathBuf;

use entropic::policy_file;
use pyo3::prelude::*;

use crate::failure::{Failure, work};

/// A policy that was read and is valid.
#[derive(Debug, Clone)]
#[pyclass(frozen, module = "entropic._native")]
pub(crate) struct Policy(pub(crate) passes::Policy);

#[pymethods]
impl Policy {
    /// Reads a TOML file, or takes `default`, `monitor`, `article` or `spectral`; the default policy without a path.
    #[staticmethod]
    fn open(py: Python<'_>, path: Option<PathBuf>) -> PyResult<Self> {
        let read = || policy_file::open(path.as_deref()).map_err(|error| Failure::policy(&error));
        work(py, read).map(Self)
    }

    /// Takes the tables of a policy as a JSON object.
    #[staticmethod]
    fn from_json(py: Python<'_>, text: &str) -> PyResult<Self> {
        let read = || {
            let table: toml::Table = serde_json::from_str(text)
                .map_err(|error| Failure::Policy(format!("the policy is no table of TOML's values: {error}")))?;
            // One reader of policies: it knows the nearest key to a wrong one.
            let text = toml::to_string(&table).map_err(|error| Failure::policy(&error))?;
            passes::Policy::parse(&text).map_err(|error| Failure::policy(&error))
        };
        work(py, read).map(Self)
    }
}
