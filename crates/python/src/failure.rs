//! Failures as Python exceptions, and the one place where Rust work is done on behalf of Python.

use std::any::Any;
use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};

use entropic::isolate::paragraph;
use entropic::model::ModelError;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(
    entropic,
    Error,
    PyException,
    "Whatever fails in entropic; the text says what, where, and what to do."
);
create_exception!(
    entropic,
    RefusedError,
    Error,
    "A step that is not controlled: it is not understood, or it is controlled already."
);
create_exception!(entropic, PolicyError, Error, "A policy that cannot be read, or does not fit the step.");

/// Why there is no result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The step is refused.
    Refused(String),
    /// The policy is.
    Policy(String),
    /// Something else.
    Other(String),
}

impl Failure {
    /// The step is refused, for the causes of `error`.
    pub(crate) fn refused(error: &(dyn StdError + 'static)) -> Self {
        Self::Refused(paragraph(error))
    }

    /// The policy is refused, for the causes of `error`.
    pub(crate) fn policy(error: &(dyn StdError + 'static)) -> Self {
        Self::Policy(paragraph(error))
    }

    /// Neither is to blame.
    pub(crate) fn other(error: &(dyn StdError + 'static)) -> Self {
        Self::Other(paragraph(error))
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        match &error {
            ModelError::Read(_) => Self::other(&error),
            ModelError::Inject { source, .. } if source.is_of_policy() => Self::policy(&error),
            _ => Self::refused(&error),
        }
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(text) => RefusedError::new_err(text),
            Failure::Policy(text) => PolicyError::new_err(text),
            Failure::Other(text) => Error::new_err(text),
        }
    }
}

/// Does `job` while other threads have the interpreter. A panic, which would be a bug, becomes an [`Error`].
pub(crate) fn work<T: Send>(py: Python<'_>, job: impl FnOnce() -> Result<T, Failure> + Send) -> PyResult<T> {
    // What a panic leaves half done is dropped with `job`: nothing outlives it.
    let done = py.detach(|| catch_unwind(AssertUnwindSafe(job)));
    Ok(done.unwrap_or_else(|panic| {
        let said = text_of(panic.as_ref());
        Err(Failure::Other(format!("a bug in entropic ended this call: {said}; please report it, with the step")))
    })?)
}

/// What a panic said.
fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without words")
}
