//! `HloModuleProto` bytes to [`Module`].
//!
//! Import refuses what the representation cannot hold (dangling ids, two
//! instructions of one id, no entry). It does not judge: order, shapes and
//! names are the verifier's matter.

use std::collections::HashMap;
use std::sync::Arc;

use buffa::{DecodeError, DecodeOptions};
use thiserror::Error;

use crate::ir::{Computation, ComputationId, Instruction, InstructionId, Module, Names, Opcode, Shape};
use crate::proto::{HloComputationProto, HloInstructionProto, HloModuleProto};
use crate::wire::{self, Fields};

/// Why bytes are not a module.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The bytes are text, not a binary proto.
    #[error(
        "this is text, not a serialized HloModuleProto (it starts with {start:?}); text of XLA's starts with `HloModule`; \
         export with `lowered.compiler_ir('hlo').as_serialized_hlo_module_proto()`"
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
        let damaged = match import_module(bytes) {
            Ok(module) => return Ok(module),
            Err(error) => error,
        };
        // The wrapper's first field is the module.
        let inner = Fields::new(bytes).find_map(|f| f.ok().filter(|f| f.number() == 1)).map(|f| f.bytes());
        match inner {
            Some(Ok(inner)) => match import_module(inner) {
                Err(ImportError::Decode { .. } | ImportError::NoComputations { .. }) => Err(damaged),
                found => found,
            },
            _ => Err(damaged),
        }
    }
}

fn import_module(bytes: &[u8]) -> Result<Module, ImportError> {
    let decode = |source| ImportError::Decode { size: bytes.len(), source };
    let mut header = HloModuleProto::default();
    let mut computations = Vec::new();
    wire::split(bytes, &mut header, &options(bytes), |field| {
        let ours = field.number() == 3;
        if ours {
            computations.push(field.bytes()?);
        }
        Ok(ours)
    })
    .map_err(decode)?;
    if computations.is_empty() {
        return Err(ImportError::NoComputations { module: header.name });
    }
    let mut by_id = HashMap::with_capacity(computations.len());
    for (index, computation) in computations.iter().enumerate() {
        let id = integer_field(computation, 5).map_err(decode)?;
        if by_id.insert(id, ComputationId(small(index, "computations")?)).is_some() {
            let name = string_field(computation, 1).map_err(decode)?.to_owned();
            return Err(ImportError::DuplicateId { what: "computation", name, id });
        }
    }
    let entry = by_id.get(&header.entry_computation_id).copied().ok_or_else(|| ImportError::Dangling {
        user: header.name.clone(),
        what: "entry computation",
        id: header.entry_computation_id,
    })?;
    let mut importer = Importer { computations: by_id, size: bytes.len(), shared: HashMap::new(), rest: Vec::new() };
    let arena = computations.into_iter().map(|c| importer.computation(c)).collect::<Result<Vec<_>, _>>()?;
    let order = (0..arena.len()).map(|i| small(i, "computations").map(ComputationId)).collect::<Result<_, _>>()?;
    let names = Names::of(&arena);
    header.entry_computation_id = 0;
    header.entry_computation_name = String::new();
    Ok(Module { arena, order, entry, header, names })
}

/// Memory that grows with the input only; see [`MEMORY_FACTOR`].
fn options(bytes: &[u8]) -> DecodeOptions {
    DecodeOptions::new()
        .with_recursion_limit(RECURSION_LIMIT)
        .with_unknown_field_limit(bytes.len())
        .with_element_memory_limit(bytes.len().saturating_mul(MEMORY_FACTOR))
}

fn integer_field(message: &[u8], number: u32) -> Result<i64, DecodeError> {
    let mut value = 0;
    for field in Fields::new(message) {
        let field = field?;
        if field.number() == number {
            value = field.integer()?;
        }
    }
    Ok(value)
}

fn string_field(message: &[u8], number: u32) -> Result<&str, DecodeError> {
    let mut value = "";
    for field in Fields::new(message) {
        let field = field?;
        if field.number() == number {
            value = field.string()?;
        }
    }
    Ok(value)
}

fn small(index: usize, what: &'static str) -> Result<u32, ImportError> {
    match u32::try_from(index) {
        Ok(small) if index < MAX_ITEMS => Ok(small),
        _ => Err(ImportError::TooMany { what, count: index }),
    }
}

struct Importer {
    computations: HashMap<i64, ComputationId>,
    /// Bytes of the whole module, for error messages.
    size: usize,
    /// Shape and attributes by their encoding.
    shared: HashMap<Box<[u8]>, (Shape, Arc<HloInstructionProto>)>,
    /// The encoding of one instruction's; here to keep its allocation.
    rest: Vec<u8>,
}

/// Attributes whose encoding is longer (those with literals) are not worth keeping a second time to be compared with.
const LONGEST_SHARED: usize = 1 << 10;

