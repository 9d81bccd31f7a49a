//! The first line of a module.

use super::super::tables::ALIAS_KINDS;
use super::computation::Parser;
use super::cursor::{Cursor, Result};
use super::{metadata, shape};
use crate::proto::hlo_buffer_donor_proto::BufferDonorEntryProto;
use crate::proto::hlo_input_output_alias_proto::AliasEntryProto;
use crate::proto::{HloBufferDonorProto, HloInputOutputAliasProto, HloModuleProto, ProgramShapeProto};

/// What the first line and the tables behind it say.
pub(super) struct Header {
    pub(super) proto: HloModuleProto,
    /// Whether the order of the lines is a schedule.
    pub(super) is_scheduled: bool,
}

impl<'a> Parser<'a> {
    /// `HloModule name, attribute=value`, then possibly tables of stack frames.
    pub(super) fn header(&mut self) -> Result<Header> {
        let c = &mut self.c;
        if !c.eat_word("HloModule") {
            return Err(c.expected("`HloModule`"));
        }
        let name = c.name("the module's name")?.to_owned();
        let mut header = Header { proto: HloModuleProto { name, ..Default::default() }, is_scheduled: false };
        let mut seen: Vec<&str> = Vec::new();
        while c.eat(",") {
            let at = *c;
            let key = c.word("an attribute of the module")?;
            if seen.contains(&key) {
                return Err(at.refused("the attribute is given twice"));
            }
            seen.push(key);
            c.expect("=")?;
            match key {
                "is_scheduled" => header.is_scheduled = c.boolean()?,
                "input_output_alias" => {
                    let entries = c.list("{", "}", alias)?;
                    header.proto.input_output_alias = HloInputOutputAliasProto { entries, ..Default::default() }.into();
                }
                "buffer_donor" => {
                    let entries = c.list("{", "}", donor)?;
                    header.proto.buffer_donor = HloBufferDonorProto { entries, ..Default::default() }.into();
                }
                "entry_computation_layout" => {
                    c.expect("{")?;
                    header.proto.host_program_shape = signature(c)?.into();
                    c.expect("}")?;
                }
                "frontend_attributes" => header.proto.frontend_attributes = metadata::frontend_attributes(c)?.into(),
                "replica_count" | "num_partitions" => {
                    if c.integer::<u32>()? != 1 {
                        return Err(at.refused(
                            "a module does not hold for how many devices it is compiled; take this out of the text, and \
                             say it when you compile",
                        ));
                    }
                }
                "allow_spmd_sharding_propagation_to_parameters" | "allow_spmd_sharding_propagation_to_output" => {
                    // Without partitions there is nothing to propagate.
                    c.list("{", "}", Cursor::boolean)?;
                }
                _ => return Err(at.refused("a module has no such attribute here")),
            }
        }
        header.proto.stack_frame_index = metadata::stack_frames(c)?;
        Ok(header)
    }
}

/// `{0}: (0, {}, may-alias)`
fn alias(c: &mut Cursor<'_>) -> Result<AliasEntryProto> {
    let output_shape_index = c.integers()?;
    c.expect(":")?;
    c.expect("(")?;
    let parameter_number = c.integer()?;
    c.expect(",")?;
    let parameter_shape_index = c.integers()?;
    let kind = if c.eat(",") { c.choice(&ALIAS_KINDS)? } else { 1 };
    c.expect(")")?;
    Ok(AliasEntryProto { output_shape_index, parameter_number, parameter_shape_index, kind, ..Default::default() })
}

/// `(1, {})`
fn donor(c: &mut Cursor<'_>) -> Result<BufferDonorEntryProto> {
    c.expect("(")?;
    let parameter_number = c.integer()?;
    c.expect(",")?;
    let parameter_shape_index = c.integers()?;
    c.expect(")")?;
    Ok(BufferDonorEntryProto { parameter_number, parameter_shape_index, ..Default::default() })
}

/// `(f32[2]{0})->f32[]`
fn signature(c: &mut Cursor<'_>) -> Result<ProgramShapeProto> {
    let parameters = c.list("(", ")", |c| Ok(shape::shape(c)?.to_proto()))?;
    c.expect("->")?;
    let result = shape::shape(c)?.to_proto().into();
    Ok(ProgramShapeProto { parameters, result, ..Default::default() })
}
