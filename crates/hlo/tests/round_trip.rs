//! Import and export are lossless: every committed module, and every module with fields of a later release,
//! comes out byte for byte.

use buffa::{Message, UnknownField, UnknownFieldData, UnknownFields};
use hlo::Module;
use hlo::proto::{HloInstructionProto, HloModuleProto, HloProto, LiteralProto, ShapeProto};

#[cfg(test)]
mod common;

#[test]
fn every_module_passes_the_verifier_and_exports_byte_for_byte() {
    let files = common::modules();
    assert!(files.len() > 40, "only {} modules found", files.len());
    for (name, bytes) in files {
        let module = Module::import(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        hlo::verify::verify(&module).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(module.export() == bytes, "{name}: exported bytes differ");
        assert_eq!(module.to_proto().encode_to_vec(), bytes, "{name}: the wire message differs");
    }
}

#[test]
fn fields_of_a_later_release_survive_at_every_level() {
    for (name, bytes) in common::modules() {
        let mut proto = HloModuleProto::decode_from_slice(&bytes).unwrap();
        add_unknown(&mut proto.__buffa_unknown_fields);
        for computation in &mut proto.computations {
            add_unknown(&mut computation.__buffa_unknown_fields);
            computation.instructions.iter_mut().for_each(extend_instruction);
        }
        let extended = proto.encode_to_vec();
        assert!(extended.len() > bytes.len());
        let module = Module::import(&extended).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(module.export() == extended, "{name}: exported bytes differ");
        hlo::verify::verify(&module).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

fn extend_instruction(instruction: &mut HloInstructionProto) {
    add_unknown(&mut instruction.__buffa_unknown_fields);
    if let Some(shape) = instruction.shape.as_option_mut() {
        extend_shape(shape);
    }
    if let Some(literal) = instruction.literal.as_option_mut() {
        extend_literal(literal);
    }
    if let Some(numbers) = instruction.dot_dimension_numbers.as_option_mut() {
        add_unknown(&mut numbers.__buffa_unknown_fields);
    }
    if let Some(metadata) = instruction.metadata.as_option_mut() {
        add_unknown(&mut metadata.__buffa_unknown_fields);
    }
}

fn extend_shape(shape: &mut ShapeProto) {
    add_unknown(&mut shape.__buffa_unknown_fields);
    if let Some(layout) = shape.layout.as_option_mut() {
        add_unknown(&mut layout.__buffa_unknown_fields);
    }
    shape.tuple_shapes.iter_mut().for_each(extend_shape);
}

fn extend_literal(literal: &mut LiteralProto) {
    add_unknown(&mut literal.__buffa_unknown_fields);
    if let Some(shape) = literal.shape.as_option_mut() {
        extend_shape(shape);
    }
    literal.tuple_literals.iter_mut().for_each(extend_literal);
}

/// One field of each wire type, with numbers beyond those in use.
fn add_unknown(fields: &mut UnknownFields) {
    let data = [
        UnknownFieldData::Varint(u64::MAX),
        UnknownFieldData::Fixed32(7),
        UnknownFieldData::Fixed64(9),
        UnknownFieldData::LengthDelimited(b"later".to_vec()),
    ];
    for (number, data) in (4000..).zip(data) {
        fields.push(UnknownField { number, data });
    }
}

#[test]
fn the_wrapper_of_dumps_is_opened() {
    let (_, bytes) = common::module("mlp/module.hlo.pb");
    let module = Module::import(&bytes).unwrap();
    let wrapper = HloProto { hlo_module: module.to_proto().into(), ..Default::default() };
    let opened = Module::import(&wrapper.encode_to_vec()).unwrap();
    assert!(opened.export() == bytes, "exported bytes differ");
}
