//! A parameter of the entry fixed to a number, and what follows from it.

use std::collections::{HashMap, HashSet};

use super::EditError;
use crate::ir::{ComputationId, Instruction, InstructionId, Module, Opcode, Shape};
use crate::proto::{HloInstructionProto, PrimitiveType, ProgramShapeProto};

impl Module {
    /// Makes entry parameter `number`, an `s32[]`, the constant `value`, and removes it from the signature.
    ///
    /// Calls are inlined (but for callees for which `keep` says yes), a `conditional` whose index is constant becomes
    /// the branch that it takes, and a number that a `while` carries unchanged is constant in its body. What is dead
    /// then, is removed. The module computes what it computed where the parameter had that value.
    ///
    /// # Errors
    ///
    /// Where there is no such parameter, it is of another type, aliased or donated, and what inlining refuses.
    pub fn specialize_parameter(
        &mut self,
        number: usize,
        value: i32,
        keep: impl Fn(&str) -> bool,
    ) -> Result<(), EditError> {
        let missing = || EditError::NoSuch { what: "parameter", index: number };
        let parameter = *self.entry_computation().parameters().get(number).ok_or_else(missing)?;
        let instruction = self.entry_computation().get(parameter).ok_or_else(missing)?;
        let (constant, shape) = (number_constant(value), instruction.shape.clone());
        if !shape.same_array(&constant.shape) {
            return Err(EditError::ReplacementShape {
                old: instruction.to_string(),
                old_shape: shape.to_string(),
                new: value.to_string(),
                new_shape: constant.shape.to_string(),
            });
        }
        if self.aliases().iter().any(|a| a.parameter == number) || self.donors().contains(&number) {
            return Err(EditError::AlreadyAliased { what: "parameter", index: number });
        }
        let entry = self.entry;
        let replacement = self.push_first(entry, constant).ok_or_else(missing)?;
        self.replace_uses(entry, &HashMap::from([(parameter, replacement)]), &HashSet::new())?;
        self.remove_parameter(parameter, number);
        loop {
            self.inline_calls(&keep)?;
            let mut changed = false;
            for computation in self.order.clone() {
                self.forward_tuple_elements(computation)?;
                changed |= self.take_constant_branches(computation) > 0;
                changed |= self.enter_loops(computation)?;
            }
            if !changed {
                break;
            }
        }
        for computation in self.order.clone() {
            self.remove_dead_instructions(computation)?;
        }
        self.remove_unreachable_computations();
        Ok(())
    }

    /// Takes a parameter that nothing reads out of the entry and of everything that counts parameters.
    fn remove_parameter(&mut self, parameter: InstructionId, number: usize) {
        let wire = number as i64;
        let remove = |signature: &mut ProgramShapeProto| {
            if number < signature.parameters.len() {
                signature.parameters.remove(number);
            }
            if number < signature.parameter_names.len() {
                signature.parameter_names.remove(number);
            }
        };
        let shift = |n: &mut i64| *n -= i64::from(*n > wire);
        let entry = self.entry_computation_mut();
        entry.order.retain(|&id| id != parameter);
        for &id in &entry.order.clone() {
            if let Some(instruction) = entry.get_mut(id).filter(|i| i.opcode == Opcode::Parameter) {
                shift(&mut instruction.attributes_mut().parameter_number);
            }
        }
        if let Some(signature) = entry.header.program_shape.as_option_mut() {
            remove(signature);
        }
        if let Some(signature) = self.header.host_program_shape.as_option_mut() {
            remove(signature);
        }
        if let Some(table) = self.header.input_output_alias.as_option_mut() {
            table.entries.iter_mut().for_each(|e| shift(&mut e.parameter_number));
        }
        if let Some(table) = self.header.buffer_donor.as_option_mut() {
            table.entries.iter_mut().for_each(|e| shift(&mut e.parameter_number));
        }
        if number < self.header.spmd_parameters_shardings.len() {
            self.header.spmd_parameters_shardings.remove(number);
        }
    }

