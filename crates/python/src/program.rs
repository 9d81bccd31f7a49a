//! The program `entropic` inside of Python.

use std::ffi::OsString;
use std::path::PathBuf;

use entropic::{cli, isolate};
use pyo3::prelude::*;

use crate::failure::work;

/// Does what a command line asks for and returns the exit code. `arguments` begin with the program's name; `again` is the
/// command that starts this program once more, for work that is done in a child process.
#[pyfunction]
pub(crate) fn main(py: Python<'_>, arguments: Vec<OsString>, again: Vec<OsString>) -> PyResult<u8> {
    work(py, || {
        let mut again = again.into_iter();
        if let Some(program) = again.next() {
            isolate::started_by(PathBuf::from(program), again);
        }
        Ok(cli::main(arguments))
    })
}
