//! Computations and their instructions.
//!
//! What an instruction refers to stands above it: operands and control predecessors in its computation, called
//! computations in the module, or in the attribute itself (`to_apply={ ... }`), as XLA prints them in its long form.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use buffa::Message;

use super::cursor::{Cursor, DEEPEST, Result};
use super::{literal, shape};
use crate::ir::{Computation, ComputationId, Instruction, InstructionId, Names, Opcode, Shape, no_attributes};
use crate::proto::{HloComputationProto, HloInstructionProto, PrimitiveType, ProgramShapeProto};

/// The text and what was made of it so far.
pub(super) struct Parser<'a> {
    pub(super) c: Cursor<'a>,
    pub(super) computations: Vec<Computation>,
    by_name: HashMap<&'a str, ComputationId>,
    /// The names in use: text may use one name in several computations, the representation may not. Computations and
    /// instructions may share one.
    computation_names: Names,
    instruction_names: Names,
    depth: usize,
}

/// The instructions of the computation being read.
#[derive(Default)]
pub(super) struct Scope<'a> {
    instructions: Vec<Instruction>,
    by_name: HashMap<&'a str, InstructionId>,
}

/// An instruction being read.
pub(super) struct Draft<'a> {
    pub(super) name: &'a str,
    pub(super) opcode: Opcode,
    /// Whether the text says `negate-start(...)`, which stands for an `async-start` of a computation with a `negate`.
    pub(super) sugar: bool,
    shape: Shape,
    operands: Vec<InstructionId>,
    pub(super) control: Vec<InstructionId>,
    pub(super) called: Vec<(&'a str, Vec<ComputationId>)>,
    pub(super) proto: HloInstructionProto,
}

impl<'a> Scope<'a> {
    /// A name that stands above.
    pub(super) fn instruction(&self, c: &mut Cursor<'a>) -> Result<InstructionId> {
        let start = *c;
        let name = c.name("the name of an instruction")?;
        let found = self.by_name.get(name).copied();
        found.ok_or_else(|| start.refused("no instruction of this name stands above in this computation"))
    }

    fn element_type(&self, id: Option<&InstructionId>) -> PrimitiveType {
        let instruction = id.and_then(|id| self.instructions.get(id.index()));
        instruction.map_or(PrimitiveType::PRIMITIVE_TYPE_INVALID, |i| i.shape.element_type())
    }
}