    /// Reads elements of a tuple that was just made from where they came.
    fn forward_tuple_elements(&mut self, computation: ComputationId) -> Result<(), EditError> {
        let Some(target) = self.computation(computation) else { return Ok(()) };
        let mut forwarded: HashMap<InstructionId, InstructionId> = HashMap::new();
        for (id, instruction) in target.instructions() {
            let Some(index) = instruction.index().filter(|_| instruction.opcode == Opcode::GetTupleElement) else {
                continue;
            };
            // A tuple may itself be an element of one.
            let tuple = instruction.operands.first().map(|t| forwarded.get(t).copied().unwrap_or(*t));
            let made = tuple.and_then(|t| target.get(t)).filter(|t| t.opcode == Opcode::Tuple);
            if let Some(&element) = made.and_then(|t| t.operands.get(index)) {
                forwarded.insert(id, forwarded.get(&element).copied().unwrap_or(element));
            }
        }
        let differs = |(old, new): (&InstructionId, &InstructionId)| {
            let shape = |id: &InstructionId| target.get(*id).map(|i| &i.shape);
            shape(old) != shape(new)
        };
        // An element that is read under another layout stays as it is.
        forwarded = forwarded.iter().filter(|&pair| !differs(pair)).map(|(&old, &new)| (old, new)).collect();
        self.replace_uses(computation, &forwarded, &HashSet::new())
    }

    /// Turns each `conditional` with a constant index into a call of its branch; returns how many.
    fn take_constant_branches(&mut self, computation: ComputationId) -> usize {
        let Some(target) = self.computation(computation) else { return 0 };
        let taken: Vec<_> = target
            .instructions()
            .filter(|(_, i)| i.opcode == Opcode::Conditional)
            .filter_map(|(id, i)| {
                let index = constant_number(target.get(*i.operands.first()?)?)?;
                // XLA takes the last branch for an index out of range; operand 0 is the index.
                let last = i.called.len().checked_sub(1)?;
                let branch = usize::try_from(index).map_or(last, |index| index.min(last));
                Some((id, *i.operands.get(branch + 1)?, *i.called.get(branch)?))
            })
            .collect();
        let Some(target) = self.computation_mut(computation) else { return 0 };
        for &(id, argument, branch) in &taken {
            if let Some(instruction) = target.get_mut(id) {
                instruction.opcode = Opcode::Call;
                instruction.operands = vec![argument];
                instruction.called = vec![branch];
            }
        }
        taken.len()
    }

    /// Makes numbers that a loop of `computation` starts with and never changes constants in its body and condition.
    fn enter_loops(&mut self, computation: ComputationId) -> Result<bool, EditError> {
        let Some(target) = self.computation(computation) else { return Ok(false) };
        let loops: Vec<_> = target
            .instructions()
            .filter(|(_, i)| i.opcode == Opcode::While)
            .filter_map(|(_, i)| Some((i.called.clone(), target.get(*i.operands.first()?)?)))
            .filter(|(_, start)| start.opcode == Opcode::Tuple)
            .map(|(called, start)| {
                let constants = start.operands.iter().enumerate();
                let constants = constants.filter_map(|(k, &o)| Some((k, constant_number(target.get(o)?)?)));
                (called, constants.collect::<Vec<_>>())
            })
            .collect();
        let mut changed = false;
        for (called, constants) in loops {
            // What other callers need as a parameter is none here.
            if called.iter().any(|&c| self.callers(c) != 1) {
                continue;
            }
            let Some(&body) = called.first() else { continue };
            for (element, value) in constants {
                if self.carries_unchanged(body, element) {
                    for &inside in &called {
                        changed |= self.fix_element(inside, element, value)?;
                    }
                }
            }
        }
        Ok(changed)
    }

    /// How many instructions call a computation.
    fn callers(&self, callee: ComputationId) -> usize {
        self.computations().flat_map(|(_, c)| c.instructions()).filter(|(_, i)| i.called.contains(&callee)).count()
    }

    /// Whether a loop's body returns element `element` of its argument as it got it.
    fn carries_unchanged(&self, body: ComputationId, element: usize) -> bool {
        let Some(body) = self.computation(body) else { return false };
        let outputs = body.root_instruction().filter(|r| r.opcode == Opcode::Tuple).map(|r| &r.operands);
        let output = outputs.and_then(|o| o.get(element)).and_then(|&o| body.get(o));
        output.is_some_and(|o| is_argument_element(body, o, element))
    }

