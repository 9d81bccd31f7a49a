//! Calls replaced by what they call.

use std::collections::{HashMap, HashSet};

use super::EditError;
use crate::ir::{ComputationId, Instruction, InstructionId, Module, Opcode};

/// Most instructions that inlining may make of a module.
const LARGEST: usize = 1 << 21;

impl Module {
    /// Replaces every `call` by the instructions of its callee, in every computation; returns how many.
    ///
    /// Callees for which `keep` says yes stay calls. Computations that nothing calls any more are removed.
    ///
    /// # Errors
    ///
    /// Where an instruction to be cloned carries unknown fields, and where calls of calls would
    /// multiply the module beyond 2^21 instructions; nothing is changed in the latter case.
    pub fn inline_calls(&mut self, keep: impl Fn(&str) -> bool) -> Result<usize, EditError> {
        self.check_inlined_size(&keep)?;
        let mut inlined = 0;
        for caller in self.order.clone() {
            inlined += self.inline_calls_in(caller, &keep)?;
        }
        if inlined > 0 {
            self.remove_unreachable_computations();
        }
        Ok(inlined)
    }

    /// A chain of computations that each call the one before twice doubles at every link.
    fn check_inlined_size(&self, keep: &impl Fn(&str) -> bool) -> Result<(), EditError> {
        let mut sizes = vec![0usize; self.arena.len()];
        let mut total = 0usize;
        for (id, computation) in self.computations() {
            let size = |i: &Instruction| {
                let callee = i.called.first().filter(|_| i.opcode == Opcode::Call);
                let callee = callee.and_then(|&c| Some((c, self.computation(c)?))).filter(|(_, c)| !keep(&c.name));
                // Of a callee that comes later nothing has been inlined yet when its turn to be cloned comes.
                callee.map_or(1, |(c, callee)| sizes.get(c.index()).copied().unwrap_or(0).max(callee.order.len()))
            };
            let count = computation.instructions().fold(0usize, |n, (_, i)| n.saturating_add(size(i)));
            total = total.saturating_add(count);
            if total > LARGEST {
                return Err(EditError::TooLarge {
                    computation: computation.name.clone(),
                    count: total,
                    limit: LARGEST,
                });
            }
            if let Some(slot) = sizes.get_mut(id.index()) {
                *slot = count;
            }
        }
        Ok(())
    }

    fn inline_calls_in(&mut self, caller: ComputationId, keep: &impl Fn(&str) -> bool) -> Result<usize, EditError> {
        let Some(target) = self.computation(caller) else { return Ok(0) };
        let calls = |i: &Instruction| {
            let callee = i.called.first().and_then(|&c| self.computation(c));
            i.opcode == Opcode::Call && callee.is_some_and(|c| !keep(&c.name))
        };
        let to_inline: HashSet<_> = target.instructions().filter(|(_, i)| calls(i)).map(|(id, _)| id).collect();
        if to_inline.is_empty() {
            return Ok(0);
        }
        let old_order = target.order.clone();
        let mut order = Vec::with_capacity(old_order.len());
        let mut replaced: HashMap<InstructionId, InstructionId> = HashMap::new();
        for id in old_order {
            let resolve = |replaced: &HashMap<_, _>, list: &mut Vec<InstructionId>| {
                for x in list {
                    *x = replaced.get(x).copied().unwrap_or(*x);
                }
            };
            if let Some(instruction) = self.computation_mut(caller).and_then(|c| c.get_mut(id)) {
                resolve(&replaced, &mut instruction.operands);
                resolve(&replaced, &mut instruction.control_predecessors);
            }
            if !to_inline.contains(&id) {
                order.push(id);
                continue;
            }
            let root = self.clone_callee(caller, id, &mut order)?;
            replaced.insert(id, root);
        }
        if let Some(target) = self.computation_mut(caller) {
            target.root = replaced.get(&target.root).copied().unwrap_or(target.root);
            target.order = order;
        }
        Ok(to_inline.len())
    }

