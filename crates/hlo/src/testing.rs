//! What tests do to modules to see whether something relies on what it must not.
//!
//! Names and metadata are hints of a front end: an analysis gives the same answer
//! without them. [`Module::strip_metadata`](crate::Module::strip_metadata) takes
//! the metadata, [`shuffle_names`] the names.

use crate::ir::{Computation, Module, Names};
use crate::proto::ProgramShapeProto;

/// Gives every instruction and computation another name, in an order drawn from `seed`.
///
/// Parameter names in signatures follow. Computations whose name begins with `xla.sdy` keep it: to
/// the partitioner that name means something. The same seed gives the same names.
pub fn shuffle_names(module: &mut Module, seed: u64) {
    let count = module.instruction_count() + module.arena.len();
    let mut names = shuffled(count, seed).into_iter().map(|n| format!("v{n}"));
    let mut rename = |name: &mut String| {
        if let Some(new) = names.next() {
            *name = new;
        }
    };
    for computation in &mut module.arena {
        if !computation.name.starts_with("xla.sdy") {
            rename(&mut computation.name);
        }
        for id in computation.order.clone() {
            if let Some(instruction) = computation.get_mut(id) {
                rename(&mut instruction.name);
            }
        }
        let parameters = parameter_names(computation);
        if let Some(signature) = computation.header.program_shape.as_option_mut() {
            follow(signature, &parameters);
        }
    }
    let parameters = parameter_names(module.entry_computation());
    if let Some(signature) = module.header.host_program_shape.as_option_mut() {
        follow(signature, &parameters);
    }
    module.names = Names::of(&module.arena);
}

fn parameter_names(computation: &Computation) -> Vec<String> {
    computation.parameters().into_iter().filter_map(|id| Some(computation.get(id)?.name.clone())).collect()
}

fn follow(signature: &mut ProgramShapeProto, parameters: &[String]) {
    for (name, new) in signature.parameter_names.iter_mut().zip(parameters) {
        name.clone_from(new);
    }
}

/// 0 to `count` in an order drawn from `seed` (Fisher and Yates; splitmix64).
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut numbers: Vec<_> = (0..count).collect();
    let mut state = seed;
    for i in (1..count).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let bound = i as u64 + 1;
        numbers.swap(i, usize::try_from(z % bound).unwrap_or(i));
    }
    numbers
}