/// What stands between a computation's name and its body.
struct Signature<'a> {
    at: Cursor<'a>,
    parameters: Vec<Shape>,
    result: Shape,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            c: Cursor::new(text),
            computations: Vec::new(),
            by_name: HashMap::new(),
            computation_names: Names::default(),
            instruction_names: Names::default(),
            depth: 0,
        }
    }

    /// `%name (x: f32[]) -> f32[] { ... }, execution_thread="t"`; the signature may be left out.
    pub(super) fn computation(&mut self) -> Result<ComputationId> {
        let start = self.c;
        let name = self.c.name("the name of a computation")?;
        let signature = if self.c.peek() == Some(b'(') { Some(self.signature()?) } else { None };
        let mut computation = self.body(name, signature)?;
        if self.c.eat(",") {
            self.c.expect("execution_thread")?;
            self.c.expect("=")?;
            computation.header.execution_thread = self.c.text()?;
        }
        let id = self.push(computation, &start)?;
        match self.by_name.entry(name) {
            Entry::Occupied(_) => Err(start.refused("another computation above has this name")),
            Entry::Vacant(slot) => Ok(*slot.insert(id)),
        }
    }

    /// A computation by its name, or one that stands here, which is named after what calls it.
    pub(super) fn callee(&mut self, key: &str, caller: &str) -> Result<ComputationId> {
        let start = self.c;
        if start.peek() == Some(b'{') {
            if self.depth == DEEPEST {
                return Err(start.refused(format!("computations are nested more than {DEEPEST} deep")));
            }
            self.depth += 1;
            let computation = self.body(&format!("{caller}.{key}"), None)?;
            self.depth -= 1;
            return self.push(computation, &start);
        }
        let name = self.c.name("the name of a computation or its body in braces")?;
        let found = self.by_name.get(name).copied();
        found.ok_or_else(|| start.refused("no computation of this name stands above"))
    }

    fn push(&mut self, mut computation: Computation, at: &Cursor<'_>) -> Result<ComputationId> {
        let index =
            u32::try_from(self.computations.len()).map_err(|_| at.refused("there are too many computations"))?;
        computation.wire_id = i64::from(index) + 1;
        for (instruction, local) in computation.arena.iter_mut().zip(1i64..) {
            instruction.wire_id = computation.wire_id << 32 | local;
            computation.next_local = local + 1;
        }
        self.computations.push(computation);
        Ok(ComputationId(index))
    }

    fn signature(&mut self) -> Result<Signature<'a>> {
        let at = self.c;
        let parameters = self.c.list("(", ")", |c| {
            c.name("the name of a parameter")?;
            c.expect(":")?;
            shape::shape(c)
        })?;
        self.c.expect("->")?;
        Ok(Signature { at, parameters, result: shape::shape(&mut self.c)? })
    }

    /// The instructions in braces.
    fn body(&mut self, name: &str, signature: Option<Signature<'a>>) -> Result<Computation> {
        self.c.expect("{")?;
        let mut scope = Scope::default();
        let mut root = None;
        while self.c.peek() != Some(b'}') {
            let at = self.c;
            let is_root = self.c.eat_word("ROOT");
            let id = self.instruction(&mut scope)?;
            if is_root && root.replace(id).is_some() {
                return Err(at.refused("the computation has a root already"));
            }
        }
        // Without a word on it the last one is the root.
        let last = scope.instructions.len().checked_sub(1).and_then(|n| u32::try_from(n).ok()).map(InstructionId);
        let Some(root) = root.or(last) else { return Err(self.c.expected("an instruction")) };
        self.c.expect("}")?;
        let order = (0..).take(scope.instructions.len()).map(InstructionId).collect();
        let mut computation = Computation {
            name: self.computation_names.unique(name),
            arena: scope.instructions,
            order,
            root,
            header: HloComputationProto::default(),
            wire_id: 0,
            next_local: 1,
        };
        let program = program_shape(&computation);
        if let Some(signature) = signature {
            check_signature(&signature, &program)?;
        }
        computation.header.program_shape = program.into();
        Ok(computation)
    }

    /// `%name = f32[] add(%x, %y), attribute=value`
    fn instruction(&mut self, scope: &mut Scope<'a>) -> Result<InstructionId> {
        let at = self.c;
        let name = self.c.name("an instruction, `ROOT` or `}`")?;
        self.c.expect("=")?;
        let shape = shape::shape(&mut self.c)?;
        let opcode_at = self.c;
        let word = self.c.word("an opcode")?;
        let (opcode, wrapper) = opcode(word).ok_or_else(|| opcode_at.refused("there is no such opcode here"))?;
        let mut draft = Draft {
            name,
            opcode,
            sugar: wrapper.is_some(),
            shape,
            operands: Vec::new(),
            control: Vec::new(),
            called: Vec::new(),
            proto: HloInstructionProto::default(),
        };
        self.arguments(&mut draft, scope)?;
        if draft.sugar && wrapper != Some(Opcode::AsyncStart) {
            // What is updated or done has its attributes where it was started.
            draft.opcode = wrapper.unwrap_or(draft.opcode);
            draft.sugar = false;
        }
        self.attributes(&mut draft, scope, &opcode_at)?;
        self.c.check_unknown()?;
        complete(&mut draft, scope);
        if draft.sugar {
            self.wrap(&mut draft, scope, &opcode_at)?;
        }
        if let Some((_, callees)) = draft.called.first().filter(|_| draft.opcode == Opcode::Fusion) {
            for callee in callees {
                if let Some(callee) = self.computations.get_mut(callee.index()) {
                    callee.header.is_fusion_computation = true;
                }
            }
        }
        let count =
            u32::try_from(scope.instructions.len()).map_err(|_| at.refused("there are too many instructions"))?;
        let id = InstructionId(count);
        if scope.by_name.insert(name, id).is_some() {
            return Err(at.refused("another instruction above in this computation has this name"));
        }
        scope.instructions.push(draft.into_instruction(self.instruction_names.unique(name)));
        Ok(id)
    }

    /// What stands between the parentheses.
    fn arguments(&mut self, draft: &mut Draft<'a>, scope: &Scope<'a>) -> Result<()> {
        let c = &mut self.c;
        match draft.opcode {
            Opcode::Parameter => {
                c.expect("(")?;
                let at = *c;
                draft.proto.parameter_number =
                    i64::from(c.integer::<u32>().map_err(|_| at.expected("a parameter's number"))?);
                c.expect(")")
            }
            Opcode::Constant => {
                c.expect("(")?;
                draft.proto.literal = literal::literal(c, &draft.shape)?.into();
                c.expect(")")
            }
            _ => {
                draft.operands = c.list("(", ")", |c| operand(c, scope))?;
                Ok(())
            }
        }
    }

    /// Moves the operation of an asynchronous start into a computation of its own.
    fn wrap(&mut self, draft: &mut Draft<'a>, scope: &Scope<'a>, at: &Cursor<'_>) -> Result<()> {
        // ((operands), result, context...)
        let result = draft.shape.tuple_elements().nth(1);
        let shape = result.ok_or_else(|| at.refused("an asynchronous start makes a tuple of operands and result"))?;
        let outer = HloInstructionProto {
            metadata: draft.proto.metadata.take().into(),
            sharding: draft.proto.sharding.take().into(),
            frontend_attributes: draft.proto.frontend_attributes.take().into(),
            backend_config: std::mem::take(&mut draft.proto.backend_config),
            async_execution_thread: std::mem::take(&mut draft.proto.async_execution_thread),
            ..Default::default()
        };
        let mut arena = Vec::new();
        for (operand, number) in draft.operands.iter().zip(0i64..) {
            let shape = scope.instructions.get(operand.index()).map(|i| i.shape.clone()).unwrap_or_default();
            let mut parameter =
                Instruction::new(self.instruction_names.unique("async_param"), Opcode::Parameter, shape, Vec::new());
            parameter.attributes_mut().parameter_number = number;
            arena.push(parameter);
        }
        let operands: Vec<_> = (0..).take(arena.len()).map(InstructionId).collect();
        let root = InstructionId(u32::try_from(arena.len()).map_err(|_| at.refused("there are too many operands"))?);
        let inner = Draft {
            shape,
            operands: operands.clone(),
            control: Vec::new(),
            called: std::mem::take(&mut draft.called),
            proto: std::mem::replace(&mut draft.proto, outer),
            ..*draft
        };
        arena.push(inner.into_instruction(self.instruction_names.unique(draft.opcode.name())));
        let mut header = HloComputationProto::default();
        header.execution_thread.clone_from(&draft.proto.async_execution_thread);
        let mut computation = Computation {
            name: self.computation_names.unique("async_wrapped"),
            order: operands.into_iter().chain([root]).collect(),
            arena,
            root,
            header,
            wire_id: 0,
            next_local: 1,
        };
        computation.header.program_shape = program_shape(&computation).into();
        draft.opcode = Opcode::AsyncStart;
        draft.called = vec![("calls", vec![self.push(computation, at)?])];
        Ok(())
    }
}

