//! The one tuple that a computation takes as a parameter for each of its elements, for a while.
//!
//! A body of a `while` takes a tuple, and its elements cannot be told from parameters by whoever edits entries. Ids stay
//! what they are: what was the parameter is the tuple of all parameters until they are packed again, and what was a
//! parameter is an element of that one tuple then.

use super::EditError;
use crate::ir::{ComputationId, Instruction, InstructionId, Module, Opcode, Shape};
use crate::proto::{HloInstructionProto, ProgramShapeProto};

impl Module {
    /// Gives a computation that takes one tuple a parameter for each of its elements. What was the parameter is the tuple of
    /// them from then on; it is returned.
    ///
    /// # Errors
    ///
    /// Where the computation is the entry, or takes anything else; nothing is changed then.
    pub fn unpack_parameter(&mut self, computation: ComputationId) -> Result<InstructionId, EditError> {
        let tuple = self.only_parameter(computation)?;
        let missing = || EditError::NoSuch { what: "instruction", index: tuple.index() };
        let packed = self.computation(computation).and_then(|c| c.get(tuple)).ok_or_else(missing)?;
        let (name, elements): (_, Vec<Shape>) = (packed.name.clone(), packed.shape.tuple_elements().collect());
        let mut signature = ProgramShapeProto::default();
        let mut parameters = Vec::with_capacity(elements.len());
        for (number, shape) in elements.into_iter().enumerate() {
            let attributes = HloInstructionProto { parameter_number: number as i64, ..Default::default() };
            let mut parameter = Instruction::new(format!("{name}.{number}"), Opcode::Parameter, shape, Vec::new());
            *parameter.attributes_mut() = attributes;
            signature.parameters.push(parameter.shape.to_proto());
            let id = self.push_instruction(computation, parameter).ok_or_else(missing)?;
            let given = self.computation(computation).and_then(|c| c.get(id)).map(|i| i.name.clone());
            signature.parameter_names.push(given.unwrap_or_default());
            parameters.push(id);
        }
        let target = self.computation_mut(computation).ok_or_else(missing)?;
        target.order.retain(|id| *id != tuple && !parameters.contains(id));
        target.order.splice(0..0, parameters.iter().copied().chain([tuple]));
        let packed = target.get_mut(tuple).ok_or_else(missing)?;
        packed.opcode = Opcode::Tuple;
        packed.operands = parameters;
        let header = target.header.program_shape.get_or_insert_default();
        (header.parameters, header.parameter_names) = (signature.parameters, signature.parameter_names);
        Ok(tuple)
    }

    /// The way back: `tuple`, a tuple of the computation's parameters, is its one parameter again, with all those that there
    /// are now as elements. Parameters that nothing else read are gone.
    ///
    /// # Errors
    ///
    /// Where the computation is the entry, or `tuple` is none.
    pub fn pack_parameters(&mut self, computation: ComputationId, tuple: InstructionId) -> Result<(), EditError> {
        let missing = || EditError::NoSuch { what: "tuple of parameters", index: tuple.index() };
        let entry = self.entry;
        let target = self.computation_mut(computation).filter(|_| computation != entry).ok_or_else(missing)?;
        if target.get(tuple).is_none_or(|packed| packed.opcode != Opcode::Tuple) {
            return Err(missing());
        }
        let parameters = target.parameters();
        let shapes = parameters.iter().filter_map(|&id| Some(target.get(id)?.shape.clone()));
        let shape = Shape::tuple(shapes.collect());
        let packed = target.get_mut(tuple).ok_or_else(missing)?;
        packed.opcode = Opcode::Parameter;
        packed.operands.clear();
        packed.shape = shape.clone();
        let name = packed.name.clone();
        let users = target.users();
        let root = target.root;
        let read = |id: &InstructionId| *id == root || users.get(id.index()).is_some_and(|users| !users.is_empty());
        let (read, unread): (Vec<_>, Vec<_>) = parameters.into_iter().partition(read);
        // Parameters first, then what reads them; the others keep their places.
        target.order.retain(|id| *id != tuple && !unread.contains(id) && !read.contains(id));
        target.order.splice(0..0, std::iter::once(tuple).chain(read.iter().copied()));
        for id in read {
            let Some(element) = target.get_mut(id) else { continue };
            element.opcode = Opcode::GetTupleElement;
            element.operands = vec![tuple];
            let attributes = element.attributes_mut();
            attributes.tuple_index = std::mem::take(&mut attributes.parameter_number);
        }
        let header = target.header.program_shape.get_or_insert_default();
        (header.parameters, header.parameter_names) = (vec![shape.to_proto()], vec![name]);
        Ok(())
    }