    /// Reads element `element` of a computation's argument as a constant, but for the root; returns whether that changed something.
    fn fix_element(&mut self, computation: ComputationId, element: usize, value: i32) -> Result<bool, EditError> {
        let Some(target) = self.computation(computation) else { return Ok(false) };
        let root = target.root();
        let reads: HashSet<_> =
            target.instructions().filter(|(_, i)| is_argument_element(target, i, element)).map(|(id, _)| id).collect();
        let read = |(id, i): (InstructionId, &Instruction)| id != root && i.operands.iter().any(|o| reads.contains(o));
        if !target.instructions().any(read) {
            return Ok(false);
        }
        let Some(constant) = self.push_first(computation, number_constant(value)) else { return Ok(false) };
        let replacements = reads.iter().map(|&read| (read, constant)).collect();
        self.replace_uses(computation, &replacements, &HashSet::from([root]))?;
        Ok(true)
    }

    /// Puts an instruction without operands at the front of a computation.
    fn push_first(&mut self, computation: ComputationId, instruction: Instruction) -> Option<InstructionId> {
        let id = self.push_instruction(computation, instruction)?;
        let order = &mut self.computation_mut(computation)?.order;
        order.pop();
        order.insert(0, id);
        Some(id)
    }
}

fn is_argument_element(computation: &crate::Computation, instruction: &Instruction, element: usize) -> bool {
    let argument = instruction.operands.first().and_then(|&o| computation.get(o));
    instruction.opcode == Opcode::GetTupleElement
        && instruction.index() == Some(element)
        && argument.is_some_and(|a| a.opcode == Opcode::Parameter)
}

/// A constant `s32[]`.
fn number_constant(value: i32) -> Instruction {
    let shape = Shape::scalar(PrimitiveType::S32);
    let literal =
        crate::proto::LiteralProto { shape: shape.to_proto().into(), s32s: vec![value], ..Default::default() };
    let mut constant = Instruction::new("constant", Opcode::Constant, shape, Vec::new());
    *constant.attributes_mut() = HloInstructionProto { literal: literal.into(), ..Default::default() };
    constant
}

