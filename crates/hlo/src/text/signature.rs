//! What an instruction does, apart from what it is called and what it works on.

use super::{Preset, attributes, literal};
use crate::ir::{Instruction, Opcode};

/// An instruction without names: equal for two that make the same of the same operands and callees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Signature {
    /// Opcode, attributes and literal, as text; without metadata.
    pub operation: String,
    /// The shape of the result, with its layout.
    pub shape: String,
}

/// The signature of an instruction.
///
/// It is made of text, so that two spellings of one default on the wire do not tell instructions apart.
#[must_use]
pub fn signature(instruction: &Instruction) -> Signature {
    let mut operation = instruction.opcode_name().to_owned();
    // Writing to a string does not fail.
    let _ = match instruction.opcode {
        Opcode::Parameter => {
            operation += &format!(" {}", instruction.attributes.parameter_number);
            Ok(())
        }
        Opcode::Constant => literal::write(&mut operation, instruction, Preset::Canonical),
        _ => Ok(()),
    };
    let _ = attributes::write_operation(&mut operation, instruction);
    Signature { operation, shape: super::print_shape(&instruction.shape) }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn names_and_metadata_are_no_part_of_it_and_attributes_are() {
        let module = parse(
            "HloModule m\nr { a = f32[] parameter(0) }\ns { b = f32[] parameter(0) }\nENTRY e {\n\
             x = f32[2]{0} parameter(0)\n\
             c = f32[] constant(1)\n\
             d = f32[] constant(2)\n\
             y = f32[2]{0} map(x), dimensions={0}, to_apply=r, metadata={op_name=\"n\"}\n\
             z = f32[2]{0} map(y), dimensions={0}, to_apply=s, control-predecessors={x}\n\
             v = f32[2]{0} copy(x), sharding={replicated}\n\
             ROOT w = f32[2]{0} copy(x)\n}",
        )
        .unwrap();
        let entry = module.entry_computation();
        let of = |name: &str| signature(entry.get(entry.find(name).unwrap()).unwrap());
        assert_eq!(of("y"), of("z"));
        assert_eq!(of("y").operation, "map, dimensions={0}");
        assert_ne!(of("c"), of("d"));
        assert_ne!(of("v"), of("w"));
        assert_eq!((of("x").operation.as_str(), of("x").shape.as_str()), ("parameter 0", "f32[2]{0}"));
    }
}