    /// Appends elements to the tuple that a computation takes.
    ///
    /// # Errors
    ///
    /// As [`Module::unpack_parameter`].
    pub fn extend_parameter(&mut self, computation: ComputationId, more: &[Shape]) -> Result<(), EditError> {
        let tuple = self.only_parameter(computation)?;
        let Some(target) = self.computation_mut(computation) else { return Ok(()) };
        let Some(parameter) = target.get_mut(tuple) else { return Ok(()) };
        parameter.shape.proto_mut().tuple_shapes.extend(more.iter().map(Shape::to_proto));
        let shape = parameter.shape.to_proto();
        target.header.program_shape.get_or_insert_default().parameters = vec![shape];
        Ok(())
    }

    /// The parameter of a computation that takes one tuple and is not the entry.
    fn only_parameter(&self, computation: ComputationId) -> Result<InstructionId, EditError> {
        let missing = || EditError::NoSuch { what: "computation", index: computation.index() };
        let target = self.computation(computation).filter(|_| computation != self.entry).ok_or_else(missing)?;
        let parameters = target.parameters();
        match parameters.as_slice() {
            &[only] if target.get(only).is_some_and(|i| i.shape.is_tuple()) => Ok(only),
            _ => Err(EditError::NotOneTuple { computation: target.name.clone(), count: parameters.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrimitiveType::F32;
    use crate::build::Builder;
    use crate::verify::verify;

    /// `main(x) = (double((x, x)))`, `double((a, b)) = (a + b, b)`.
    fn packed() -> (Module, ComputationId) {
        let mut module = Module::new("packed");
        let element = Shape::array(F32, &[3]);
        let pair = Shape::tuple(vec![element.clone(), element.clone()]);
        let callee = module.add_computation("double");
        let mut b = Builder::new(&mut module, callee);
        let both = b.parameter("both", pair.clone()).unwrap();
        let first = b.get_tuple_element(both, 0).unwrap();
        let second = b.get_tuple_element(both, 1).unwrap();
        let sum = b.add(first, second).unwrap();
        let root = b.emit(Opcode::Tuple, &[sum, second]).unwrap();
        b.set_root(root).unwrap();
        let mut b = Builder::at_entry(&mut module);
        let x = b.parameter("x", element).unwrap();
        let tuple = b.emit(Opcode::Tuple, &[x, x]).unwrap();
        let call = b.emit_with(Opcode::Call, &[tuple], pair, Default::default(), vec![callee]).unwrap();
        let sum = b.get_tuple_element(call, 0).unwrap();
        b.set_root(sum).unwrap();
        verify(&module).unwrap();
        (module, callee)
    }

    #[test]
    fn a_tuple_that_is_unpacked_and_packed_again_is_as_it_was() {
        let (mut module, callee) = packed();
        let before = crate::text::print(&module, crate::text::Preset::Canonical);
        let tuple = module.unpack_parameter(callee).unwrap();
        let outside = module.enter(callee, &[]).unwrap();
        verify(&module).unwrap();
        assert_eq!(module.entry_computation().parameters().len(), 2);
        module.leave(outside);
        module.pack_parameters(callee, tuple).unwrap();
        verify(&module).unwrap();
        assert_eq!(crate::text::print(&module, crate::text::Preset::Canonical), before);
    }

    #[test]
    fn what_was_added_between_is_an_element_of_the_tuple() {
        let (mut module, callee) = packed();
        let tuple = module.unpack_parameter(callee).unwrap();
        let mut b = Builder::new(&mut module, callee);
        let more = b.parameter("more", Shape::array(F32, &[5])).unwrap();
        b.negate(more).unwrap();
        module.pack_parameters(callee, tuple).unwrap();
        let double = module.computation(callee).unwrap();
        let shape = &double.get(double.parameters()[0]).unwrap().shape;
        assert_eq!(shape.tuple_elements().nth(2), Some(Shape::array(F32, &[5])));
        let more = double.get(more).unwrap();
        assert_eq!((more.opcode, more.index()), (Opcode::GetTupleElement, Some(2)));
    }

    #[test]
    fn what_takes_no_tuple_is_left_alone() {
        let (mut module, callee) = packed();
        let entry = module.entry();
        assert!(module.unpack_parameter(entry).is_err());
        module.unpack_parameter(callee).unwrap();
        let error = module.unpack_parameter(callee).unwrap_err().to_string();
        assert!(error.contains("double") && error.contains("2 parameters"), "{error}");
    }
}
