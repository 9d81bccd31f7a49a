//! `HloModuleProto` bytes to [`Module`].
//!
//! Import refuses what the representation cannot hold (dangling ids, two
//! instructions of one id, no entry). It does not judge: order, shapes and
//! names are the verifier's matter.

use std::collections::HashMap;

use buffa::{DecodeOptions, MessageField};
use thiserror::Error;

use crate::ir::{Computation, ComputationId, Instruction, InstructionId, Module, Opcode, Shape};
use crate::proto::{HloComputationProto, HloInstructionProto, HloModuleProto, HloProto};

/// Why bytes are not a module.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The bytes are text, not a binary proto.
    #[error(
        "this is text, not a serialized HloModuleProto (it starts with {start:?}); export with \
         `lowered.compiler_ir('hlo').as_serialized_hlo_module_proto()`"
    )]
    Text {
        /// The first characters.
        start: String,
    },
    /// There are no bytes.
    #[error("the file is empty; a serialized HloModuleProto is expected")]
    Empty,
    /// The bytes are not protobuf, or stop in the middle of a field.
    #[error("not a serialized HloModuleProto ({size} bytes): {source}; the file is truncated or of another format")]
    Decode {
        /// Number of bytes given.
        size: usize,
        /// What the decoder says.
        source: buffa::DecodeError,
    },
    /// The bytes are protobuf, but hold no computation.
    #[error("the module {module:?} has no computations; this is protobuf of another kind, or an empty module")]
    NoComputations {
        /// Name of the module as far as it could be read.
        module: String,
    },
    /// Two computations or two instructions of a computation carry the same id.
    #[error("{what} {name:?} has the id {id}, which is taken by another one; the module is damaged")]
    DuplicateId {
        /// `computation` or `instruction`.
        what: &'static str,
        /// Its name.
        name: String,
        /// The id.
        id: i64,
    },
    /// An id that nothing has.
    #[error("{user:?} refers to {what} {id}, which does not exist; the module is damaged")]
    Dangling {
        /// The instruction, computation or module that refers.
        user: String,
        /// What it refers to.
        what: &'static str,
        /// The id.
        id: i64,
    },
    /// More of something than an index can count.
    #[error("the module has {count} {what}, more than this crate can hold")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How much of it.
        count: usize,
    },
}

/// Instructions keep 32-bit ids; this also bounds what a hostile file can ask for.
const MAX_ITEMS: usize = 1 << 28;

/// Bytes of decoded messages that one byte of input may cost: an honest module needs about 40, a hostile
/// one of empty messages 1000.
const MEMORY_FACTOR: usize = 256;

/// Nesting of messages (tuple shapes, tuple literals) beyond which a file is refused.
const RECURSION_LIMIT: u32 = 100;

impl Module {
    /// Reads a serialized `HloModuleProto`, or an `HloProto` around one (as XLA dumps it).
    ///
    /// # Errors
    ///
    /// Where the bytes are no module; see [`ImportError`].
    pub fn import(bytes: &[u8]) -> Result<Self, ImportError> {
        if bytes.is_empty() {
            return Err(ImportError::Empty);
        }
        // A binary module starts with field 1 of length-delimited type, byte 0x0a, which text never
        // follows with another line feed-free run of printable characters only.
        let head = bytes.get(..bytes.len().min(64)).unwrap_or(bytes);
        if head.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
            let start = String::from_utf8_lossy(head.get(..head.len().min(24)).unwrap_or(head)).into_owned();
            return Err(ImportError::Text { start });
        }
        let options = DecodeOptions::new()
            .with_recursion_limit(RECURSION_LIMIT)
            .with_unknown_field_limit(bytes.len())
            .with_element_memory_limit(bytes.len().saturating_mul(MEMORY_FACTOR));
        let proto = match options.decode_from_slice::<HloModuleProto>(bytes) {
            Ok(proto) if !proto.computations.is_empty() => proto,
            other => match options.decode_from_slice::<HloProto>(bytes).ok().and_then(|p| p.hlo_module.into_option()) {
                Some(inner) if !inner.computations.is_empty() => inner,
                _ => other.map_err(|source| ImportError::Decode { size: bytes.len(), source })?,
            },
        };
        Self::from_proto(proto)
    }

    fn from_proto(mut header: HloModuleProto) -> Result<Self, ImportError> {
        let computations = std::mem::take(&mut header.computations);
        if computations.is_empty() {
            return Err(ImportError::NoComputations { module: header.name });
        }
        let mut by_id = HashMap::with_capacity(computations.len());
        for (index, computation) in computations.iter().enumerate() {
            let id = ComputationId(small(index, "computations")?);
            if by_id.insert(computation.id, id).is_some() {
                let name = computation.name.clone();
                return Err(ImportError::DuplicateId { what: "computation", name, id: computation.id });
            }
        }
        let entry = by_id.get(&header.entry_computation_id).copied().ok_or_else(|| ImportError::Dangling {
            user: header.name.clone(),
            what: "entry computation",
            id: header.entry_computation_id,
        })?;
        let arena = computations.into_iter().map(|c| import_computation(c, &by_id)).collect::<Result<Vec<_>, _>>()?;
        let order = (0..arena.len()).map(|i| small(i, "computations").map(ComputationId)).collect::<Result<_, _>>()?;
        let mut names = HashMap::new();
        for computation in &arena {
            names.insert(computation.name.clone(), 1);
            names.extend(computation.arena.iter().map(|i| (i.name.clone(), 1)));
        }
        Ok(Self { arena, order, entry, header, names })
    }
}

