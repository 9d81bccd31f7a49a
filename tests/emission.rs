//! Control emitted for other compilers: the same control, and neutral as well, wherever it is compiled.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../passes/tests/common/mod.rs"]
mod common;
#[path = "support/controlled.rs"]
mod controlled;
#[path = "support/corpus.rs"]
mod corpus;

use common::{Array, Compiled, Contraction};
use controlled::Controlled;
use entropic::target::Platform;
use hlo::{Module, Opcode};
use passes::policy::ARTICLE_POLICY;
use passes::{Policy, inject};

/// Steps in which several tensors have the same dimensions, with clipping, narrow types and scanned layers among them.
const CASES: &[&str] = &["mlp_adamw_clip", "mlp_bf16params_master", "gpttied_unroll_adamw", "gptunroll_lion"];

/// Of large steps the policy that gates alone: each is compiled for four targets, and what laws add is the same in all steps.
fn policies(name: &str) -> Vec<Policy> {
    let article = (!name.starts_with("gpt")).then(|| Policy::parse(ARTICLE_POLICY).unwrap());
    std::iter::once(Policy::default()).chain(article).collect()
}

/// Where an instruction set has no FMA, states are compared bit for bit, see `neutral.rs`.
const EXACT: Contraction = if cfg!(target_arch = "x86_64") { Contraction::Impossible } else { Contraction::Allowed };

fn same(a: &Array, b: &Array) -> bool {
    if EXACT == Contraction::Impossible || a.element_type != pjrt::ElementType::F32 {
        return a == b;
    }
    let (a, b) = (a.floats(), b.floats());
    let largest = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    a.iter().zip(&b).all(|(x, y)| (x - y).abs() <= 1e-4 * largest + 1e-12)
}

#[test]
fn control_for_gpu_and_tpu_is_neutral_and_decides_as_on_cpu() {
    for name in CASES {
        let case = corpus::case(name);
        let plain = Compiled::with(&case.module, EXACT);
        for policy in policies(name) {
            let [mut cpu, mut cuda, mut tpu] = [Platform::Cpu, Platform::Cuda, Platform::Tpu]
                .map(|p| Controlled::emitted(&case.module, &policy, p.emission(), EXACT).unwrap());
            let mut inputs = case.inputs.clone();
            for step in 0..5 {
                let expected = plain.run(&inputs);
                for (platform, controlled) in [("cpu", &mut cpu), ("cuda", &mut cuda), ("tpu", &mut tpu)] {
                    let found = controlled.run(&inputs);
                    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        assert!(same(found, expected), "{name} for {platform}, step {step}: output {i} moved");
                    }
                }
                for (platform, other) in [("cuda", &cuda), ("tpu", &tpu)] {
                    let (a, b) = (cpu.told(), other.told());
                    assert_eq!(a.applied, b.applied, "{name} for {platform}, step {step}");
                    for (i, (a, b)) in a.tensors.iter().zip(&b.tensors).enumerate() {
                        let close = match (a.entropy, b.entropy) {
                            (Some(a), Some(b)) => (a - b).abs() <= 3e-5,
                            (a, b) => a.is_none() && b.is_none(),
                        };
                        assert!(close, "{name} for {platform}, tensor {i}: {:?} for {:?}", b.entropy, a.entropy);
                    }
                }
                inputs = case.next(&inputs, &expected);
            }
        }
    }
}

fn emitted(name: &str, platform: Platform) -> Module {
    let mut module = corpus::case(name).module.clone();
    inject(&mut module, &Policy::default(), platform.emission()).unwrap();
    module
}

/// How many instructions of ours have this opcode.
fn count(module: &Module, opcode: Opcode) -> usize {
    let ours = |i: &&hlo::Instruction| i.opcode == opcode && i.name.starts_with("entropic.");
    module.entry_computation().instructions().map(|(_, i)| i).filter(ours).count()
}

#[test]
fn for_gpu_tensors_of_one_shape_are_measured_by_one_reduce_and_gated_by_one_predicate() {
    let shapes: std::collections::BTreeSet<Vec<i64>> = {
        let case = corpus::case("gpttied_unroll_adamw");
        let mut module = case.module.clone();
        let injection = inject(&mut module, &Policy::default(), Platform::Cuda.emission()).unwrap();
        injection.step.controlled().map(|(p, _)| p.shape.dims().to_vec()).collect()
    };
    let cuda = emitted("gpttied_unroll_adamw", Platform::Cuda);
    let variadic =
        cuda.entry_computation().instructions().filter(|(_, i)| i.opcode == Opcode::Reduce && i.operands.len() == 4);
    assert_eq!(variadic.count(), shapes.len());
    let barriers: Vec<_> = cuda.entry_computation().instructions().map(|(_, i)| i).collect();
    let barriers: Vec<_> = barriers.iter().filter(|i| i.opcode == Opcode::OptimizationBarrier).collect();
    assert!(!barriers.is_empty());
    // Layouts count: a predicate has that of the states it is for.
    let twice = barriers.iter().enumerate().find(|(n, i)| barriers.iter().take(*n).any(|other| other.shape == i.shape));
    assert!(twice.is_none(), "{twice:?} is there twice");
}

#[test]
fn elsewhere_no_barrier_and_no_stack_is_emitted() {
    for platform in [Platform::Cpu, Platform::Tpu] {
        let module = emitted("gpttied_unroll_adamw", platform);
        assert_eq!(count(&module, Opcode::OptimizationBarrier), 0);
        let stacks =
            module.entry_computation().instructions().filter(|(_, i)| i.name.starts_with("entropic.stack")).count();
        assert_eq!(stacks, 0);
    }
}

/// Inputs that the optimized program copies whole before it writes over them.
fn copied_inputs(program: &Compiled) -> usize {
    let module = Module::import(&program.optimized()).unwrap();
    let entry = module.entry_computation();
    let is_input = |id: &hlo::InstructionId| entry.get(*id).is_some_and(|i| i.opcode == Opcode::Parameter);
    let copies =
        entry.instructions().map(|(_, i)| i).filter(|i| i.opcode == Opcode::Copy && i.operands.iter().all(is_input));
    copies.count()
}

#[test]
fn on_cpu_no_state_of_the_step_is_copied_before_it_is_updated() {
    for name in ["mlp_adamw_clip", "gpttied_unroll_adamw"] {
        let case = corpus::case(name);
        let plain = copied_inputs(&Compiled::new(&case.module));
        let controlled = copied_inputs(&Compiled::new(&emitted(name, Platform::Cpu)));
        // The controller's own: its state and its counters.
        assert!(controlled <= plain + 2, "{name}: {plain} copies of inputs, {controlled} with control");
    }
}