    /// Clones the callee of `call` into `caller`, appending the clones to `order`; returns the clone of its root.
    fn clone_callee(
        &mut self,
        caller: ComputationId,
        call: InstructionId,
        order: &mut Vec<InstructionId>,
    ) -> Result<InstructionId, EditError> {
        let no_call = || EditError::NoSuch { what: "call", index: call.index() };
        let site = self.computation(caller).and_then(|c| c.get(call)).ok_or_else(no_call)?;
        let arguments = site.operands.clone();
        let prefix = site.op_name().to_owned();
        let site_control = site.control_predecessors.clone();
        let callee = site.called.first().and_then(|&c| self.computation(c)).ok_or_else(no_call)?;
        let root = callee.root();
        let bodies: Vec<_> = callee.instructions().map(|(id, i)| (id, i.clone())).collect();
        let mut clones: HashMap<InstructionId, InstructionId> = HashMap::with_capacity(bodies.len());
        for (id, mut clone) in bodies {
            if clone.opcode == Opcode::Parameter {
                let argument = clone.index().and_then(|n| arguments.get(n)).copied();
                let index = id.index();
                clones.insert(id, argument.ok_or(EditError::NoSuch { what: "call argument", index })?);
                continue;
            }
            if let Some(field) = clone.unknown_fields().next() {
                return Err(EditError::UnknownField { instruction: clone.to_string(), field });
            }
            for x in clone.operands.iter_mut().chain(&mut clone.control_predecessors) {
                *x = clones.get(x).copied().ok_or(EditError::NoSuch { what: "operand", index: x.index() })?;
            }
            clone.control_predecessors.extend(&site_control);
            let op_name = clone.op_name();
            if !prefix.is_empty() && !op_name.is_empty() && !op_name.starts_with(&prefix) {
                let op_name = format!("{prefix}/{op_name}");
                clone.attributes_mut().metadata.get_or_insert_default().op_name = op_name;
            }
            let made = self.push_instruction(caller, clone).ok_or_else(no_call)?;
            order.push(made);
            clones.insert(id, made);
        }
        clones.get(&root).copied().ok_or_else(no_call)
    }

    /// Removes computations that the entry does not reach; returns how many.
    pub fn remove_unreachable_computations(&mut self) -> usize {
        let mut reached = HashSet::new();
        let mut stack = vec![self.entry];
        while let Some(id) = stack.pop() {
            if reached.insert(id)
                && let Some(computation) = self.computation(id)
            {
                stack.extend(computation.instructions().flat_map(|(_, i)| i.called.iter().copied()));
            }
        }
        let before = self.order.len();
        self.order.retain(|id| reached.contains(id));
        before - self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use crate::build::Builder;
    use crate::edit::tests::nested;

    #[test]
    fn calls_are_inlined_and_their_computation_goes() {
        let mut module = nested();
        assert_eq!(module.inline_calls(|_| false).unwrap(), 2);
        assert_eq!(module.computations().count(), 1);
        let opcodes: Vec<_> = module.entry_computation().instructions().map(|(_, i)| i.opcode).collect();
        assert_eq!(opcodes, [Opcode::Parameter, Opcode::Add, Opcode::Add]);
        crate::verify::verify(&module).unwrap();
    }

    #[test]
    fn kept_callees_stay_calls() {
        let mut module = nested();
        assert_eq!(module.inline_calls(|name| name == "double").unwrap(), 0);
        assert_eq!(module.computations().count(), 2);
    }

    #[test]
    fn inlining_refuses_to_clone_fields_it_does_not_know() {
        let mut module = nested();
        let double = module.order()[0];
        let root = module.computation(double).unwrap().root();
        let field = buffa::UnknownField { number: 4000, data: buffa::UnknownFieldData::Varint(1) };
        let root = module.computation_mut(double).unwrap().get_mut(root).unwrap();
        root.attributes_mut().__buffa_unknown_fields.push(field);
        let error = module.inline_calls(|_| false).unwrap_err().to_string();
        assert!(error.contains("%add") && error.contains("field 4000"), "{error}");
    }

    #[test]
    fn calls_that_multiply_without_end_are_refused() {
        let mut module = nested();
        let mut callee = module.order()[0];
        for n in 0..60 {
            let id = module.add_computation(&format!("level.{n}"));
            let mut b = Builder::new(&mut module, id);
            let shape = Shape::array(crate::PrimitiveType::F32, &[3]);
            let mut x = b.parameter(&format!("level.{n}.x"), shape.clone()).unwrap();
            for _ in 0..2 {
                x = b.emit_with(Opcode::Call, &[x], shape.clone(), Default::default(), vec![callee]).unwrap();
            }
            b.set_root(x).unwrap();
            callee = id;
        }
        let before = module.clone();
        let error = module.inline_calls(|_| false).unwrap_err().to_string();
        assert!(error.contains("level.") && error.contains("more than 2097152"), "{error}");
        assert_eq!(module, before);
        assert!(module.inline_calls(|name| name.starts_with("level.")).is_ok());
    }
}
