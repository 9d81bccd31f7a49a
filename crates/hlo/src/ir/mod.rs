//! The representation: module, computation, instruction.
//!
//! A **module** is a list of computations, one of which is the *entry*. Callees
//! come before their callers. A **computation** is a list of instructions in
//! which operands come before their users; one instruction is its *root*, the
//! value that the computation returns. The entry's parameters are the inputs of
//! the program, in the order of their parameter numbers; its root, usually a
//! tuple, holds the outputs. An **instruction** is an opcode applied to operands
//! of the same computation; it may *call* other computations (the reducer of a
//! `reduce`, the body of a `while`). An **alias** says that an output may reuse
//! the buffer of an input, which thereby is donated.
//!
//! Instructions live in an arena per computation and are named by an
//! [`InstructionId`]; the order of evaluation is a separate list, so that an id
//! stays valid whatever is inserted. The id of one computation means nothing in
//! another. What the types here do not model (windows, dot dimensions, literals,
//! shardings, and fields of newer releases) rides along in
//! [`Instruction::attributes`].

mod instruction;
mod literal;
mod metadata;
mod module;
mod names;
mod opcode;
pub(crate) mod shape;

pub(crate) use instruction::no_attributes;
pub use instruction::{Computation, ComputationId, Instruction, InstructionId};
pub(crate) use names::{Hashed, Names};

pub use module::{Alias, AliasKind, Module};
pub use opcode::{Arity, Opcode};
pub use shape::{Shape, ShapeLeaves};
