//! A train step that a caller has in memory: what is found in it, and what becomes of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use entropic::bundle::Dtype;
use entropic::input::Origin;
use entropic::model::{Controlled, Found, Model};
use entropic::report::Report;
use entropic::target::Platform;
use hlo::Module;
use passes::ControllerLayout;
use passes::expose::{Exposed, View};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::failure::{Failure, work};
use crate::policy::Policy;

/// A lowered train step.
#[derive(Debug)]
#[pyclass(frozen, module = "entropic._native")]
pub(crate) struct Step {
    model: Model,
}

/// What was found in a step: JSON, and tables for a person to read.
type Inspected = (String, String);

/// An output that is a gradient: its parameter, its dtype in numpy's words, its shape.
type ExposedGradient = (String, String, Vec<i64>);

#[pymethods]
impl Step {
    /// Reads a serialized `HloModuleProto`. `name` is what errors call the step; `inputs` are the names of the entry
    /// computation's parameters in order, `outputs` those of the elements of its result; `successors` has numbers of outputs with that
    /// of the input whose next value they are.
    #[new]
    fn new(
        py: Python<'_>,
        module: &[u8],
        name: PathBuf,
        inputs: Vec<String>,
        outputs: Vec<String>,
        successors: BTreeMap<usize, usize>,
    ) -> PyResult<Self> {
        work(py, || {
            let mut module = Module::import(module).map_err(|error| Failure::other(&error))?;
            rename(&mut module, inputs)?;
            let origin = Origin { output_names: outputs, successors, ..Origin::default() };
            Ok(Self { model: Model::Bare { path: name, module: Box::new(module), origin } })
        })
    }

    /// Says what was found, as JSON and as text.
    fn inspect(&self, py: Python<'_>) -> PyResult<Inspected> {
        work(py, || {
            let report = Report::new(&self.model.path().display().to_string(), &self.model.find()?);
            let json = serde_json::to_string(&report).map_err(|error| Failure::other(&error))?;
            Ok((json, report.text()))
        })
    }

    /// Puts the controller in, emitted as the compiler of `platform` likes it: `cpu`, `cuda` or `tpu`; for any other
    /// platform as for a GPU.
    fn inject(&self, py: Python<'_>, policy: &Policy, platform: &str) -> PyResult<Injected> {
        work(py, || {
            let platform = Platform::from_name(platform).unwrap_or(Platform::Cuda);
            let found = self.model.find_uncontrolled()?;
            let Controlled { module, layout, .. } = self.model.inject_found(found, &policy.0, platform, None)?;
            let policy = layout.policy_vector(&policy.0).map_err(|error| Failure::policy(&error))?;
            Ok(Injected { module: module.export(), layout, policy })
        })
    }

    /// The module with a view (`eff`, `preclip` or `raw`) of every gradient as an output behind its own; and of each of these
    /// outputs the parameter, the dtype and the shape.
    fn expose<'py>(&self, py: Python<'py>, view: &str) -> PyResult<(Bound<'py, PyBytes>, Vec<ExposedGradient>)> {
        let (module, gradients) = work(py, || self.exposed(view))?;
        Ok((PyBytes::new(py, &module), gradients))
    }
}

impl Step {
    fn exposed(&self, view: &str) -> Result<(Vec<u8>, Vec<ExposedGradient>), Failure> {
        let view = match view {
            "eff" => View::Eff,
            "preclip" => View::Preclip,
            "raw" => View::Raw,
            _ => {
                return Err(Failure::Other(format!(
                    "there is no view {view:?} of a gradient; there are eff, preclip, raw"
                )));
            }
        };
        let Found { mut module, step, .. } = self.model.find()?;
        let outputs = passes::expose::expose(&mut module, &step, view).map_err(|error| Failure::refused(&error))?;
        hlo::verify::verify(&module).map_err(|error| Failure::other(&error))?;
        let root = module.entry_computation().root_instruction();
        let gradient = |exposed: Exposed| {
            let shape = root?.shape.tuple_elements().nth(exposed.output)?;
            let dtype = Dtype::from_primitive(shape.element_type())?;
            Some((exposed.parameter, dtype.name().to_owned(), shape.dims().to_vec()))
        };
        Ok((module.export(), outputs.into_iter().filter_map(gradient).collect()))
    }
}

/// A controlled step.
#[derive(Debug)]
#[pyclass(frozen, module = "entropic._native")]
pub(crate) struct Injected {
    module: Vec<u8>,
    layout: ControllerLayout,
    policy: Vec<f32>,
}

#[pymethods]
impl Injected {
    /// The controlled module, a serialized `HloModuleProto`.
    #[getter]
    fn module<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.module)
    }

    /// What the controller adds, as JSON: appended inputs and outputs, and the fields of each.
    #[getter]
    fn layout(&self) -> PyResult<String> {
        Ok(serde_json::to_string(&self.layout).map_err(|error| Failure::other(&error))?)
    }

    /// The policy's numbers, the contents of the input `policy`.
    #[getter]
    fn policy(&self) -> Vec<f32> {
        self.policy.clone()
    }

    /// The contents of the input `state` before the first step.
    #[getter]
    fn state(&self) -> Vec<f32> {
        self.layout.initial_state()
    }

    /// The contents of the input `counters` before the first step.
    #[getter]
    fn counters(&self) -> Vec<i32> {
        self.layout.initial_counters()
    }

    /// The numbers of another policy, which may differ from the one of the injection in numbers alone.
    fn policy_numbers(&self, policy: &Policy) -> PyResult<Vec<f32>> {
        Ok(self.layout.policy_vector(&policy.0).map_err(|error| Failure::policy(&error))?)
    }
}

/// Gives the entry's parameters their tree paths.
fn rename(module: &mut Module, names: Vec<String>) -> Result<(), Failure> {
    let parameters = module.entry_computation().parameters();
    if parameters.len() != names.len() {
        let (found, named) = (parameters.len(), names.len());
        return Err(Failure::Other(format!("the module takes {found} arrays, and {named} are named")));
    }
    let entry = module.entry_computation_mut();
    for (id, name) in parameters.into_iter().zip(names) {
        if let Some(parameter) = entry.get_mut(id) {
            parameter.attributes_mut().metadata.get_or_insert_default().op_name = name;
        }
    }
    Ok(())
}
