//! Emitting instructions with inferred shapes.
//!
//! A [`Builder`] appends to one computation. Every call returns the value it
//! made or an error that names opcode and operand shapes, at the spot. Appended
//! instructions come last in the order; when earlier instructions are made to
//! use them, [`Module::sort`](crate::Module::sort) restores a valid order.

use std::sync::Arc;

use thiserror::Error;

use crate::infer::{InferError, infer};
use crate::ir::{Computation, ComputationId, Instruction, InstructionId, Module, Opcode, Shape, no_attributes};
use crate::proto::{HloInstructionProto, OpMetadata, PrimitiveType, ProgramShapeProto};

mod ops;

pub use ops::ComparisonDirection;

/// Why an instruction was not built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The operands do not go together.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// An operand or computation id that is not of this module.
    #[error("{what} {index} is not part of computation {computation:?}")]
    NoSuch {
        /// `instruction` or `computation`.
        what: &'static str,
        /// Its arena index.
        index: usize,
        /// The computation that was to hold it.
        computation: String,
    },
    /// The shape of this operation does not follow from its operands; state it.
    #[error("the shape of {opcode} cannot be inferred here")]
    NotInferable {
        /// The operation.
        opcode: Opcode,
    },
    /// A constant of this element type cannot be made from a number.
    #[error("a constant of element type {element_type} cannot be made here; use f32 and convert")]
    Constant {
        /// The element type asked for.
        element_type: PrimitiveType,
    },
}

/// The value of every builder call.
pub type Built = Result<InstructionId, BuildError>;

/// Appends instructions to one computation.
#[derive(Debug)]
pub struct Builder<'m> {
    module: &'m mut Module,
    computation: ComputationId,
    scope: String,
    /// The attributes of instructions that have no others than their `op_name`: those of one scope share them.
    plain: Arc<HloInstructionProto>,
    next_name: Option<String>,
}

impl<'m> Builder<'m> {
    /// A builder at the end of `computation`.
    pub fn new(module: &'m mut Module, computation: ComputationId) -> Self {
        Self { module, computation, scope: String::new(), plain: no_attributes(), next_name: None }
    }

    /// A builder at the end of the entry computation.
    pub fn at_entry(module: &'m mut Module) -> Self {
        let entry = module.entry();
        Self::new(module, entry)
    }

    /// The module being built.
    #[must_use]
    pub fn module(&self) -> &Module {
        self.module
    }

    /// The module being built, for edits between two emissions.
    pub fn module_mut(&mut self) -> &mut Module {
        self.module
    }

    /// Names what follows: instructions are called `scope.opcode`, and carry `op_name` as metadata.
    pub fn set_scope(&mut self, scope: &str, op_name: &str) {
        self.scope = sanitize(scope);
        self.plain = match op_name {
            "" => no_attributes(),
            _ => {
                let metadata = OpMetadata { op_name: op_name.to_owned(), ..Default::default() };
                Arc::new(HloInstructionProto { metadata: metadata.into(), ..Default::default() })
            }
        };
    }

    /// Names the next instruction, instead of `scope.opcode`.
    pub fn named(&mut self, name: &str) -> &mut Self {
        self.next_name = Some(sanitize(name));
        self
    }

    /// The shape of a value.
    ///
    /// # Errors
    ///
    /// Where the id is not of this computation.
    pub fn shape(&self, x: InstructionId) -> Result<Shape, BuildError> {
        Ok(self.instruction(x)?.shape.clone())
    }

    fn target(&self) -> Result<&Computation, BuildError> {
        self.module.computation(self.computation).ok_or_else(|| BuildError::NoSuch {
            what: "computation",
            index: self.computation.index(),
            computation: self.module.name().to_owned(),
        })
    }

    fn instruction(&self, x: InstructionId) -> Result<&Instruction, BuildError> {
        let target = self.target()?;
        target.get(x).ok_or_else(|| BuildError::NoSuch {
            what: "instruction",
            index: x.index(),
            computation: target.name.clone(),
        })
    }

    /// Any operation whose shape follows from its operands.
    ///
    /// # Errors
    ///
    /// Where it does not follow, or no shape fits.
    pub fn emit(&mut self, opcode: Opcode, operands: &[InstructionId]) -> Built {
        self.emit_plain(opcode, operands, Shape::default())
    }

    /// Any operation without attributes, with a stated shape.
    fn emit_plain(&mut self, opcode: Opcode, operands: &[InstructionId], stated: Shape) -> Built {
        self.push(opcode, operands, stated, Arc::clone(&self.plain), Vec::new())
    }

