//! Edits that keep everything that must agree in step.
//!
//! An entry that gains an output changes its root tuple, the root's shape, the
//! computation's signature and the module's host signature; a replaced value
//! changes every user, the root and control predecessors. Each edit here does all of it, or refuses.

use std::collections::{HashMap, HashSet};

use thiserror::Error;

use crate::build::{BuildError, Builder};
use crate::ir::{AliasKind, ComputationId, Instruction, InstructionId, Module, Opcode, Shape};
use crate::proto::hlo_input_output_alias_proto::AliasEntryProto;
use crate::proto::{HloInstructionProto, OpSharding, ProgramShapeProto};

mod dead;
mod enter;
mod inline;
mod outline;
mod specialize;
mod unpack;

pub use enter::Outside;

/// Why an edit was refused.
#[derive(Debug, Error)]
pub enum EditError {
    /// An instruction could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// An id that is not of this module.
    #[error("{what} {index} does not exist")]
    NoSuch {
        /// What kind of thing.
        what: &'static str,
        /// Its index.
        index: usize,
    },
    /// A replacement of another element type or other dimensions.
    #[error("{old} is {old_shape}, and cannot be replaced by {new}, which is {new_shape}")]
    ReplacementShape {
        /// The instruction to be replaced.
        old: String,
        /// Its shape.
        old_shape: String,
        /// The replacement.
        new: String,
        /// Its shape.
        new_shape: String,
    },
    /// An instruction to be cloned carries fields that this crate does not know.
    #[error(
        "{instruction} cannot be cloned: it carries field {field} of HloInstructionProto, which this version does \
         not know; a newer entropic may, or export with an older JAX"
    )]
    UnknownField {
        /// The instruction.
        instruction: String,
        /// The wire number of the first unknown field.
        field: u32,
    },
    /// An entry output must be an array.
    #[error("{instruction} is {shape}; only arrays can become outputs, take an element of it first")]
    OutputNotArray {
        /// The instruction.
        instruction: String,
        /// Its shape.
        shape: String,
    },
    /// A computation that should take one tuple takes something else.
    #[error("{computation:?} has {count} parameters; one that is a tuple was expected")]
    NotOneTuple {
        /// The computation.
        computation: String,
        /// How many parameters it has.
        count: usize,
    },
    /// Parameter or output is aliased or donated already.
    #[error("{what} {index} is aliased already")]
    AlreadyAliased {
        /// `parameter` or `output`.
        what: &'static str,
        /// Its number.
        index: usize,
    },
    /// Inlining would multiply the module beyond what is reasonable.
    #[error(
        "inlining calls would make {count} instructions of the module by computation {computation:?}, more than \
         {limit}; keep some calls"
    )]
    TooLarge {
        /// The computation at which there were too many.
        computation: String,
        /// How many instructions there would be up to and with it.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The operands of a computation form a cycle.
    #[error("the instructions of {computation:?} form a cycle through {instruction}")]
    Cycle {
        /// The computation.
        computation: String,
        /// An instruction on the cycle.
        instruction: String,
    },
}

impl Module {
    /// Appends an entry parameter; returns its value and its parameter number.
    ///
    /// # Errors
    ///
    /// Never for an array shape.
    pub fn append_parameter(&mut self, name: &str, shape: Shape) -> Result<(InstructionId, usize), EditError> {
        let number = self.entry_computation().parameters().len();
        let id = Builder::at_entry(self).parameter(name, shape)?;
        Ok((id, number))
    }

    /// Appends an array as an entry output; returns its index among the outputs.
    ///
    /// A root that is no tuple becomes the first element of one, and its alias entry follows.
    ///
    /// # Errors
    ///
    /// Where the value is no array of the entry computation.
    pub fn append_output(&mut self, value: InstructionId) -> Result<usize, EditError> {
        let entry = self.entry_computation();
        let instruction =
            entry.get(value).ok_or(EditError::NoSuch { what: "entry instruction", index: value.index() })?;
        if !instruction.shape.is_array() {
            return Err(EditError::OutputNotArray {
                instruction: instruction.to_string(),
                shape: instruction.shape.to_string(),
            });
        }
        let shape = instruction.shape.to_proto();
        let root_id = entry.root();
        if entry.root_instruction().is_some_and(|root| root.opcode != Opcode::Tuple) {
            self.wrap_root(root_id)?;
        }
        let entry = self.entry_computation_mut();
        let root_id = entry.root;
        let Some(root) = entry.get_mut(root_id) else {
            return Err(EditError::NoSuch { what: "entry root", index: root_id.index() });
        };
        root.operands.push(value);
        root.shape.proto_mut().tuple_shapes.push(shape.clone());
        let sharded = root.attributes.sharding.as_option().is_some_and(|s| !s.tuple_shardings.is_empty());
        if sharded && let Some(sharding) = root.attributes_mut().sharding.as_option_mut() {
            sharding.tuple_shardings.push(OpSharding::default());
        }
        let index = root.operands.len() - 1;
        let append = |signature: &mut ProgramShapeProto| {
            signature.result.get_or_insert_default().tuple_shapes.push(shape.clone());
        };
        append(entry.header.program_shape.get_or_insert_default());
        append(self.header.host_program_shape.get_or_insert_default());
        Ok(index)
    }

