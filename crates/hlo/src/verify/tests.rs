use std::collections::BTreeSet;

use super::*;
use crate::PrimitiveType::{F32, PRED, S32};
use crate::build::{Builder, ComparisonDirection};
use crate::ir::InstructionId;
use crate::ir::{AliasKind, ComputationId, Opcode, Shape};
use crate::proto::HloInstructionProto;
use crate::proto::hlo_buffer_donor_proto::BufferDonorEntryProto;
use crate::proto::hlo_input_output_alias_proto::AliasEntryProto;

/// One of each kind of thing the rules speak of: a reduce, a while loop, a conditional, a comparison, a
/// constant, aliases and a donor.
///
/// `main(x: f32[2,3], s: f32[], d: f32[]) -> (x + x, s', sum x, d')`
fn sample() -> Module {
    let mut module = Module::new("sample");
    let none = HloInstructionProto::default;
    let sum = Builder::reducer(&mut module, "sum", Opcode::Add, F32).unwrap();

    let condition = module.add_computation("condition");
    let mut b = Builder::new(&mut module, condition);
    let p = b.parameter("condition.s", Shape::scalar(F32)).unwrap();
    let limit = b.named("limit").constant_f32(10.0).unwrap();
    let less = b.named("less").compare(p, limit, ComparisonDirection::Lt).unwrap();
    b.set_root(less).unwrap();

    let body = module.add_computation("body");
    let mut b = Builder::new(&mut module, body);
    let p = b.parameter("body.s", Shape::scalar(F32)).unwrap();
    let twice = b.named("twice").add(p, p).unwrap();
    b.set_root(twice).unwrap();

    let mut b = Builder::at_entry(&mut module);
    let x = b.parameter("x", Shape::array(F32, &[2, 3])).unwrap();
    let s = b.parameter("s", Shape::scalar(F32)).unwrap();
    let d = b.parameter("d", Shape::scalar(F32)).unwrap();
    let zero = b.named("zero").constant_f32(0.0).unwrap();
    let sum = b.named("sum.x").reduce_all(x, zero, sum).unwrap();
    let double = b.named("double").add(x, x).unwrap();
    let scalar = Shape::scalar(F32);
    let looped = b.named("loop").emit_with(Opcode::While, &[s], scalar.clone(), none(), vec![body, condition]).unwrap();
    let large = b.named("large").compare(d, zero, ComparisonDirection::Gt).unwrap();
    let chosen = b
        .named("choice")
        .emit_with(Opcode::Conditional, &[large, d, d], scalar.clone(), none(), vec![body, body])
        .unwrap();
    let called = b.named("called").emit_with(Opcode::Call, &[chosen], scalar, none(), vec![body]).unwrap();
    module.set_outputs(&[double, looped, sum, called]).unwrap();
    module.alias(0, 0, AliasKind::May).unwrap();
    module.alias(1, 1, AliasKind::Must).unwrap();
    let donor = BufferDonorEntryProto { parameter_number: 2, ..Default::default() };
    module.header.buffer_donor.get_or_insert_default().entries.push(donor);
    module
}

/// The sample and ways to break it.
struct Sample(Module);

impl Sample {
    fn computation(&mut self, name: &str) -> (ComputationId, &mut Computation) {
        let id = self.0.computations().find(|(_, c)| c.name == name).unwrap().0;
        (id, self.0.computation_mut(id).unwrap())
    }

    fn id(&self, name: &str) -> InstructionId {
        self.0.computations().find_map(|(_, c)| c.find(name)).unwrap()
    }

    fn at(&mut self, name: &str) -> &mut Instruction {
        let owner = self.0.computations().find(|(_, c)| c.find(name).is_some()).unwrap().0;
        let id = self.id(name);
        self.0.computation_mut(owner).unwrap().get_mut(id).unwrap()
    }

    fn order(&mut self, computation: &str) -> &mut Vec<InstructionId> {
        &mut self.computation(computation).1.order
    }

    fn aliases(&mut self) -> &mut Vec<AliasEntryProto> {
        &mut self.0.header.input_output_alias.as_option_mut().unwrap().entries
    }
}

type Edit = fn(&mut Sample);

