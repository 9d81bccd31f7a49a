//! Parameters, signatures, aliases and donors: V016 to V026.

use std::collections::HashSet;

use super::{Report, Rule};
use crate::ir::shape::{Brief, compatible};
use crate::ir::{Computation, Instruction, InstructionId, Module, Shape};
use crate::proto::{ProgramShapeProto, ShapeProto};

pub(super) fn check_computation(computation: &Computation, parameters: &[InstructionId], report: &mut Report<'_>) {
    let parameters = instructions(computation, parameters);
    for (expected, parameter) in (0i64..).zip(&parameters) {
        let number = parameter.attributes.parameter_number;
        if number != expected {
            let message = format!("its number is {number}, and {expected} is the next one in order");
            report.instruction(Rule::ParameterNumbers, computation, parameter, message);
        }
    }
    let Some(root) = computation.root_instruction() else { return };
    let stated = computation.header.program_shape.as_option();
    if let Some(message) = stale(stated, &parameters, &root.shape) {
        report.computation(Rule::ProgramShape, computation, format!("its `program_shape` {message}"));
    }
    if let Some(message) = miscounted_names(stated) {
        report.computation(Rule::ParameterNames, computation, format!("its `program_shape` {message}"));
    }
}

pub(super) fn check_entry(module: &Module, parameters: &[InstructionId], report: &mut Report<'_>) {
    let entry = module.entry_computation();
    let Some(root) = entry.root_instruction() else { return };
    let parameters = instructions(entry, parameters);
    let stated = module.header.host_program_shape.as_option();
    if let Some(message) = stale(stated, &parameters, &root.shape) {
        report.whole(Rule::HostProgramShape, format!("the module's `host_program_shape` {message}"));
    }
    if let Some(message) = miscounted_names(stated) {
        report.whole(Rule::ParameterNames, format!("the module's `host_program_shape` {message}"));
    }
    check_aliases(module, &parameters, &root.shape, report);
}

fn instructions<'a>(computation: &'a Computation, ids: &[InstructionId]) -> Vec<&'a Instruction> {
    ids.iter().filter_map(|&id| computation.get(id)).collect()
}

/// What of a signature disagrees with parameters and root; layouts may differ.
fn stale(stated: Option<&ProgramShapeProto>, parameters: &[&Instruction], root: &Shape) -> Option<String> {
    let Some(stated) = stated else { return Some("is missing".into()) };
    if stated.parameters.len() != parameters.len() {
        return Some(format!("has {} parameters, the computation {}", stated.parameters.len(), parameters.len()));
    }
    for (n, (stated, parameter)) in stated.parameters.iter().zip(parameters).enumerate() {
        if !compatible(stated, &parameter.shape.0) {
            let (stated, actual) = (Brief(stated), Brief(&parameter.shape.0));
            return Some(format!("has {stated} as parameter {n}, which is {parameter} of {actual}"));
        }
    }
    let result = stated.result.as_option();
    if result.is_some_and(|stated| compatible(stated, &root.0)) {
        return None;
    }
    let stated = result.map_or_else(|| "nothing".to_owned(), |s| Brief(s).to_string());
    Some(format!("has {stated} as result, the root is {}", Brief(&root.0)))
}

fn miscounted_names(stated: Option<&ProgramShapeProto>) -> Option<String> {
    let stated = stated?;
    let (names, parameters) = (stated.parameter_names.len(), stated.parameters.len());
    (names != parameters).then(|| format!("has {names} parameter names for {parameters} parameters"))
}

fn check_aliases(module: &Module, parameters: &[&Instruction], root: &Shape, report: &mut Report<'_>) {
    let parameter_leaf = |number: i64, index: &[i64]| {
        let parameter = usize::try_from(number).ok().and_then(|n| parameters.get(n))?;
        leaf(&parameter.shape.0, index)
    };
    let mut aliased = HashSet::new();
    let mut outputs = HashSet::new();
    let table = module.header.input_output_alias.as_option();
    for entry in table.into_iter().flat_map(|t| &t.entries) {
        let (number, inside) = (entry.parameter_number, &entry.parameter_shape_index);
        let output_index = &entry.output_shape_index;
        let place = format!("the alias of output {output_index:?} with parameter {number} {inside:?}");
        let parameter = parameter_leaf(number, inside);
        if parameter.is_none() {
            report.whole(Rule::AliasParameter, format!("{place}: there is no such parameter"));
        }
        let output = leaf(&root.0, output_index);
        if output.is_none() {
            report.whole(Rule::AliasOutput, format!("{place}: there is no such output"));
        }
        if !aliased.insert((number, inside)) {
            report.whole(Rule::ParameterAliasedTwice, format!("{place}: the parameter is aliased already"));
        }
        if !outputs.insert(output_index) {
            report.whole(Rule::OutputAliasedTwice, format!("{place}: the output is aliased already"));
        }
        if let (Some(parameter), Some(output)) = (parameter, output)
            && size(parameter) != size(output)
        {
            let message = format!("{place}: {} and {} differ in size", Brief(output), Brief(parameter));
            report.whole(Rule::AliasSize, message);
        }
    }
    let donors = module.header.buffer_donor.as_option();
    for entry in donors.into_iter().flat_map(|t| &t.entries) {
        let (number, inside) = (entry.parameter_number, &entry.parameter_shape_index);
        if parameter_leaf(number, inside).is_none() {
            report.whole(Rule::Donor, format!("parameter {number} {inside:?} is donated, and does not exist"));
        }
        if aliased.contains(&(number, inside)) {
            report.whole(Rule::DonorAliased, format!("parameter {number} {inside:?} is donated and aliased"));
        }
    }
}

/// The array at an index into nested tuples.
fn leaf<'a>(shape: &'a ShapeProto, index: &[i64]) -> Option<&'a ShapeProto> {
    index.iter().try_fold(shape, |shape, &i| usize::try_from(i).ok().and_then(|i| shape.tuple_shapes.get(i)))
}

/// Bytes of one array; tuples take none of their own.
fn size(shape: &ShapeProto) -> u64 {
    let elements = shape.dimensions.iter().fold(1u64, |n, &d| n.saturating_mul(u64::try_from(d).unwrap_or(0)));
    let bits = shape.element_type.as_known().map_or(0, crate::PrimitiveType::bits);
    elements.saturating_mul(bits).div_ceil(8)
}
