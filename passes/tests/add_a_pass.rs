//! The pass of `docs/add-a-pass.md`, and that the excerpts there are the code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "../../tests/support/corpus.rs"]
mod corpus;
#[path = "add_a_pass/count_zeros.rs"]
#[allow(unreachable_pub, reason = "it reads as it would in passes/src")]
mod count_zeros;

use std::path::Path;

use common::{Array, Compiled, Contraction};
use count_zeros::{CountZeros, zeros};
use hlo::Module;
use hlo::text::{Preset, print};
use passes::expose::{View, expose};
use passes::inject::Discover;
use passes::inline_calls::InlineCalls;
use passes::loops::{EnterLoop, LeaveLoop};
use passes::{Context, Pipeline, PipelineError};

/// Discovery and the pass; returns what discovery found.
fn counted(module: &mut Module, tolerance: f32) -> Result<Context, PipelineError> {
    let mut context = Context::default();
    let pipeline = Pipeline::new().with(InlineCalls).with(Discover).with(CountZeros { tolerance });
    pipeline.run(module, &mut context, &mut |_, _, _| {})?;
    Ok(context)
}

#[test]
fn counts_are_those_of_the_reference() {
    for name in ["mlp_adam", "mlp_bf16compute_adamw", "gptunroll_lion"] {
        for tolerance in [0.0, 1e-3] {
            let case = corpus::case(name);
            let mut module = case.module.clone();
            let context = counted(&mut module, tolerance).unwrap();
            // The same program returns the gradients themselves, for the host to count.
            let exposed = expose(&mut module, context.step().unwrap(), View::Preclip).unwrap();
            let outputs = Compiled::new(&module).run(&case.inputs);
            let found = outputs[exposed[0].output - 1].ints();
            let expected: Vec<i32> = exposed.iter().map(|e| zeros(&floats(&outputs[e.output]), tolerance)).collect();
            assert_eq!(found, expected, "{name} with {tolerance}");
            assert!(tolerance == 0.0 || found.iter().any(|&count| count > 0), "{name}: nothing is small");
        }
    }
}

fn floats(array: &Array) -> Vec<f32> {
    match array.element_type {
        pjrt::ElementType::F32 => array.floats(),
        pjrt::ElementType::Bf16 => {
            array.bytes.chunks_exact(2).map(|two| half::bf16::from_le_bytes([two[0], two[1]]).to_f32()).collect()
        }
        other => panic!("a gradient of {other:?}"),
    }
}

#[test]
fn every_output_of_the_step_keeps_its_bits() {
    let case = corpus::case("mlp_adamw_clip");
    let mut module = case.module.clone();
    counted(&mut module, 0.0).unwrap();
    let [plain, counting] =
        [&case.module, &module].map(|m| Compiled::with(m, Contraction::Impossible).run(&case.inputs));
    assert_eq!(plain, counting[..plain.len()]);
    assert_eq!(counting.len(), plain.len() + 1);
}

#[test]
fn of_a_step_inside_a_loop_each_step_is_told() {
    let mut module = corpus::module("multistep_loop");
    let pipeline = Pipeline::new().with(InlineCalls).with(Discover).with(EnterLoop);
    let pipeline = pipeline.with(CountZeros { tolerance: 0.0 }).with(LeaveLoop);
    pipeline.run(&mut module, &mut Context::default(), &mut |_, _, _| {}).unwrap();
    let counts = module.entry_computation().root_instruction().unwrap().shape.tuple_elements().last();
    assert_eq!(counts.unwrap().to_string(), "s32[2,4]");
}

#[test]
fn a_step_inside_a_loop_that_is_not_entered_is_refused() {
    let error = counted(&mut corpus::module("multistep_loop"), 0.0).unwrap_err();
    let PipelineError::Failed { pass: "count-zeros", source } = error else { panic!("{error}") };
    assert!(source.to_string().contains("`enter-loop`"), "{source}");
}

#[test]
fn what_is_emitted() {
    let mut module = corpus::module("adv_single_param");
    counted(&mut module, 0.0).unwrap();
    let text = print(&module, Preset::Snapshot);
    let emitted: Vec<&str> = text.lines().filter(|line| line.contains("zeros")).collect();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("count-zeros", emitted.join("\n")));
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Lines without indentation, and no empty ones.
fn bare(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// Fails where a file does not hold the pieces of an excerpt, in this order.
fn assert_holds(file: &str, excerpt: &str) {
    let code = bare(&std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}")));
    let mut rest = code.as_str();
    for piece in bare(excerpt).split("// ...").map(str::trim).filter(|piece| !piece.is_empty()) {
        let Some((_, after)) = rest.split_once(piece) else { panic!("{file} does not hold, in this order:\n{piece}") };
        rest = after;
    }
}

/// A block of Rust in the walkthrough is an excerpt of the file that the text before it links last; `// ...` stands for
/// what is left out.
#[test]
fn the_excerpts_of_the_walkthrough_are_the_code() {
    let text = std::fs::read_to_string(root().join("docs/add-a-pass.md")).unwrap();
    let mut checked = 0;
    let (mut file, mut excerpt): (String, Option<String>) = (String::new(), None);
    for line in text.lines() {
        match (&mut excerpt, line) {
            (Some(code), "```") => {
                assert_holds(&file, code);
                (checked, excerpt) = (checked + 1, None);
            }
            (Some(code), _) => *code += &format!("{line}\n"),
            (None, "```rust") => excerpt = Some(String::new()),
            (None, _) => {
                let linked = line.rsplit_once("](../").and_then(|(_, link)| link.split_once(')'));
                file = linked.map_or(file, |(linked, _)| linked.to_owned());
            }
        }
    }
    assert!(checked >= 15, "only {checked} excerpts");
}