/// The value of a constant `s32[]`.
fn constant_number(instruction: &Instruction) -> Option<i32> {
    let scalar = instruction.shape.is_scalar() && instruction.shape.element_type() == PrimitiveType::S32;
    let literal = instruction.attributes.literal.as_option().filter(|_| instruction.opcode == Opcode::Constant)?;
    literal.s32s.first().copied().filter(|_| scalar)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AliasKind;
    use crate::build::Builder;
    use crate::proto::PrimitiveType::{F32, PRED, S32};

    fn scalar(element_type: PrimitiveType) -> Shape {
        Shape::scalar(element_type)
    }

    fn emit(
        b: &mut Builder<'_>,
        opcode: Opcode,
        operands: &[InstructionId],
        shape: Shape,
        called: &[ComputationId],
    ) -> InstructionId {
        b.emit_with(opcode, operands, shape, HloInstructionProto::default(), called.to_vec()).unwrap()
    }

    fn element(b: &mut Builder<'_>, tuple: InstructionId, index: i64, shape: Shape) -> InstructionId {
        let attributes = HloInstructionProto { tuple_index: index, ..Default::default() };
        b.emit_with(Opcode::GetTupleElement, &[tuple], shape, attributes, Vec::new()).unwrap()
    }

    /// Branches `x -> x + x`, `x -> x * x` and `x -> -x` over a tuple of one.
    fn branches(module: &mut Module) -> Vec<ComputationId> {
        ["add", "multiply", "negate"]
            .into_iter()
            .map(|name| {
                let branch = module.add_computation(name);
                let mut b = Builder::new(module, branch);
                let argument = b.parameter("argument", Shape::tuple(vec![scalar(F32)])).unwrap();
                let x = element(&mut b, argument, 0, scalar(F32));
                let y = match name {
                    "add" => b.add(x, x),
                    "multiply" => b.multiply(x, x),
                    _ => b.negate(x),
                };
                b.set_root(y.unwrap()).unwrap();
                branch
            })
            .collect()
    }

    fn choose(b: &mut Builder<'_>, index: InstructionId, x: InstructionId, to: &[ComputationId]) -> InstructionId {
        let tuple = b.emit(Opcode::Tuple, &[x]).unwrap();
        emit(b, Opcode::Conditional, &[index, tuple, tuple, tuple], scalar(F32), to)
    }

    /// `main(index, x) = f_index(x)`, x aliased to the output.
    fn flat() -> Module {
        let mut module = Module::new("flat");
        let branches = branches(&mut module);
        let mut b = Builder::at_entry(&mut module);
        let index = b.parameter("index", scalar(S32)).unwrap();
        let x = b.parameter("x", scalar(F32)).unwrap();
        let y = choose(&mut b, index, x, &branches);
        module.set_outputs(&[y]).unwrap();
        module.alias(0, 1, AliasKind::May).unwrap();
        crate::verify::verify(&module).unwrap();
        module
    }

    fn opcodes(module: &Module, computation: ComputationId) -> Vec<Opcode> {
        let computation = module.computation(computation).unwrap();
        computation.instructions().map(|(_, i)| i.opcode).collect()
    }

    #[test]
    fn the_branch_of_the_number_is_all_that_is_left() {
        use Opcode as O;
        // XLA takes the last branch for an index that is out of range.
        for (value, taken) in [(0, O::Add), (1, O::Multiply), (2, O::Negate), (3, O::Negate), (-1, O::Negate)] {
            let mut module = flat();
            module.specialize_parameter(0, value, |_| false).unwrap();
            crate::verify::verify(&module).unwrap();
            assert_eq!(opcodes(&module, module.entry()), [O::Parameter, taken, O::Tuple]);
            assert_eq!(module.computations().count(), 1);
            assert_eq!(module.aliases()[0].parameter, 0);
        }
    }

    #[test]
    fn a_number_that_a_loop_carries_is_constant_in_it() {
        let mut module = Module::new("loop");
        let branches = branches(&mut module);
        let state = Shape::tuple(vec![scalar(S32), scalar(F32)]);
        let condition = module.add_computation("condition");
        let mut b = Builder::new(&mut module, condition);
        let argument = b.parameter("argument", state.clone()).unwrap();
        let x = element(&mut b, argument, 1, scalar(F32));
        let finite = emit(&mut b, Opcode::IsFinite, &[x], scalar(PRED), &[]);
        b.set_root(finite).unwrap();
        let body = module.add_computation("body");
        let mut b = Builder::new(&mut module, body);
        let argument = b.parameter("argument", state.clone()).unwrap();
        let index = element(&mut b, argument, 0, scalar(S32));
        let x = element(&mut b, argument, 1, scalar(F32));
        let y = choose(&mut b, index, x, &branches);
        let root = b.emit(Opcode::Tuple, &[index, y]).unwrap();
        b.set_root(root).unwrap();
        let mut b = Builder::at_entry(&mut module);
        let index = b.parameter("index", scalar(S32)).unwrap();
        let x = b.parameter("x", scalar(F32)).unwrap();
        let start = b.emit(Opcode::Tuple, &[index, x]).unwrap();
        let end = emit(&mut b, Opcode::While, &[start], state, &[body, condition]);
        let y = element(&mut b, end, 1, scalar(F32));
        b.set_root(y).unwrap();
        crate::verify::verify(&module).unwrap();

        module.specialize_parameter(0, 1, |_| false).unwrap();
        crate::verify::verify(&module).unwrap();
        let left = opcodes(&module, body);
        assert!(left.contains(&Opcode::Multiply) && !left.contains(&Opcode::Conditional), "{left:?}");
        assert_eq!(module.computations().count(), 3);
        assert_eq!(module.entry_computation().parameters().len(), 1);
    }

    #[test]
    fn what_is_no_free_number_is_refused() {
        let refused = |module: &mut Module, number, part: &str| {
            let before = module.clone();
            let error = module.specialize_parameter(number, 0, |_| false).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert_eq!(*module, before);
        };
        refused(&mut flat(), 1, "%x is f32[]");
        refused(&mut flat(), 2, "parameter 2 does not exist");
        let mut module = flat();
        let index = module.entry_computation().parameters()[0];
        module.append_output(index).unwrap();
        module.alias(1, 0, AliasKind::May).unwrap();
        refused(&mut module, 0, "parameter 0 is aliased already");
    }
}
