//! The parser, held to the printer and to the wire: what was printed reads as the module it was.
//!
//! That XLA's own parser and printer agree is held by `make test-python`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::sync::OnceLock;

use buffa::Message;
use hlo::proto::{HloInstructionProto, HloModuleProto, HloScheduleProto, StackFrameIndexProto};
use hlo::text::{Preset, parse, print};
use hlo::{Computation, InstructionId, Module};
use proptest::prelude::*;

#[cfg(test)]
mod common;

fn read(text: &str) -> Module {
    parse(text).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_module_prints_the_same_after_it_was_read() {
    for (name, bytes) in common::modules() {
        let text = print(&Module::import(&bytes).unwrap(), Preset::Canonical);
        let module = parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let again = print(&module, Preset::Canonical);
        let differing = text.lines().zip(again.lines()).find(|(a, b)| a != b);
        assert!(text == again, "{name}: {differing:?}");
    }
}

#[test]
fn every_module_carries_the_same_program_through_text() {
    for (name, bytes) in common::modules() {
        let module = Module::import(&bytes).unwrap();
        let text = print(&module, Preset::Canonical);
        // Over the wire once more, as a compiler gets it.
        let through = Module::import(&read(&text).export()).unwrap();
        assert_eq!(through.computations().count(), module.computations().count(), "{name}");
        assert_eq!(header(&through), header(&module), "{name}");
        for ((_, got), (_, wanted)) in through.computations().zip(module.computations()) {
            same_computation(&module, &through, wanted, got, &name);
        }
        assert_eq!(
            hlo::verify::verify(&through).map_err(|e| e.to_string()),
            hlo::verify::verify(&module).map_err(|e| e.to_string()),
            "{name}"
        );
    }
}

fn same_computation(a: &Module, b: &Module, wanted: &Computation, got: &Computation, file: &str) {
    let name = |c: &Computation, id: InstructionId| c.get(id).unwrap().name.clone();
    assert_eq!(got.name, wanted.name, "{file}");
    assert_eq!(name(got, got.root()), name(wanted, wanted.root()), "{file} {}", got.name);
    let lines = |c: &Computation| c.instructions().map(|(_, i)| i.name.clone()).collect::<Vec<_>>();
    let (mut got_lines, mut wanted_lines) = (lines(got), lines(wanted));
    if a.header().schedule.is_some() {
        // The proto's own order means nothing there.
        got_lines.sort();
        wanted_lines.sort();
    }
    assert_eq!(got_lines, wanted_lines, "{file} {}", got.name);
    let by_name: HashMap<_, _> = got.instructions().map(|(_, i)| (i.name.as_str(), i)).collect();
    for (_, x) in wanted.instructions() {
        let y = by_name[x.name.as_str()];
        let place = format!("{file} {} {}", got.name, x.name);
        assert_eq!((y.opcode, &y.shape), (x.opcode, &x.shape), "{place}");
        let names = |c: &Computation, ids: &[InstructionId]| ids.iter().map(|&id| name(c, id)).collect::<Vec<_>>();
        assert_eq!(names(got, &y.operands), names(wanted, &x.operands), "{place}");
        assert_eq!(names(got, &y.control_predecessors), names(wanted, &x.control_predecessors), "{place}");
        let called = |m: &Module, i: &hlo::Instruction| -> Vec<_> {
            i.called.iter().map(|&c| m.computation(c).unwrap().name.clone()).collect()
        };
        assert_eq!(called(b, y), called(a, x), "{place}");
        let ((y_literal, y_rest), (x_literal, x_rest)) = (normal(&y.attributes), normal(&x.attributes));
        assert_eq!(y_rest, x_rest, "{place}");
        assert_eq!(y_literal, x_literal, "{place}");
        // An empty one means `replicated`.
        assert_eq!(y.attributes.sharding.is_set(), x.attributes.sharding.is_set(), "{place}");
    }
}

/// What the module carries besides its computations, without what text does not carry.
fn header(module: &Module) -> HloModuleProto {
    let mut header = module.header().clone();
    header.id = 0;
    header.stack_frame_index = None;
    header.device_assignment = None;
    header.profile_info.clear();
    header.spmd_output_sharding.take();
    header.spmd_parameters_shardings.clear();
    header.cross_program_prefetches.clear();
    header.schedule = header.schedule.map(|_| Vec::new());
    if let Some(signature) = header.host_program_shape.as_option_mut() {
        signature.parameter_names.clear();
    }
    header
}

/// An instruction's attributes, defaults in one spelling, without what text does not carry.
///
/// To the comparison of messages one that is empty and one that is not there are the same.
///
/// The literal comes apart and encoded: a NaN equals nothing.
fn normal(attributes: &HloInstructionProto) -> (Vec<u8>, HloInstructionProto) {
    let mut p = attributes.clone();
    let literal = p.literal.take().map(|l| l.encode_to_vec()).unwrap_or_default();
    if let Some(m) = p.metadata.as_option_mut() {
        m.stack_frame_id = 0;
        m.profile_info = None;
        m.profile_type.clear();
        m.size_of_generated_code_in_bytes = 0;
        m.size_of_memory_working_set_in_bytes = 0;
    }
    if let Some(config) = p.precision_config.as_option_mut()
        && config.operand_precision.iter().all(|&p| p == 0)
    {
        config.operand_precision.clear();
    }
    if p.async_execution_thread == "main" {
        p.async_execution_thread.clear();
    }
    p.feature_group_count = p.feature_group_count.max(1);
    p.batch_group_count = p.batch_group_count.max(1);
    p.custom_call_api_version = p.custom_call_api_version.max(1);
    p.statistics_viz = None;
    p.original_value = None;
    p.sparsity_config = None;
    (literal, p)
}

fn data(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/data/{name}.hlo.txt", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn forms_that_only_xla_prints_are_read() {
    let module = read(&data("forms"));
    insta::assert_snapshot!("forms", print(&module, Preset::Canonical));
    assert_eq!(print(&read(&print(&module, Preset::Canonical)), Preset::Canonical), print(&module, Preset::Canonical));
    let schedule = module.header().schedule.clone().unwrap();
    let schedule = HloScheduleProto::decode_from_slice(&schedule).unwrap();
    let lengths: Vec<_> = schedule.sequences.iter().map(|s| s.value.instruction_ids.len()).collect();
    // The fusion's computation has none.
    assert_eq!(lengths, [3, 3, 2, 11]);
    assert!(module.computations().any(|(_, c)| c.name == "fused"));
}

#[test]
fn an_optimized_module_keeps_its_schedule_and_stack_frames() {
    let text = data("optimized");
    let module = read(&text);
    // Stack frames are not printed; all else is.
    let printed = print(&module, Preset::Canonical);
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|l| l.starts_with("  ")).map(str::to_owned);
        lines.map(|l| l.split(" stack_frame_id").next().unwrap().trim_end_matches('}').to_owned()).collect()
    };
    assert_eq!(lines(&printed), lines(&text));
    let frames =
        StackFrameIndexProto::decode_from_slice(module.header().stack_frame_index.as_deref().unwrap()).unwrap();
    assert_eq!(frames.file_names, ["train.py"]);
    assert_eq!(frames.stack_frames.iter().map(|f| f.parent_frame_id).collect::<Vec<_>>(), [0, 1, 1]);
    let entry = module.entry_computation();
    let dot = entry.get(entry.find("dot_general.1").unwrap()).unwrap();
    assert_eq!(dot.attributes.metadata.stack_frame_id, 3);
}

