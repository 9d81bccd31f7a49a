//! Instructions that nothing needs.

use super::EditError;
use crate::ir::{Computation, ComputationId, Instruction, Module, Opcode};
use crate::proto::PrimitiveType;

impl Module {
    /// Removes the instructions of a computation whose value nothing reads; returns how many.
    ///
    /// Kept are the root, parameters, whatever has an effect besides its value (custom calls that say so,
    /// transfers, collectives that other devices wait for, tokens, random state, opcodes that are not known
    /// here, and callers of such), and all that these read or wait for: a control predecessor counts as read.
    ///
    /// # Errors
    ///
    /// Where the computation does not exist.
    pub fn remove_dead_instructions(&mut self, computation: ComputationId) -> Result<usize, EditError> {
        let missing = || EditError::NoSuch { what: "computation", index: computation.index() };
        let effects = self.computations_with_effects();
        let target = self.computation(computation).ok_or_else(missing)?;
        let mut live = vec![false; target.arena_len()];
        let needed = |i: &Instruction| {
            i.opcode == Opcode::Parameter
                || i.has_effect()
                || i.called.iter().any(|c| effects.get(c.index()) == Some(&true))
        };
        let mut pending: Vec<_> = target.instructions().filter(|(_, i)| needed(i)).map(|(id, _)| id).collect();
        pending.push(target.root());
        while let Some(id) = pending.pop() {
            match live.get_mut(id.index()) {
                Some(mark) if !*mark => *mark = true,
                _ => continue,
            }
            if let Some(instruction) = target.get(id) {
                pending.extend(instruction.operands.iter().chain(&instruction.control_predecessors));
            }
        }
        let target = self.computation_mut(computation).ok_or_else(missing)?;
        let before = target.order.len();
        target.order.retain(|id| live.get(id.index()) == Some(&true));
        Ok(before - target.order.len())
    }

    /// For every computation, by index, whether running it has an effect besides its value.
    fn computations_with_effects(&self) -> Vec<bool> {
        let mut effects = vec![false; self.arena.len()];
        // Callees come before callers, so that one run over a valid module is enough; in any other module
        // whatever a later computation does counts as an effect.
        let mut known = vec![false; self.arena.len()];
        for (id, computation) in self.computations() {
            let called = |i: &Instruction| {
                i.called.iter().any(|c| known.get(c.index()) != Some(&true) || effects.get(c.index()) == Some(&true))
            };
            let any = Computation::instructions(computation).any(|(_, i)| i.has_effect() || called(i));
            if let (Some(effect), Some(known)) = (effects.get_mut(id.index()), known.get_mut(id.index())) {
                *effect = any;
                *known = true;
            }
        }
        effects
    }
}

impl Instruction {
    /// Whether it does more than make its value, its callees aside: custom calls that say so, transfers, collectives
    /// that other devices wait for, tokens, random state, opcodes that are not known here.
    #[must_use]
    pub fn has_effect(&self) -> bool {
        use Opcode as O;
        let attributes = &self.attributes;
        let token = || self.shape.leaves().any(|s| s.element_type() == PrimitiveType::TOKEN);
        match self.opcode {
            O::Infeed
            | O::Outfeed
            | O::Send
            | O::SendDone
            | O::Recv
            | O::RecvDone
            | O::Rng
            | O::RngGetAndUpdateState
            | O::Domain
            | O::Unrecognized => true,
            O::CustomCall => attributes.custom_call_has_side_effect || token(),
            _ if self.is_collective() => attributes.channel_id != 0 || attributes.constrain_layout,
            _ => token(),
        }
    }

    /// Whether devices exchange data in it.
    #[must_use]
    pub fn is_collective(&self) -> bool {
        use Opcode as O;
        matches!(
            self.opcode,
            O::AllReduce
                | O::AllReduceStart
                | O::AllReduceDone
                | O::AllGather
                | O::AllGatherStart
                | O::AllGatherDone
                | O::AllToAll
                | O::RaggedAllToAll
                | O::ReduceScatter
                | O::CollectiveBroadcast
                | O::CollectivePermute
                | O::CollectivePermuteStart
                | O::CollectivePermuteDone
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Builder;
    use crate::proto::HloInstructionProto;
    use crate::{InstructionId, PrimitiveType, Shape};

    #[test]
    fn only_what_nothing_needs_goes() {
        let mut module = Module::new("dead");
        let loud = module.add_computation("loud");
        let scalar = Shape::scalar(PrimitiveType::F32);
        let plain = HloInstructionProto::default;
        let effect = || HloInstructionProto { custom_call_has_side_effect: true, ..Default::default() };
        let mut b = Builder::new(&mut module, loud);
        let p = b.parameter("loud.p", scalar.clone()).unwrap();
        let call = |b: &mut Builder<'_>, name: &str, x: InstructionId, attributes| {
            b.named(name).emit_with(Opcode::CustomCall, &[x], scalar.clone(), attributes, vec![]).unwrap()
        };
        call(&mut b, "loud.effect", p, effect());
        b.set_root(p).unwrap();

        let mut b = Builder::at_entry(&mut module);
        let x = b.parameter("x", scalar.clone()).unwrap();
        b.parameter("unread", scalar.clone()).unwrap();
        let read = b.named("read").negate(x).unwrap();
        let waited_for = b.named("waited.for").negate(x).unwrap();
        let dead = b.named("dead").negate(x).unwrap();
        b.named("dead.too").add(dead, x).unwrap();
        call(&mut b, "quiet.call", dead, plain());
        let feeds = b.named("feeds").negate(x).unwrap();
        call(&mut b, "loud.call", feeds, effect());
        b.named("caller").emit_with(Opcode::Call, &[x], scalar.clone(), plain(), vec![loud]).unwrap();
        let channel = HloInstructionProto { channel_id: 1, ..Default::default() };
        b.named("reduced").emit_with(Opcode::AllReduce, &[x], scalar.clone(), channel, vec![loud]).unwrap();
        let token =
            Shape::from(crate::proto::ShapeProto { element_type: PrimitiveType::TOKEN.into(), ..Default::default() });
        b.named("token").emit_with(Opcode::AfterAll, &[], token, plain(), vec![]).unwrap();
        b.set_root(read).unwrap();
        let entry = module.entry();
        let computation = module.computation_mut(entry).unwrap();
        computation.get_mut(read).unwrap().control_predecessors.push(waited_for);

        assert_eq!(module.remove_dead_instructions(entry).unwrap(), 3);
        let left: Vec<_> = module.entry_computation().instructions().map(|(_, i)| i.name.as_str()).collect();
        let expected = ["x", "unread", "read", "waited.for", "feeds", "loud.call", "caller", "reduced", "token"];
        assert_eq!(left, expected);
        assert_eq!(module.remove_dead_instructions(entry).unwrap(), 0);
    }
}