/// Rule, what to do to the sample, and what the message must say.
const CASES: &[(Rule, Edit, &str)] = &[
    (
        Rule::EmptyComputation,
        |m| {
            m.0.add_computation("idle");
        },
        "%idle: it has no instructions",
    ),
    (
        Rule::DuplicateComputationId,
        |m| {
            let id = m.computation("sum").1.wire_id;
            m.computation("condition").1.wire_id = id;
        },
        "in %condition: its id",
    ),
    (Rule::DuplicateComputationName, |m| m.computation("body").1.name = "sum".into(), "another computation"),
    (Rule::DuplicateInstructionName, |m| m.at("limit").name = "zero".into(), "another instruction, in %condition"),
    (
        Rule::DuplicateInstructionId,
        |m| {
            let id = m.at("double").wire_id;
            m.at("large").wire_id = id;
        },
        "is that of %double too",
    ),
    (Rule::LocalId, |m| m.at("double").wire_id |= 0x7fff_ffff, "0x7fffffff"),
    (
        Rule::MissingOperand,
        |m| {
            let zero = m.id("limit");
            m.order("condition").retain(|&i| i != zero);
        },
        "operand 1, %limit",
    ),
    (Rule::UseBeforeDefinition, |m| m.order("body").reverse(), "%body.s comes after it"),
    (
        Rule::ControlPredecessor,
        |m| {
            let late = m.id("large");
            m.at("double").control_predecessors.push(late);
        },
        "control predecessor %large",
    ),
    (
        Rule::RepeatedInstruction,
        |m| {
            let zero = m.id("zero");
            m.order("main").push(zero);
        },
        "%zero: it stands twice",
    ),
    (
        Rule::MissingRoot,
        |m| {
            m.order("body").pop();
        },
        "in %body: its root is not one",
    ),
    (
        Rule::MissingComputation,
        |m| {
            let body = m.computation("body").0;
            m.0.order.retain(|&c| c != body);
        },
        "%loop: it calls a computation that is not part",
    ),
    (
        Rule::CalleeAfterCaller,
        |m| {
            let body = m.computation("body").0;
            m.0.order.retain(|&c| c != body);
            m.0.order.push(body);
        },
        "it calls %body, which comes after it",
    ),
    (
        Rule::Recursion,
        |m| {
            let body = m.computation("body").0;
            let p = m.id("body.s");
            let mut b = Builder::new(&mut m.0, body);
            let own = b.emit_with(Opcode::Call, &[p], Shape::scalar(F32), HloInstructionProto::default(), vec![body]);
            b.set_root(own.unwrap()).unwrap();
        },
        "in %body: it calls itself",
    ),
    (
        Rule::Arity,
        |m| {
            m.at("double").operands.pop();
        },
        "add takes exactly 2 operand(s), 1 given",
    ),
    (Rule::ParameterNumbers, |m| m.at("d").attributes_mut().parameter_number = 7, "its number is 7, and 2 is the next"),
    (Rule::ProgramShape, |m| m.computation("body").1.header.program_shape = Default::default(), "is missing"),
    (
        Rule::HostProgramShape,
        |m| {
            let result = m.0.header.host_program_shape.get_or_insert_default().result.get_or_insert_default();
            result.tuple_shapes.pop();
        },
        "(f32[2,3], f32[], f32[]) as result, the root is (f32[2,3], f32[], f32[], f32[])",
    ),
    (
        Rule::ParameterNames,
        |m| {
            m.0.header.host_program_shape.get_or_insert_default().parameter_names.pop();
        },
        "2 parameter names for 3 parameters",
    ),
    (Rule::AliasParameter, |m| m.aliases()[0].parameter_number = 3, "there is no such parameter"),
    (Rule::AliasOutput, |m| m.aliases()[0].output_shape_index = vec![4], "there is no such output"),
    (
        Rule::ParameterAliasedTwice,
        |m| {
            let entry = AliasEntryProto { output_shape_index: vec![2], parameter_number: 1, ..Default::default() };
            m.aliases().push(entry);
        },
        "output [2] with parameter 1 []: the parameter is aliased already",
    ),
    (
        Rule::OutputAliasedTwice,
        |m| {
            m.0.header.buffer_donor = Default::default();
            let entry = AliasEntryProto { output_shape_index: vec![1], parameter_number: 2, ..Default::default() };
            m.aliases().push(entry);
        },
        "output [1] with parameter 2 []: the output is aliased already",
    ),
    (Rule::AliasSize, |m| m.aliases()[0].output_shape_index = vec![2], "f32[] and f32[2,3] differ in size"),
    (
        Rule::Donor,
        |m| m.0.header.buffer_donor.get_or_insert_default().entries[0].parameter_shape_index = vec![0],
        "parameter 2 [0] is donated, and does not exist",
    ),
    (
        Rule::DonorAliased,
        |m| m.0.header.buffer_donor.get_or_insert_default().entries[0].parameter_number = 1,
        "parameter 1 [] is donated and aliased",
    ),
    (
        Rule::InvalidShape,
        |m| m.at("large").shape.proto_mut().is_dynamic_dimension = vec![false; 2],
        "pred[] is no array shape: dimensions []",
    ),
    (Rule::MissingLayout, |m| m.at("large").shape.proto_mut().layout = Default::default(), "pred[] has no layout"),
    (
        Rule::InvalidLayout,
        |m| m.at("double").shape.proto_mut().layout.get_or_insert_default().minor_to_major = vec![1, 1],
        "[1, 1], no order of 2 dimensions",
    ),
    (
        Rule::Operands,
        |m| {
            let x = m.id("x");
            m.at("large").operands[1] = x;
        },
        "compare of (f32[], f32[2,3])",
    ),
    (
        Rule::ResultShape,
        |m| {
            // A root tuple that an edit forgot: XLA aborts on it.
            let double = m.id("double");
            m.at("outputs").operands[1] = double;
        },
        "its shape is (f32[2,3], f32[], f32[], f32[]), its operands make (f32[2,3], f32[2,3], f32[], f32[])",
    ),
    (Rule::Comparison, |m| m.at("less").attributes_mut().comparison_direction = "lt".into(), "its direction \"lt\""),
    (
        Rule::CalledCount,
        |m| {
            m.at("loop").called.pop();
        },
        "it calls 1 computations, and needs 2",
    ),
    (
        Rule::CalleeParameters,
        |m| {
            let sum = m.computation("sum").0;
            m.at("called").called = vec![sum];
        },
        "it passes 1 values to %sum, which takes 2",
    ),
    (
        Rule::CalleeShapes,
        |m| {
            let body = m.computation("body").0;
            m.at("loop").called = vec![body, body];
        },
        "%body returns f32[], not pred[]",
    ),
    (
        Rule::Branches,
        |m| {
            m.at("choice").operands.pop();
        },
        "it passes 1 arguments to 2 branches",
    ),
    (Rule::LiteralShape, |m| m.at("zero").attributes_mut().literal = Default::default(), "%zero: it has no literal"),
    (
        Rule::LiteralElements,
        |m| m.at("zero").attributes_mut().literal.get_or_insert_default().f32s.push(1.0),
        "its literal holds 2 elements of f32, its shape 1",
    ),
    (Rule::MissingName, |m| m.at("double").name.clear(), "it has no name"),
    (
        Rule::ParameterReplication,
        |m| {
            let replication = m.at("x").attributes_mut().parameter_replication.get_or_insert_default();
            replication.replicated_at_leaf_buffers = vec![true, true];
        },
        "its replication has 2 entries, its shape 1 arrays",
    ),
];