#[test]
fn a_name_may_stand_in_several_computations_but_once_in_each() {
    let module = read(
        "HloModule m\na { x = f32[] parameter(0) }\nENTRY b { x = f32[] parameter(0)\n y = f32[] call(x), to_apply=a }",
    );
    let names: Vec<_> =
        module.computations().flat_map(|(_, c)| c.instructions().map(|(_, i)| i.name.as_str())).collect();
    assert_eq!(names, ["x", "x.1", "y"]);
    assert!(hlo::verify::verify(&module).is_ok());
}

#[test]
fn what_cannot_be_read_is_refused_by_name_and_place() {
    let body = |lines: &str| format!("HloModule m\n\nENTRY e {{\n  x = f32[4]{{0}} parameter(0)\n{lines}\n}}\n");
    let header = |attributes: &str| format!("HloModule m, {attributes}\n\nENTRY e {{ x = f32[] parameter(0) }}\n");
    let nested = format!("{}(", "(".repeat(200));
    let computations = format!("  y = f32[4]{{0}} call(x), to_apply={}", "{ z = f32[] call(), to_apply=".repeat(200));
    for (text, expected) in [
        (String::new(), "line 1, column 1: expected `HloModule`, found the end of the text"),
        ("module @jit_f {".to_owned(), "line 1, column 1: expected `HloModule`, found `module`"),
        (
            "HloModule m\n".to_owned(),
            "line 2, column 1: expected a computation marked `ENTRY`, found the end of the text",
        ),
        (
            "HloModule m\n\ne { x = f32[] parameter(0) }".to_owned(),
            "line 3, column 29: expected a computation marked `ENTRY`",
        ),
        ("HloModule m ENTRY e { }".to_owned(), "column 23: expected an instruction, found `}`"),
        (
            header("num_partitions=8"),
            "line 1, column 14: `num_partitions`: a module does not hold for how many devices",
        ),
        (header("color=3"), "line 1, column 14: `color`: a module has no such attribute here"),
        (header("is_scheduled=true, is_scheduled=true"), "column 33: `is_scheduled`: the attribute is given twice"),
        (
            header("input_output_alias={ {0}: (0, {}, never-alias) }"),
            "column 48: expected one of undefined-alias, may-alias",
        ),
        (body("  y = f32[4]{0} frobnicate(x)"), "line 5, column 17: `frobnicate`: there is no such opcode here"),
        (body("  y = f32[4]{0} negate(z)"), "line 5, column 24: `z`: no instruction of this name stands above"),
        (
            body("  x = f32[4]{0} negate(x)"),
            "line 5, column 3: `x`: another instruction above in this computation has this name",
        ),
        (body("  y = f32[4]{0} negate(f32[5] x)"), "line 5, column 24: `f32`: the operand is a f32[4], not a f32[5]"),
        (
            body("  y = f32[4]{0} negate(x), color=3"),
            "line 5, column 28: `color`: negate has no such attribute here; it takes sharding",
        ),
        (body("  y = f32[4]{0} copy(x), origin={{\"a\"}}"), "`origin`: copy has no such attribute here"),
        (body("  y = f32[4]{0} negate(x), dimensions={0}"), "`dimensions`: negate has no such attribute here"),
        (
            body("  y = f32[] reduce(x, x), dimensions={0}"),
            "line 5, column 13: `reduce`: the attribute to_apply is missing",
        ),
        (
            body("  y = f32[4]{0} call(x), to_apply=%f"),
            "line 5, column 35: `%f`: no computation of this name stands above",
        ),
        (body("  y = f32[4]{0} compare(x, x), direction=XY"), "expected one of EQ, NE, GE, GT, LE, LT, found `XY`"),
        (body("  y = f32[4]{0} constant({...})"), "line 5, column 26: `{`: the literal was elided when it was printed"),
        (
            body("  y = f32[4]{0} constant({1, 2, 3})"),
            "line 5, column 34: expected `,` and 1 more of 4 elements, found `}`",
        ),
        (body("  y = f32[4]{0} constant({1, 2, 3, x})"), "line 5, column 36: expected a number, found `x`"),
        (body("  y = s8[] constant(300)"), "line 5, column 21: `300`: s8 has no such number"),
        (body("  y = f99[] constant(0)"), "line 5, column 7: expected a shape, found `f99`"),
        (body("  y = f32[4]{0:D(D)} copy(x)"), "line 5, column 16: expected a tiling"),
        (
            body("  y = f32[4]{0} copy(x), sharding={mesh['a'=2], [{'a'}]}"),
            "line 5, column 36: expected replicated, manual",
        ),
        (
            body("  y = f32[4]{0} copy(x), metadata={op_name=\"a\" profile_type={1}}"),
            "`profile_type`: metadata of this name is not held here",
        ),
        (
            body("  y = f32[4]{0} copy(x) /*unknown fields 99*/"),
            "line 5, column 25: `/*unknown fields 99*/`: the printer met fields",
        ),
        (body("  y = f32[4]{0} copy(x), backend_config={\"a\":\"}"), "`{`: the dictionary's braces are not closed"),
        (body("  y = f32[4]{0} custom-call(x), custom_call_target=\"a"), "`\"a\n`: the string has no end on its line"),
        (
            body("  ROOT y = f32[4]{0} copy(x)\n  ROOT z = f32[4]{0} copy(x)"),
            "line 6, column 3: `ROOT`: the computation has a root already",
        ),
        (
            body("  y = f32[4]{0} all-gather(x), dimensions={0}, mode=ring"),
            "`mode`: all-gather has no such attribute here",
        ),
        (body(&format!("  y = {nested}")), "shapes are nested more than 64 deep"),
        (body(&computations), "computations are nested more than 64 deep"),
        (
            "HloModule m\nENTRY e (x: f32[]) -> f32[2] { x = f32[] parameter(0) }".to_owned(),
            "line 2, column 9: `(`: the body has a f32[] where a f32[2] is stated",
        ),
        (
            "HloModule m\nENTRY e () -> f32[] { x = f32[] parameter(0) }".to_owned(),
            "0 parameters are stated here, the body has 1",
        ),
        (
            "HloModule m\ne { x = f32[] parameter(0) }\nENTRY e { x = f32[] parameter(0) }".to_owned(),
            "line 3, column 7: `e`: another computation above has this name",
        ),
        (
            "HloModule m\nENTRY e { x = f32[] parameter(0) }\nENTRY f { x = f32[] parameter(0) }".to_owned(),
            "line 3, column 1: `ENTRY`: the module has an entry already",
        ),
    ] {
        let error = parse(&text).expect_err(&text).to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}\n{text}");
    }
}

