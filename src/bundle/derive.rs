//! A manifest for a bare module, from what HLO carries and what discovery found.

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU32;

use hlo::{Module, Shape};
use passes::TrainStep;
use passes::step::StateRole;

use super::Dtype;
use super::check::{CheckError, output_shapes, partitions};
use crate::input::Origin;

use super::manifest::{FORMAT_VERSION, Input, InputRole, Launch, Manifest, Output, OutputRole};

/// Describes `module` as a bundle without init, eval and data. `file` is the name that the module will have.
///
/// Names are tree paths where the front end left them or `origin` has them, else HLO names; a name that occurs twice gets a
/// number.
///
/// # Errors
///
/// Where an input or output is no array of a type that a manifest can name.
pub fn derive(module: &Module, step: &TrainStep, file: &str, origin: &Origin) -> Result<Manifest, CheckError> {
    let entry = module.entry_computation();
    let launch = launch(module, step)?;
    let count = entry.parameters().len();
    let mut taken = HashSet::new();
    let inputs = entry
        .parameters()
        .into_iter()
        .enumerate()
        .filter_map(|(number, id)| Some((number, entry.get(id)?)))
        .map(|(number, instruction)| {
            let name = match (step.state(number), instruction.op_name()) {
                (Some(state), _) => state.name.clone(),
                (None, "") => instruction.name.clone(),
                (None, path) => path.to_owned(),
            };
            let (dtype, shape) = array(&format!("input {number} ({name})"), &instruction.shape)?;
            Ok(Input { name: unique(&mut taken, name), dtype, shape, role: input_role(step, number) })
        })
        .collect::<Result<Vec<_>, CheckError>>()?;
    let outputs = output_shapes(module)
        .iter()
        .enumerate()
        .map(|(index, shape)| {
            let (dtype, dims) = array(&format!("output {index}"), shape)?;
            // A record that a loop begins anew is a state of its own only.
            let input = step.states.iter().find(|s| s.output == index).map(|s| s.input).filter(|&input| input < count);
            let role = match input.and_then(|i| input_role(step, i).successor()) {
                Some(role) => role,
                None if step.loss == Some(index)
                    && launch.one_step(&dims).is_some_and(<[i64]>::is_empty)
                    && dtype.primitive().is_floating() =>
                {
                    OutputRole::Loss
                }
                None if is_each(step, index) => OutputRole::Aux,
                // What a loop over steps ends with.
                None => OutputRole::State,
            };
            let name = origin.output_names.get(index).cloned().unwrap_or_else(|| format!("result[{index}]"));
            Ok(Output { name, dtype, shape: dims, role, input })
        })
        .collect::<Result<_, CheckError>>()?;
    Ok(Manifest {
        format_version: FORMAT_VERSION,
        name: module.name().to_owned(),
        module: file.to_owned(),
        inputs,
        outputs,
        init: None,
        eval: None,
        data: None,
        target_platforms: origin.chosen.clone().map_or_else(|| origin.platforms.clone(), |chosen| vec![chosen]),
        versions: BTreeMap::new(),
        launch,
        controller: None,
    })
}

/// On as many devices as the module is split over, as many steps as it loops over.
fn launch(module: &Module, step: &TrainStep) -> Result<Launch, CheckError> {
    let trips = step.inside_loop.as_ref().and_then(|around| around.trips.as_ref().ok());
    let steps = trips.map_or(NonZeroU32::MIN, |trips| trips.steps);
    Ok(Launch { partitions: partitions(module)?, steps, ..Launch::default() })
}

/// Whether every step has its own part of an output.
fn is_each(step: &TrainStep, output: usize) -> bool {
    let Some(around) = &step.inside_loop else { return true };
    let several = around.trips.as_ref().is_ok_and(|trips| trips.steps > NonZeroU32::MIN);
    !several || around.leaves.iter().any(|leaf| leaf.output == Some(output) && leaf.each)
}

fn input_role(step: &TrainStep, number: usize) -> InputRole {
    match step.state(number).map(|s| s.role) {
        None => InputRole::Batch,
        Some(StateRole::Parameter | StateRole::LowPrecisionCopy) => InputRole::Param,
        Some(StateRole::RngKey) => InputRole::Rng,
        Some(
            StateRole::Master
            | StateRole::Moment
            | StateRole::SharedMoment
            | StateRole::BiasCorrectionCounter
            | StateRole::ScheduleCounter
            | StateRole::SharedCounter
            | StateRole::AccumulationCounter
            | StateRole::Hyperparameter,
        ) => InputRole::Opt,
        Some(_) => InputRole::State,
    }
}

fn array(what: &str, shape: &Shape) -> Result<(Dtype, Vec<i64>), CheckError> {
    match Dtype::from_primitive(shape.element_type()) {
        Some(dtype) if shape.is_array() => Ok((dtype, shape.dims().to_vec())),
        _ => Err(CheckError {
            place: what.to_owned(),
            message: format!(
                "{shape} is no array that a manifest can describe; export the step with flat array arguments"
            ),
        }),
    }
}

fn unique(taken: &mut HashSet<String>, name: String) -> String {
    let mut candidate = name.clone();
    let mut number = 1;
    while !taken.insert(candidate.clone()) {
        number += 1;
        candidate = format!("{name}.{number}");
    }
    candidate
}