impl Importer {
    fn computation(&mut self, bytes: &[u8]) -> Result<Computation, ImportError> {
        let size = self.size;
        let decode = |source| ImportError::Decode { size, source };
        let mut header = HloComputationProto::default();
        let mut instructions = Vec::new();
        wire::split(bytes, &mut header, &options(bytes), |field| {
            let ours = field.number() == 2;
            if ours {
                instructions.push(field.bytes()?);
            }
            Ok(ours)
        })
        .map_err(decode)?;
        let name = std::mem::take(&mut header.name);
        let wire_id = std::mem::take(&mut header.id);
        let root_id = std::mem::take(&mut header.root_id);
        let mut ids = Ids { of: HashMap::with_capacity(instructions.len()), prefix: wire_id << 32 };
        let mut order = Vec::with_capacity(instructions.len());
        let mut last_local = 0;
        for (index, instruction) in instructions.iter().enumerate() {
            let id = InstructionId(small(index, "instructions")?);
            let wire_id = integer_field(instruction, 35).map_err(decode)?;
            if ids.of.insert(wire_id, id).is_some() {
                let name = string_field(instruction, 1).map_err(decode)?.to_owned();
                return Err(ImportError::DuplicateId { what: "instruction", name, id: wire_id });
            }
            order.push(id);
            last_local = last_local.max(wire_id & 0xffff_ffff);
        }
        let root = match instructions.is_empty() {
            true => InstructionId(0),
            false => ids.resolve(&name, "root instruction", root_id)?,
        };
        let arena = instructions.into_iter().map(|i| self.instruction(i, &ids)).collect::<Result<Vec<_>, _>>()?;
        Ok(Computation { name, arena, order, root, header, wire_id, next_local: last_local + 1 })
    }

    fn instruction(&mut self, bytes: &[u8], ids: &Ids) -> Result<Instruction, ImportError> {
        let size = self.size;
        let decode = |source| ImportError::Decode { size, source };
        let (mut name, mut opcode, mut wire_id) = ("", "", 0);
        let (mut operands, mut control, mut called) = (Vec::new(), Vec::new(), Vec::new());
        // The first id that nothing has; reported once the name is known.
        let mut dangling = None;
        let mut find = |found: Option<InstructionId>, what, id, list: &mut Vec<InstructionId>| match found {
            Some(found) => list.push(found),
            None => dangling = dangling.or(Some((what, id))),
        };
        self.rest.clear();
        for field in Fields::new(bytes) {
            let field = field.map_err(decode)?;
            match field.number() {
                1 => field.string().map(|value| name = value),
                2 => field.string().map(|value| opcode = value),
                35 => field.integer().map(|value| wire_id = value),
                36 => field.integers(|id| find(ids.find(id), "operand", id, &mut operands)),
                37 => field.integers(|id| find(ids.find(id), "control predecessor", id, &mut control)),
                38 => field.integers(|id| called.push(id)),
                _ => {
                    self.rest.extend_from_slice(field.whole);
                    Ok(())
                }
            }
            .map_err(decode)?;
        }
        let (shape, mut attributes) = self.attributes(bytes).map_err(decode)?;
        let dangle = |what, id| ImportError::Dangling { user: name.to_owned(), what, id };
        if let Some((what, id)) = dangling {
            return Err(dangle(what, id));
        }
        let known = |id| self.computations.get(&id).copied().ok_or_else(|| dangle("computation", id));
        let called = called.into_iter().map(known).collect::<Result<_, _>>()?;
        let text = opcode;
        let opcode = Opcode::from_name(text);
        if opcode == Opcode::Unrecognized {
            text.clone_into(&mut Arc::make_mut(&mut attributes).opcode);
        }
        Ok(Instruction {
            name: name.to_owned(),
            opcode,
            shape,
            operands,
            control_predecessors: control,
            called,
            attributes,
            wire_id,
        })
    }

    /// What [`Importer::rest`] holds of the instruction `bytes`, decoded only where it is met for the first time.
    fn attributes(&mut self, bytes: &[u8]) -> Result<(Shape, Arc<HloInstructionProto>), DecodeError> {
        if let Some(known) = self.shared.get(self.rest.as_slice()) {
            return Ok(known.clone());
        }
        let mut attributes = HloInstructionProto::default();
        options(bytes).merge_from_slice(&mut attributes, &self.rest)?;
        let shape = attributes.shape.take().map(Shape::from).unwrap_or_default();
        let made = (shape, Arc::new(attributes));
        if self.rest.len() <= LONGEST_SHARED {
            self.shared.insert(self.rest.as_slice().into(), made.clone());
        }
        Ok(made)
    }
}

/// The instructions of a computation by their ids.
struct Ids {
    of: HashMap<i64, InstructionId>,
    /// The half that is the computation's; XLA also accepts ids without it.
    prefix: i64,
}

impl Ids {
    fn find(&self, id: i64) -> Option<InstructionId> {
        self.of.get(&id).or_else(|| self.of.get(&(self.prefix | (id & 0xffff_ffff)))).copied()
    }

    fn resolve(&self, user: &str, what: &'static str, id: i64) -> Result<InstructionId, ImportError> {
        self.find(id).ok_or_else(|| ImportError::Dangling { user: user.to_owned(), what, id })
    }
}