/// Texts with much in them.
fn seeds() -> &'static [String; 5] {
    static SEEDS: OnceLock<[String; 5]> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let printed = |name| print(&Module::import(&common::module(name).1).unwrap(), Preset::Canonical);
        [
            printed("data/opcodes.hlo.pb"),
            printed("data/corners.hlo.pb"),
            printed("corpus/mlp_sgd.hlo.pb"),
            data("forms"),
            data("optimized"),
        ]
    })
}

/// What any user of a text does with it; must not panic whatever the text is.
fn exercise(text: &str) {
    match parse(text) {
        Err(error) => {
            assert!(error.line > 0 && error.column > 0 && error.line <= text.lines().count() + 1, "{error}");
            assert!(error.token.chars().count() <= 43, "{error}");
        }
        Ok(module) => {
            let _ = hlo::verify::verify(&module);
            let printed = print(&module, Preset::Canonical);
            assert_eq!(Module::import(&module.export()).map(|m| m.export()).unwrap(), module.export());
            assert_eq!(
                print(&parse(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}")), Preset::Canonical),
                printed
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_texts_do_not_panic(
        which in 0usize..5,
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
        bytes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        swaps in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..3),
    ) {
        let seed = &seeds()[which];
        // Tokens, and what stands between them.
        let mut tokens: Vec<&str> = seed.split_inclusive([' ', '(', ')', '{', '}', ',', '=', '[', ']', ':']).collect();
        for (a, b) in swaps {
            let (a, b) = (a.index(tokens.len()), b.index(tokens.len()));
            tokens.swap(a, b);
        }
        let mut text = tokens.concat().into_bytes();
        for (at, byte) in bytes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        if truncate {
            text.truncate(cut.index(text.len()));
        }
        exercise(&String::from_utf8_lossy(&text));
    }

    #[test]
    fn random_tokens_do_not_panic(tokens in proptest::collection::vec(0usize..40, 0..200)) {
        const TOKENS: [&str; 40] = [
            "HloModule m\n", "ENTRY", "%e", "{", "}", "(", ")", "[", "]", ",", "=", "->", ":", "f32[2]{0}", "f32[]", "x",
            "%x", "parameter(0)", "add(x, x)", "constant(", "{...}", "1", "-nan(0x1)", "\"", "\\", "/*", "*/", "//", "\n",
            "metadata={", "sharding={", "devices=[2]<=[2]", "ROOT", "to_apply={", "é", "window={size=2", "T(8,128)",
            "is_scheduled=true", "negate-start(x)", "frontend_attributes={a=",
        ];
        let text: Vec<_> = tokens.iter().map(|&t| TOKENS[t]).collect();
        exercise(&format!("HloModule m\n\nENTRY e {{\n  x = f32[2]{{0}} parameter(0)\n  y = {}", text.join(" ")));
        exercise(&text.concat());
    }
}
