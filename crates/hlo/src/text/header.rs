//! The first line of a module.

use std::fmt::{self, Write};

use super::Preset;
use super::attributes::Frontend;
use super::quote::{Braces, Name, Separated};
use super::shape::ShapeText;
use super::tables::{ALIAS_KINDS, choice};
use crate::ir::Module;
use crate::proto::ProgramShapeProto;

pub(super) fn write(out: &mut String, module: &Module, preset: Preset) -> fmt::Result {
    let header = module.header();
    write!(out, "HloModule {}", Name(module.name()))?;
    if header.schedule.is_some() {
        out.write_str(", is_scheduled=true")?;
    }
    let aliases = header.input_output_alias.as_option().map(|t| t.entries.as_slice()).unwrap_or_default();
    if !aliases.is_empty() {
        let entries = aliases.iter().map(|alias| {
            let kind = choice(if alias.kind == 2 { 2 } else { 1 }, &ALIAS_KINDS);
            let (output, inside) = (Index(&alias.output_shape_index), Index(&alias.parameter_shape_index));
            format!("{output}: ({}, {inside}, {kind})", alias.parameter_number)
        });
        write!(out, ", input_output_alias={{ {} }}", Separated::new(entries, false))?;
    }
    let donors = header.buffer_donor.as_option().map(|t| t.entries.as_slice()).unwrap_or_default();
    if !donors.is_empty() {
        let entries = donors.iter().map(|d| format!("({}, {})", d.parameter_number, Index(&d.parameter_shape_index)));
        write!(out, ", buffer_donor={{ {} }}", Separated::new(entries, false))?;
    }
    if let Some(signature) = header.host_program_shape.as_option() {
        write!(out, ", entry_computation_layout={{{}}}", Signature { signature, preset })?;
    }
    if let Some(attributes) = header.frontend_attributes.as_option().filter(|a| !a.map.is_empty()) {
        write!(out, ", frontend_attributes={}", Frontend(attributes))?;
    }
    out.write_str("\n")
}

/// A place in a tuple: `{0, 1}`.
struct Index<'a>(&'a [i64]);

impl fmt::Display for Index<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Braces(self.0))
    }
}

/// `(f32[2]{0})->f32[]`
struct Signature<'a> {
    signature: &'a ProgramShapeProto,
    preset: Preset,
}

impl fmt::Display for Signature<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (layouts, indices) = (self.preset.layouts(), self.preset.indices());
        let text = |shape| ShapeText { shape, layouts, indices };
        write!(f, "({})->", Separated::new(self.signature.parameters.iter().map(text), indices))?;
        match self.signature.result.as_option() {
            Some(result) => write!(f, "{}", text(result)),
            None => f.write_str("?"),
        }
    }
}
