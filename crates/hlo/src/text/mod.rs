//! HLO text as XLA prints it, in a form that XLA's own parser reads back, and so does [`parse()`].
//!
//! What text cannot say is left out: wire ids, stack frames and profiles, and
//! fields that this crate does not know, which a comment names. A scheduled
//! module's lines stand in the order of the schedule. Names are printed as XLA's
//! importer would sanitize them. Printing never fails, a damaged module included:
//! what does not exist is printed as `?`.

use std::fmt::{self, Write};

use crate::ir::{Computation, Instruction, InstructionId, Module, Opcode, Shape};

mod attributes;
mod dimensions;
mod float;
mod header;
mod literal;
mod parse;
mod quote;
mod schedule;
mod shape;
mod sharding;
mod signature;
mod tables;

pub use parse::{ParseError, Problem, parse};
pub use signature::{Signature, signature};

use quote::{Name, Separated};
use schedule::Schedule;
use shape::{Layouts, ShapeText};

/// What a text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Preset {
    /// Complete: every attribute, layout, literal and all metadata that text can hold. XLA's
    /// parser makes the same program of it.
    Canonical,
    /// To be read and compared by people: of metadata only `op_name`, no row-major layouts,
    /// no literals of more than 16 elements, no comments that count.
    Snapshot,
}

/// Most elements of a literal that [`Preset::Snapshot`] spells out.
const SNAPSHOT_ELEMENTS: u64 = 16;

impl Preset {
    fn layouts(self) -> Layouts {
        match self {
            Self::Canonical => Layouts::All,
            Self::Snapshot => Layouts::NotRowMajor,
        }
    }

    fn indices(self) -> bool {
        self == Self::Canonical
    }
}

/// The module as HLO text.
#[must_use]
pub fn print(module: &Module, preset: Preset) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_module(&mut out, module, preset);
    out
}

/// One instruction as HLO text, without indentation and without a leading `ROOT`.
#[must_use]
pub fn print_instruction(
    module: &Module,
    computation: &Computation,
    instruction: &Instruction,
    preset: Preset,
) -> String {
    let mut out = String::new();
    let _ = write_instruction(&mut out, module, computation, instruction, preset);
    out
}

/// A shape as HLO text, with its layout.
#[must_use]
pub fn print_shape(shape: &Shape) -> String {
    ShapeText { shape: &shape.0, layouts: Layouts::All, indices: false }.to_string()
}

fn write_module(out: &mut String, module: &Module, preset: Preset) -> fmt::Result {
    header::write(out, module, preset)?;
    let schedule = Schedule::of(module);
    for (id, computation) in module.computations() {
        out.write_str("\n")?;
        if id == module.entry() {
            out.write_str("ENTRY ")?;
        }
        write_computation(out, module, computation, &schedule, preset)?;
    }
    Ok(())
}

fn write_computation(
    out: &mut String,
    module: &Module,
    computation: &Computation,
    schedule: &Schedule,
    preset: Preset,
) -> fmt::Result {
    write!(out, "%{} (", Name(&computation.name))?;
    for (n, id) in computation.parameters().into_iter().enumerate() {
        if let Some(parameter) = computation.get(id) {
            let shape = ShapeText { shape: &parameter.shape.0, layouts: Layouts::None, indices: false };
            write!(out, "{}{}: {shape}", if n > 0 { ", " } else { "" }, Name(&parameter.name))?;
        }
    }
    out.write_str(") -> ")?;
    match computation.root_instruction() {
        Some(root) => {
            write!(out, "{}", ShapeText { shape: &root.shape.0, layouts: Layouts::None, indices: preset.indices() })?;
        }
        None => out.write_str("?")?,
    }
    out.write_str(" {\n")?;
    for id in schedule.order(computation) {
        let Some(instruction) = computation.get(id) else { continue };
        out.write_str(if id == computation.root() { "  ROOT " } else { "  " })?;
        write_instruction(out, module, computation, instruction, preset)?;
        out.write_str("\n")?;
    }
    out.write_str("}")?;
    let thread = &computation.header.execution_thread;
    if !thread.is_empty() && thread != "main" {
        write!(out, ", execution_thread={}", quote::Quoted(thread.as_bytes()))?;
    }
    out.write_str("\n")
}

fn write_instruction(
    out: &mut String,
    module: &Module,
    computation: &Computation,
    instruction: &Instruction,
    preset: Preset,
) -> fmt::Result {
    let shape = ShapeText { shape: &instruction.shape.0, layouts: preset.layouts(), indices: preset.indices() };
    write!(out, "%{} = {shape} {}(", Name(&instruction.name), instruction.opcode_name())?;
    match instruction.opcode {
        Opcode::Parameter => write!(out, "{}", instruction.attributes.parameter_number)?,
        Opcode::Constant => literal::write(out, instruction, preset)?,
        _ => write_operands(out, computation, &instruction.operands, preset)?,
    }
    out.write_str(")")?;
    attributes::write(out, module, computation, instruction, preset)
}

fn write_operands(
    out: &mut String,
    computation: &Computation,
    operands: &[InstructionId],
    preset: Preset,
) -> fmt::Result {
    let operands = operands.iter().map(|&o| computation.get(o).map_or("?", |i| &i.name));
    write!(out, "{}", Separated::new(operands.map(|o| format!("%{}", Name(o))), preset.indices()))
}