    /// Any operation, with a stated shape, attributes and called computations.
    ///
    /// The stated shape counts where the operands do not determine one.
    ///
    /// # Errors
    ///
    /// Where no shape fits, or none follows and none is stated.
    pub fn emit_with(
        &mut self,
        opcode: Opcode,
        operands: &[InstructionId],
        stated: Shape,
        mut attributes: HloInstructionProto,
        called: Vec<ComputationId>,
    ) -> Built {
        if self.plain.metadata.is_set() {
            attributes.metadata = self.plain.metadata.clone();
        }
        self.push(opcode, operands, stated, Arc::new(attributes), called)
    }

    fn push(
        &mut self,
        opcode: Opcode,
        operands: &[InstructionId],
        stated: Shape,
        attributes: Arc<HloInstructionProto>,
        called: Vec<ComputationId>,
    ) -> Built {
        let shapes = operands.iter().map(|&x| self.shape(x)).collect::<Result<Vec<_>, _>>()?;
        let shape = match infer(opcode, &shapes, &attributes, &stated)? {
            Some(shape) => shape,
            None if stated != Shape::default() => stated,
            None => return Err(BuildError::NotInferable { opcode }),
        };
        let name = match self.next_name.take() {
            Some(name) => name,
            None if self.scope.is_empty() => opcode.name().to_owned(),
            None => format!("{}.{}", self.scope, opcode.name()),
        };
        let mut instruction = Instruction::new(name, opcode, shape, operands.to_vec());
        instruction.attributes = attributes;
        instruction.called = called;
        let computation = self.computation;
        self.module.push_instruction(computation, instruction).ok_or_else(|| BuildError::NoSuch {
            what: "computation",
            index: computation.index(),
            computation: self.module.name().to_owned(),
        })
    }

    /// The computation's next parameter.
    ///
    /// In the entry computation, signature and host signature gain it too.
    ///
    /// # Errors
    ///
    /// Where the computation does not exist.
    pub fn parameter(&mut self, name: &str, shape: Shape) -> Built {
        let number = self.target()?.parameters().len();
        let attributes = HloInstructionProto { parameter_number: number as i64, ..Default::default() };
        let id = self.named(name).emit_with(Opcode::Parameter, &[], shape.clone(), attributes, Vec::new())?;
        let unique = self.instruction(id)?.name.clone();
        let append = |signature: &mut ProgramShapeProto| {
            signature.parameters.push(shape.to_proto());
            signature.parameter_names.push(unique.clone());
        };
        if self.computation == self.module.entry() {
            append(self.module.header.host_program_shape.get_or_insert_default());
        }
        if let Some(target) = self.module.computation_mut(self.computation) {
            append(target.header.program_shape.get_or_insert_default());
        }
        Ok(id)
    }

    /// Makes `root` the computation's result.
    ///
    /// # Errors
    ///
    /// Where the id is not of this computation.
    pub fn set_root(&mut self, root: InstructionId) -> Result<(), BuildError> {
        let shape = self.shape(root)?;
        if self.computation == self.module.entry() {
            self.module.header.host_program_shape.get_or_insert_default().result = shape.to_proto().into();
        }
        if let Some(target) = self.module.computation_mut(self.computation) {
            target.root = root;
            target.header.program_shape.get_or_insert_default().result = shape.to_proto().into();
        }
        Ok(())
    }
}

/// A tree path as an HLO name: brackets and quotes become dots.
///
/// `params['h0']['qkv']` turns into `params.h0.qkv`. HLO names hold letters, digits, `_`, `.` and `-`.
#[must_use]
pub fn sanitize(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
            out.push(c);
        } else if !out.is_empty() && !out.ends_with('.') {
            out.push('.');
        }
    }
    while out.ends_with('.') {
        out.pop();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_paths_become_names() {
        assert_eq!(sanitize("params['h0']['qkv']"), "params.h0.qkv");
        assert_eq!(sanitize("state[0].mu['w/~/b']"), "state.0.mu.w.b");
        assert_eq!(sanitize("[0]"), "0");
    }

    #[test]
    fn a_builder_call_names_what_does_not_fit() {
        let mut module = Module::new("m");
        let mut b = Builder::at_entry(&mut module);
        let x = b.parameter("x", Shape::array(PrimitiveType::F32, &[2])).unwrap();
        let y = b.parameter("y", Shape::array(PrimitiveType::F32, &[3])).unwrap();
        assert!(b.add(x, y).unwrap_err().to_string().contains("add of (f32[2], f32[3])"));
        assert!(b.emit(Opcode::Sort, &[x]).unwrap_err().to_string().contains("cannot be inferred"));
        assert!(b.add(x, InstructionId(99)).unwrap_err().to_string().contains("instruction 99 is not part"));
        assert!(b.constant(PrimitiveType::C64, 1.0).is_err());
    }
}
