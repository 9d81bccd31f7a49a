//! What modules say about themselves besides their instructions.

use std::collections::BTreeSet;

use hlo::text::print_shape;
use hlo::{AliasKind, Module, Shape};

use super::HeaderChange;

/// Lines that only one of the modules has: those of the first, then those of the second.
pub(super) fn changes(before: &Module, after: &Module) -> Vec<HeaderChange> {
    let (a, b) = (lines(before), lines(after));
    let only = |added: bool, these: &[String], others: &[String]| -> Vec<HeaderChange> {
        let others: BTreeSet<&String> = others.iter().collect();
        let missing = these.iter().filter(|line| !others.contains(line));
        missing.map(|line| HeaderChange { added, text: line.clone() }).collect()
    };
    let mut changes = only(false, &a, &b);
    changes.extend(only(true, &b, &a));
    changes
}

fn lines(module: &Module) -> Vec<String> {
    let header = module.header();
    let mut lines = Vec::new();
    if header.schedule.is_some() {
        lines.push("is_scheduled=true".to_owned());
    }
    for alias in module.aliases() {
        let kind = if alias.kind == AliasKind::Must { "must" } else { "may" };
        lines.push(format!("output {} {kind} alias parameter {}", alias.output, alias.parameter));
    }
    lines.extend(module.donors().into_iter().map(|parameter| format!("parameter {parameter} is donated")));
    if let Some(signature) = header.host_program_shape.as_option() {
        let shape = |shape: &_| Shape::from(Clone::clone(shape));
        for (n, parameter) in signature.parameters.iter().enumerate() {
            lines.push(format!("parameter {n} is {}", print_shape(&shape(parameter))));
        }
        let result = signature.result.as_option().map(shape).unwrap_or_default();
        if result.is_tuple() {
            let outputs = result.tuple_elements().enumerate();
            lines.extend(outputs.map(|(n, output)| format!("output {n} is {}", print_shape(&output))));
        } else {
            lines.push(format!("the output is {}", print_shape(&result)));
        }
    }
    if let Some(attributes) = header.frontend_attributes.as_option() {
        lines.extend(attributes.map.iter().map(|e| format!("frontend attribute {}={}", e.key, e.value)));
    }
    lines
}
