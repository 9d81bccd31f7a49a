//! `entropic._native`: the passes and the program `entropic`, for Python.
//!
//! Guarantees: what is done here is what the program does, by the same functions; the interpreter is free for other threads
//! while it is done; whatever fails is a Python exception with the error's text, a panic too. Refuses nothing by itself.
//!
//! Knows no JAX: modules come and go as bytes of an `HloModuleProto`, layouts and reports as JSON. The package around it
//! (`python/entropic`) is what users see; `_native.pyi` has the types.

mod failure;
mod policy;
mod program;
mod step;

use pyo3::prelude::*;

/// The extension module.
#[pymodule]
#[pyo3(name = "_native")]
mod native {
    #[pymodule_export]
    use crate::failure::{Error, PolicyError, RefusedError};
    #[pymodule_export]
    use crate::policy::Policy;
    #[pymodule_export]
    use crate::program::main;
    #[pymodule_export]
    use crate::step::{Injected, Step};
}