impl Draft<'_> {
    fn into_instruction(mut self, name: String) -> Instruction {
        // The order on the wire.
        const FIRST: [&str; 3] = ["body", "select", "true_computation"];
        self.called.sort_by_key(|(key, _)| !FIRST.contains(key));
        // To equality an empty sharding and none are the same; they are not.
        let attributes = if self.proto.encode_to_vec().is_empty() { no_attributes() } else { Arc::new(self.proto) };
        Instruction {
            name,
            opcode: self.opcode,
            shape: self.shape,
            operands: self.operands,
            control_predecessors: self.control,
            called: self.called.into_iter().flat_map(|(_, called)| called).collect(),
            attributes,
            wire_id: 0,
        }
    }
}

/// The opcode of that name, and the one around it where the name is short for an asynchronous operation.
fn opcode(word: &str) -> Option<(Opcode, Option<Opcode>)> {
    let known = |name: &str| Some(Opcode::from_name(name)).filter(|&o| o != Opcode::Unrecognized);
    if let Some(opcode) = known(word) {
        return Some((opcode, None));
    }
    let (name, part) = word.rsplit_once('-')?;
    let wrapper = match part {
        "start" => Opcode::AsyncStart,
        "update" => Opcode::AsyncUpdate,
        "done" => Opcode::AsyncDone,
        _ => return None,
    };
    let inner = known(name).filter(|o| !matches!(o, Opcode::Parameter | Opcode::Constant))?;
    Some((inner, Some(wrapper)))
}