fn small(index: usize, what: &'static str) -> Result<u32, ImportError> {
    match u32::try_from(index) {
        Ok(small) if index < MAX_ITEMS => Ok(small),
        _ => Err(ImportError::TooMany { what, count: index }),
    }
}

fn import_computation(
    mut header: HloComputationProto,
    computations: &HashMap<i64, ComputationId>,
) -> Result<Computation, ImportError> {
    let protos = std::mem::take(&mut header.instructions);
    let mut ids = HashMap::with_capacity(protos.len());
    for (index, proto) in protos.iter().enumerate() {
        let id = InstructionId(small(index, "instructions")?);
        if ids.insert(proto.id, id).is_some() {
            return Err(ImportError::DuplicateId { what: "instruction", name: proto.name.clone(), id: proto.id });
        }
    }
    // XLA also accepts operand ids without the computation's half.
    let prefix = header.id << 32;
    let resolve = |user: &str, what: &'static str, id: i64| {
        ids.get(&id).or_else(|| ids.get(&(prefix | (id & 0xffff_ffff)))).copied().ok_or_else(|| ImportError::Dangling {
            user: user.to_owned(),
            what,
            id,
        })
    };
    let order = (0..protos.len()).map(|i| small(i, "instructions").map(InstructionId)).collect::<Result<_, _>>()?;
    let next_local = protos.iter().map(|p| p.id & 0xffff_ffff).max().unwrap_or(0) + 1;
    let root =
        if protos.is_empty() { InstructionId(0) } else { resolve(&header.name, "root instruction", header.root_id)? };
    let arena =
        protos.into_iter().map(|p| import_instruction(p, &resolve, computations)).collect::<Result<Vec<_>, _>>()?;
    let wire_id = header.id;
    Ok(Computation { name: std::mem::take(&mut header.name), arena, order, root, header, wire_id, next_local })
}

fn import_instruction(
    mut proto: HloInstructionProto,
    resolve: &impl Fn(&str, &'static str, i64) -> Result<InstructionId, ImportError>,
    computations: &HashMap<i64, ComputationId>,
) -> Result<Instruction, ImportError> {
    let name = std::mem::take(&mut proto.name);
    let opcode = Opcode::from_name(&proto.opcode);
    if opcode != Opcode::Unrecognized {
        proto.opcode = String::new();
    }
    let operands = std::mem::take(&mut proto.operand_ids);
    let control = std::mem::take(&mut proto.control_predecessor_ids);
    let called = std::mem::take(&mut proto.called_computation_ids);
    let shape = std::mem::replace(&mut proto.shape, MessageField::none()).into_option().map(Shape).unwrap_or_default();
    let wire_id = std::mem::take(&mut proto.id);
    Ok(Instruction {
        operands: operands.into_iter().map(|id| resolve(&name, "operand", id)).collect::<Result<_, _>>()?,
        control_predecessors: control
            .into_iter()
            .map(|id| resolve(&name, "control predecessor", id))
            .collect::<Result<_, _>>()?,
        called: called
            .into_iter()
            .map(|id| {
                computations.get(&id).copied().ok_or_else(|| ImportError::Dangling {
                    user: name.clone(),
                    what: "computation",
                    id,
                })
            })
            .collect::<Result<_, _>>()?,
        name,
        opcode,
        shape,
        attributes: Box::new(proto),
        wire_id,
    })
}