    /// Makes `values` the entry's outputs, in order, as a new root tuple.
    ///
    /// # Errors
    ///
    /// Where one is not of the entry computation.
    pub fn set_outputs(&mut self, values: &[InstructionId]) -> Result<(), EditError> {
        let mut b = Builder::at_entry(self);
        let root = b.named("outputs").emit(Opcode::Tuple, values)?;
        b.set_root(root)?;
        Ok(())
    }

    fn wrap_root(&mut self, root: InstructionId) -> Result<(), EditError> {
        let sharding = self.entry_computation().get(root).and_then(|r| r.attributes.sharding.clone().into_option());
        let attributes = HloInstructionProto {
            sharding: match sharding {
                Some(single) => OpSharding {
                    r#type: crate::proto::op_sharding::Type::TUPLE.into(),
                    tuple_shardings: vec![single],
                    ..Default::default()
                }
                .into(),
                None => Default::default(),
            },
            ..Default::default()
        };
        let mut b = Builder::at_entry(self);
        let tuple = b.named("outputs").emit_with(Opcode::Tuple, &[root], Shape::default(), attributes, Vec::new())?;
        b.set_root(tuple)?;
        if let Some(table) = self.header.input_output_alias.as_option_mut() {
            for entry in &mut table.entries {
                entry.output_shape_index.insert(0, 0);
            }
        }
        Ok(())
    }

    /// Lets output `output` reuse the buffer of parameter `parameter`, which is thereby donated.
    ///
    /// # Errors
    ///
    /// Where either is aliased or donated already.
    pub fn alias(&mut self, output: usize, parameter: usize, kind: AliasKind) -> Result<(), EditError> {
        if self.aliases().iter().any(|a| a.output == output) {
            return Err(EditError::AlreadyAliased { what: "output", index: output });
        }
        if self.aliases().iter().any(|a| a.parameter == parameter) || self.donors().contains(&parameter) {
            return Err(EditError::AlreadyAliased { what: "parameter", index: parameter });
        }
        self.header.input_output_alias.get_or_insert_default().entries.push(AliasEntryProto {
            output_shape_index: vec![output as i64],
            parameter_number: parameter as i64,
            kind: match kind {
                AliasKind::May => 1,
                AliasKind::Must => 2,
            },
            ..Default::default()
        });
        Ok(())
    }

    /// Makes every user of a key of `replacements` read the value instead, roots included, except users in `keep`.
    ///
    /// Replaced instructions stay; where nothing reads them they are dead. The order may
    /// be violated afterwards, see [`Module::sort`].
    ///
    /// # Errors
    ///
    /// Where a replacement has another element type or other dimensions; nothing is changed then.
    pub fn replace_uses(
        &mut self,
        computation: ComputationId,
        replacements: &HashMap<InstructionId, InstructionId>,
        keep: &HashSet<InstructionId>,
    ) -> Result<(), EditError> {
        let target = self
            .computation(computation)
            .ok_or(EditError::NoSuch { what: "computation", index: computation.index() })?;
        let mut pairs: Vec<_> = replacements.iter().collect();
        pairs.sort();
        for (&old, &new) in pairs {
            let found =
                |id: InstructionId| target.get(id).ok_or(EditError::NoSuch { what: "instruction", index: id.index() });
            let (old, new) = (found(old)?, found(new)?);
            if !old.shape.same_array(&new.shape) && old.shape != new.shape {
                return Err(EditError::ReplacementShape {
                    old: old.to_string(),
                    old_shape: old.shape.to_string(),
                    new: new.to_string(),
                    new_shape: new.shape.to_string(),
                });
            }
        }
        let Some(target) = self.computation_mut(computation) else { return Ok(()) };
        for (index, instruction) in target.arena.iter_mut().enumerate() {
            if u32::try_from(index).is_ok_and(|i| keep.contains(&InstructionId(i))) {
                continue;
            }
            for operand in &mut instruction.operands {
                if let Some(&new) = replacements.get(operand) {
                    *operand = new;
                }
            }
        }
        if let Some(&new) = replacements.get(&target.root) {
            target.root = new;
        }
        Ok(())
    }

