//! The entry as a computation that another entry can call.

use super::EditError;
use crate::ir::{ComputationId, Instruction, Module, Shape};
use crate::proto::{HloInstructionProto, ProgramShapeProto};

impl Module {
    /// Makes the entry an ordinary computation called `name`, and puts an entry in its place that has parameters of
    /// `shapes`, under the names and with the metadata of the old ones, and no result yet.
    ///
    /// Returns the computation that was the entry. Nothing calls it, its instructions are as they were but for the names of
    /// its parameters, and so is the alias table, which may say what does not hold for the new entry.
    ///
    /// # Errors
    ///
    /// Where there is not one shape for each parameter; nothing is changed then.
    pub fn outline_entry(&mut self, name: &str, shapes: &[Shape]) -> Result<ComputationId, EditError> {
        let old = self.entry;
        let parameters = self.entry_computation().parameters();
        if parameters.len() != shapes.len() {
            return Err(EditError::NoSuch { what: "parameter", index: parameters.len().min(shapes.len()) });
        }
        let new = self.add_computation(name);
        // The new one comes last: it calls the old one.
        self.order.retain(|&c| c != new);
        self.order.push(new);
        let names = [old, new].map(|c| self.computation(c).map(|c| c.name.clone()).unwrap_or_default());
        let [entry_name, outlined_name] = names;
        if let Some(computation) = self.computation_mut(new) {
            computation.name = entry_name;
        }
        if let Some(computation) = self.computation_mut(old) {
            computation.name.clone_from(&outlined_name);
        }
        self.entry = new;

        let mut signature = ProgramShapeProto::default();
        for (id, shape) in parameters.into_iter().zip(shapes) {
            let Some(parameter) = self.computation(old).and_then(|c| c.get(id)) else { continue };
            let attributes = HloInstructionProto {
                metadata: parameter.attributes.metadata.clone(),
                parameter_number: parameter.attributes.parameter_number,
                ..Default::default()
            };
            let mut instruction = Instruction::new(parameter.name.clone(), parameter.opcode, shape.clone(), Vec::new());
            *instruction.attributes_mut() = attributes;
            signature.parameters.push(shape.to_proto());
            signature.parameter_names.push(instruction.name.clone());
            let (kept, inner) = (instruction.name.clone(), format!("{outlined_name}.{}", instruction.name));
            let inner = self.unique_name(&inner);
            if let Some(parameter) = self.computation_mut(old).and_then(|c| c.get_mut(id)) {
                parameter.name = inner;
            }
            if let Some(made) = self.push_instruction(new, instruction)
                && let Some(made) = self.computation_mut(new).and_then(|c| c.get_mut(made))
            {
                made.name = kept;
            }
        }
        self.header.host_program_shape = signature.clone().into();
        self.entry_computation_mut().header.program_shape = signature.into();
        Ok(old)
    }

    /// Takes every entry of the table of donated parameters away for which `keep` says no; those of the alias table stay.
    pub fn retain_donors(&mut self, keep: impl Fn(usize) -> bool) {
        let Some(table) = self.header.buffer_donor.as_option_mut() else { return };
        table.entries.retain(|entry| usize::try_from(entry.parameter_number).is_ok_and(&keep));
    }

    /// Takes every entry of the alias table away for which `keep` says no; it is given output and parameter.
    pub fn retain_aliases(&mut self, keep: impl Fn(usize, usize) -> bool) {
        let kept = self.aliases();
        let dropped: Vec<_> = kept.iter().filter(|a| !keep(a.output, a.parameter)).collect();
        let Some(table) = self.header.input_output_alias.as_option_mut() else { return };
        table.entries.retain(|entry| {
            let is = |n: usize, wire: i64| i64::try_from(n) == Ok(wire);
            !dropped.iter().any(|a| {
                is(a.parameter, entry.parameter_number)
                    && entry.output_shape_index.first().map_or(a.output == 0, |&output| is(a.output, output))
            })
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Builder;
    use crate::{AliasKind, Opcode, PrimitiveType};

    fn negated() -> Module {
        let mut module = Module::new("negated");
        let mut b = Builder::at_entry(&mut module);
        let x = b.parameter("x", Shape::array(PrimitiveType::F32, &[3])).unwrap();
        let y = b.parameter("y", Shape::array(PrimitiveType::F32, &[3])).unwrap();
        let minus = b.negate(x).unwrap();
        module.set_outputs(&[minus, y]).unwrap();
        module.alias(0, 0, AliasKind::May).unwrap();
        module.alias(1, 1, AliasKind::May).unwrap();
        module
    }

    #[test]
    fn an_outlined_entry_can_be_called_by_its_successor() {
        let mut module = negated();
        let root = module.entry_computation().root_instruction().unwrap().shape.clone();
        let shape = Shape::array(PrimitiveType::F32, &[3]);
        let old = module.outline_entry("step", &[shape.clone(), shape]).unwrap();
        let parameters = module.entry_computation().parameters();
        let mut b = Builder::at_entry(&mut module);
        let call = b.emit_with(Opcode::Call, &parameters, root, Default::default(), vec![old]).unwrap();
        b.set_root(call).unwrap();
        crate::verify::verify(&module).unwrap();
        let names = |module: &Module, c| {
            let c = module.computation(c).unwrap();
            let parameters: Vec<_> = c.parameters().into_iter().map(|p| c.get(p).unwrap().name.clone()).collect();
            (c.name.clone(), parameters)
        };
        assert_eq!(names(&module, module.entry()), ("main".to_owned(), vec!["x".to_owned(), "y".to_owned()]));
        assert_eq!(names(&module, old), ("step".to_owned(), vec!["step.x".to_owned(), "step.y".to_owned()]));
        assert_eq!(Module::import(&module.export()).unwrap().export(), module.export());
    }

    #[test]
    fn an_entry_is_outlined_with_a_shape_for_each_parameter_or_not_at_all() {
        let mut module = negated();
        let before = module.clone();
        let error = module.outline_entry("step", &[]).unwrap_err().to_string();
        assert!(error.contains("parameter 0"), "{error}");
        assert_eq!(module, before);
    }

    #[test]
    fn aliases_go_one_by_one() {
        let mut module = negated();
        module.retain_aliases(|output, _| output != 0);
        let left: Vec<_> = module.aliases().iter().map(|a| (a.output, a.parameter)).collect();
        assert_eq!(left, [(1, 1)]);
    }
}