#[test]
fn the_sample_is_valid() {
    verify(&sample()).unwrap();
    assert!(verify(&Module::import(&sample().export()).unwrap()).is_ok());
}

#[test]
fn each_edit_breaks_its_rule_and_no_other() {
    for (rule, edit, expected) in CASES {
        let mut sample = Sample(sample());
        edit(&mut sample);
        let errors = verify(&sample.0).expect_err(&format!("{rule} holds"));
        let text = errors.to_string();
        assert!(text.contains(expected), "{rule}: {expected:?} is not in {text}");
        let broken: BTreeSet<_> = errors.violations.iter().map(|v| v.rule).collect();
        assert_eq!(broken, BTreeSet::from([*rule]), "{text}");
    }
}

#[test]
fn every_rule_has_exactly_one_refusing_case() {
    assert_eq!(CASES.iter().map(|case| case.0).collect::<Vec<_>>(), Rule::ALL);
    for (n, rule) in Rule::ALL.iter().enumerate() {
        assert_eq!(rule.id(), format!("V{:03}", n + 1));
    }
}

#[test]
fn one_run_reports_every_violation_and_says_how_many_it_leaves_out() {
    let mut module = sample();
    let mut count = 0;
    for computation in &mut module.arena {
        for instruction in computation.arena.iter_mut().filter(|i| i.shape.is_array()) {
            instruction.shape.proto_mut().layout = Default::default();
            count += 1;
        }
    }
    assert!(count > PRINTED);
    let errors = verify(&module).unwrap_err();
    assert_eq!(errors.violations.len(), count);
    let text = errors.to_string();
    assert!(text.starts_with(&format!("module \"sample\" is not valid HLO ({count} violations)\n")), "{text}");
    assert!(text.ends_with(&format!("and {} more", count - PRINTED)), "{text}");
    let expected = "V028 in %body, %twice: f32[] has no layout\n    %twice = f32[] add(%body.s, %body.s)";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn cycles_through_several_computations_are_found() {
    let mut sample = Sample(sample());
    let (body, condition) = (sample.computation("body").0, sample.computation("condition").0);
    sample.at("twice").called = vec![condition];
    sample.at("less").called = vec![body];
    let rules: Vec<_> = verify(&sample.0).unwrap_err().violations.iter().map(|v| v.rule).collect();
    assert!(rules.contains(&Rule::Recursion) && rules.contains(&Rule::CalleeAfterCaller), "{rules:?}");
}

#[test]
fn long_instructions_are_cut_off() {
    let mut module = Module::new("wide");
    let mut b = Builder::at_entry(&mut module);
    let x = b.parameter("x", Shape::array(PRED, &[1])).unwrap();
    let y = b.parameter("y", Shape::scalar(S32)).unwrap();
    let mut operands = vec![x; 400];
    operands.push(y);
    let attributes = HloInstructionProto { dimensions: vec![0], ..Default::default() };
    let wide = b.emit_with(Opcode::Tuple, &operands, Shape::default(), attributes, vec![]).unwrap();
    b.set_root(wide).unwrap();
    module.entry_computation_mut().get_mut(wide).unwrap().opcode = Opcode::Concatenate;
    let error = verify(&module).unwrap_err();
    assert!(error.to_string().len() < 1500, "{error}");
}