    /// Restores an order in which operands come before users, changing it as little as possible.
    ///
    /// The root comes last.
    ///
    /// # Errors
    ///
    /// Where the operands form a cycle.
    pub fn sort(&mut self, computation: ComputationId) -> Result<(), EditError> {
        let Some(target) = self.computation_mut(computation) else {
            return Err(EditError::NoSuch { what: "computation", index: computation.index() });
        };
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; target.arena.len()];
        let mut order = Vec::with_capacity(target.order.len());
        let root = target.root;
        let mut stack = Vec::new();
        for &start in target.order.iter().filter(|&&id| id != root).chain([&root]) {
            stack.push((start, false));
            while let Some((id, leaving)) = stack.pop() {
                let Some(mark) = marks.get_mut(id.index()) else { continue };
                match (*mark, leaving) {
                    (Mark::Done, _) => {}
                    (Mark::Open, true) => {
                        *mark = Mark::Done;
                        order.push(id);
                    }
                    (Mark::Open, false) => {
                        let instruction = target.get(id).map(Instruction::to_string).unwrap_or_default();
                        return Err(EditError::Cycle { computation: target.name.clone(), instruction });
                    }
                    (Mark::New, _) => {
                        *mark = Mark::Open;
                        stack.push((id, true));
                        let Some(instruction) = target.get(id) else { continue };
                        let before = instruction.operands.iter().chain(&instruction.control_predecessors);
                        let open = before.clone().find(|o| marks.get(o.index()) == Some(&Mark::Open));
                        if let Some(open) = open {
                            let instruction = target.get(*open).map(Instruction::to_string).unwrap_or_default();
                            return Err(EditError::Cycle { computation: target.name.clone(), instruction });
                        }
                        let pending = before.rev().filter(|o| marks.get(o.index()) == Some(&Mark::New));
                        stack.extend(pending.map(|&o| (o, false)));
                    }
                }
            }
        }
        target.order = order;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrimitiveType::F32;

    /// `main(x) = double(double(x))`, `double(y) = y + y`.
    pub(super) fn nested() -> Module {
        let mut module = Module::new("nested");
        let double = module.add_computation("double");
        let mut b = Builder::new(&mut module, double);
        let y = b.parameter("y", Shape::array(F32, &[3])).unwrap();
        let sum = b.add(y, y).unwrap();
        b.set_root(sum).unwrap();
        let mut b = Builder::at_entry(&mut module);
        let x = b.parameter("x", Shape::array(F32, &[3])).unwrap();
        let shape = Shape::array(F32, &[3]);
        let call = |b: &mut Builder<'_>, x| {
            b.emit_with(Opcode::Call, &[x], shape.clone(), HloInstructionProto::default(), vec![double]).unwrap()
        };
        let once = call(&mut b, x);
        let twice = call(&mut b, once);
        b.set_root(twice).unwrap();
        module
    }

    #[test]
    fn a_root_that_is_no_tuple_becomes_the_first_output() {
        let mut module = nested();
        module.inline_calls(|_| false).unwrap();
        module
            .header
            .input_output_alias
            .get_or_insert_default()
            .entries
            .push(AliasEntryProto { kind: 1, ..Default::default() });
        let x = module.entry_computation().parameters()[0];
        assert_eq!(module.append_output(x).unwrap(), 1);
        assert_eq!(module.entry_computation().outputs().len(), 2);
        assert_eq!(module.aliases()[0].output, 0);
        crate::verify::verify(&module).unwrap();
    }

    #[test]
    fn sort_restores_an_order_after_a_late_replacement() {
        let mut module = nested();
        module.inline_calls(|_| false).unwrap();
        let entry = module.entry();
        let first = module.entry_computation().find("add.1").unwrap();
        let mut b = Builder::at_entry(&mut module);
        let late = b.negate(first).unwrap();
        module.replace_uses(entry, &HashMap::from([(first, late)]), &HashSet::from([late])).unwrap();
        assert!(crate::verify::verify(&module).is_err());
        module.sort(entry).unwrap();
        crate::verify::verify(&module).unwrap();
    }

    #[test]
    fn a_replacement_of_another_shape_is_refused_at_the_spot() {
        let mut module = nested();
        let entry = module.entry();
        let x = module.entry_computation().parameters()[0];
        let mut b = Builder::at_entry(&mut module);
        let zero = b.constant_f32(0.0).unwrap();
        let error = module.replace_uses(entry, &HashMap::from([(x, zero)]), &HashSet::new()).unwrap_err().to_string();
        assert!(error.contains("%x is f32[3]") && error.contains("f32[]"), "{error}");
    }

    #[test]
    fn cycles_are_named() {
        let mut module = nested();
        module.inline_calls(|_| false).unwrap();
        let entry = module.entry();
        let root = module.entry_computation().root();
        module.entry_computation_mut().get_mut(root).unwrap().operands[0] = root;
        assert!(module.sort(entry).unwrap_err().to_string().contains("cycle through"));
    }

    #[test]
    fn nothing_is_aliased_twice() {
        let mut module = nested();
        module.alias(0, 0, AliasKind::May).unwrap();
        assert!(module.alias(0, 1, AliasKind::May).unwrap_err().to_string().contains("output 0"));
        assert!(module.alias(1, 0, AliasKind::May).unwrap_err().to_string().contains("parameter 0"));
    }
}