/// A name, possibly with its shape in front.
fn operand<'a>(c: &mut Cursor<'a>, scope: &Scope<'a>) -> Result<InstructionId> {
    let at = *c;
    let stated = if shape::is_next(c) { Some(shape::shape(c)?) } else { None };
    let id = scope.instruction(c)?;
    let shape = scope.instructions.get(id.index()).map(|i| &i.shape);
    match (stated, shape) {
        (Some(stated), Some(shape)) if !stated.is_compatible(shape) => {
            Err(at.refused(format!("the operand is a {shape}, not a {stated}")))
        }
        _ => Ok(id),
    }
}

/// What text leaves out because it follows from the rest.
fn complete(draft: &mut Draft<'_>, scope: &Scope<'_>) {
    let p = &mut draft.proto;
    match draft.opcode {
        Opcode::Compare if p.comparison_type.is_empty() => {
            let element_type = scope.element_type(draft.operands.first());
            let name = match element_type {
                t if t.is_floating() || matches!(t, PrimitiveType::C64 | PrimitiveType::C128) => "FLOAT",
                t if t.is_integral() && t.name().starts_with('s') => "SIGNED",
                _ => "UNSIGNED",
            };
            name.clone_into(&mut p.comparison_type);
        }
        Opcode::Dot => {
            p.dot_dimension_numbers.get_or_insert_default();
        }
        Opcode::Convolution | Opcode::CustomCall => {
            p.feature_group_count = p.feature_group_count.max(1);
            p.batch_group_count = p.batch_group_count.max(1);
            if draft.opcode == Opcode::CustomCall {
                p.custom_call_api_version = p.custom_call_api_version.max(1);
            }
        }
        _ => {}
    }
}

/// The shapes of a computation's parameters and result, and the parameters' names.
pub(super) fn program_shape(computation: &Computation) -> ProgramShapeProto {
    let parameters: Vec<_> = computation.parameters().into_iter().filter_map(|id| computation.get(id)).collect();
    ProgramShapeProto {
        parameters: parameters.iter().map(|p| p.shape.to_proto()).collect(),
        result: computation.root_instruction().map(|r| r.shape.to_proto()).into(),
        parameter_names: parameters.iter().map(|p| p.name.clone()).collect(),
        ..Default::default()
    }
}

fn check_signature(stated: &Signature<'_>, program: &ProgramShapeProto) -> Result<()> {
    let shapes: Vec<_> = program.parameters.iter().cloned().map(Shape::from).collect();
    if stated.parameters.len() != shapes.len() {
        let (stated_count, count) = (stated.parameters.len(), shapes.len());
        return Err(stated.at.refused(format!("{stated_count} parameters are stated here, the body has {count}")));
    }
    let result = program.result.as_option().cloned().map(Shape::from).unwrap_or_default();
    let all = stated.parameters.iter().zip(&shapes).chain([(&stated.result, &result)]);
    match all.into_iter().find(|(stated, shape)| !stated.is_compatible(shape)) {
        Some((wrong, shape)) => Err(stated.at.refused(format!("the body has a {shape} where a {wrong} is stated"))),
        None => Ok(()),
    }
}
