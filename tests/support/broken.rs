//! Programs that a compiler rejects, or dies of: each is a small valid step with one edit.
//!
//! The step takes `w` f32[2,8] and `tokens` s32[2,8], and returns the next `w` and a loss; it fits the bundle of
//! `tests/cli/tiny.rs`.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of this module")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use buffa::Message;
use hlo::build::Builder;
use hlo::proto::{HloInstructionProto, HloModuleProto, OpSharding, op_sharding};
use hlo::{AliasKind, Module, Opcode, PrimitiveType, Shape};

/// A program that is none.
pub struct Broken {
    pub name: &'static str,
    /// A serialized `HloModuleProto`, or what claims to be one.
    pub code: Vec<u8>,
    /// What an error must say.
    pub says: &'static [&'static str],
    /// Who can tell.
    pub found_by: FoundBy,
}

/// Who can tell that a program is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundBy {
    /// Import or verifier: every command refuses it.
    Rules,
    /// Only the compiler, and that by an error: commands that compile refuse it.
    Compiler,
    /// Only the compiler, which does not survive it.
    Death,
}

const ROWS: i64 = 2;
const WINDOW: i64 = 8;

/// The valid step.
pub fn step() -> Module {
    let mut module = Module::new("tiny");
    let add = Builder::reducer(&mut module, "add", Opcode::Add, PrimitiveType::F32).unwrap();
    let mut b = Builder::at_entry(&mut module);
    let w = b.parameter("w", Shape::array(PrimitiveType::F32, &[ROWS, WINDOW])).unwrap();
    let tokens = b.parameter("tokens", Shape::array(PrimitiveType::S32, &[ROWS, WINDOW])).unwrap();
    let data = b.named("data").convert(tokens, PrimitiveType::F32).unwrap();
    let share = b.named("share").constant_f32(1.0 / 4096.0).unwrap();
    let shares = b.named("shares").broadcast_scalar_like(share, w).unwrap();
    let curvature = b.named("curvature").multiply(data, shares).unwrap();
    let g = b.named("g").multiply(curvature, w).unwrap();
    let rate = b.named("rate").constant_f32(0.1).unwrap();
    let rates = b.named("rates").broadcast_scalar_like(rate, w).unwrap();
    let u = b.named("u").multiply(rates, g).unwrap();
    let next = b.named("next").subtract(w, u).unwrap();
    let products = b.named("products").multiply(g, w).unwrap();
    let zero = b.named("zero").constant_f32(0.0).unwrap();
    let loss = b.named("loss").reduce_all(products, zero, add).unwrap();
    module.set_outputs(&[next, loss]).unwrap();
    module.alias(0, 0, AliasKind::May).unwrap();
    hlo::verify::verify(&module).unwrap();
    module
}

/// An instruction of the entry computation.
pub fn at<'m>(module: &'m mut HloModuleProto, name: &str) -> &'m mut HloInstructionProto {
    let entry = module.computations.iter_mut().find(|c| c.id == module.entry_computation_id).unwrap();
    entry.instructions.iter_mut().find(|i| i.name == name).unwrap()
}

fn id(module: &mut HloModuleProto, name: &str) -> i64 {
    at(module, name).id
}

/// Its place in the entry computation, which is the last.
fn place(module: &HloModuleProto, name: &str) -> usize {
    module.computations.last().unwrap().instructions.iter().position(|i| i.name == name).unwrap()
}

fn broken(
    name: &'static str,
    found_by: FoundBy,
    says: &'static [&'static str],
    edit: impl FnOnce(&mut HloModuleProto),
) -> Broken {
    let mut module = step().to_proto();
    edit(&mut module);
    Broken { name, code: module.encode_to_vec(), says, found_by }
}

/// Makes `curvature` a custom call.
pub fn custom_call(module: &mut HloModuleProto, target: &str, api_version: i32) {
    let call = at(module, "curvature");
    call.opcode = "custom-call".to_owned();
    call.custom_call_target = target.to_owned();
    call.custom_call_api_version = api_version;
}

/// All of them.
pub fn all() -> Vec<Broken> {
    use FoundBy::{Compiler, Death, Rules};
    vec![
        broken("a shape that does not follow", Rules, &["%next", "f32[2,9]"], |m| {
            at(m, "next").shape.get_or_insert_default().dimensions[1] = 9;
        }),
        broken("operands of two types", Rules, &["%g", "s32[2,8]"], |m| {
            let tokens = id(m, "tokens");
            at(m, "g").operand_ids[1] = tokens;
        }),
        broken("a negative dimension", Rules, &["%rates"], |m| {
            at(m, "rates").shape.get_or_insert_default().dimensions[0] = -2;
        }),
        broken("a shape of no type", Rules, &["%g"], |m| {
            at(m, "g").shape.get_or_insert_default().element_type = 99.into();
        }),
        broken("no shape", Rules, &["%g"], |m| at(m, "g").shape = Default::default()),
        broken("no layout", Rules, &["%g", "layout"], |m| {
            at(m, "g").shape.get_or_insert_default().layout = Default::default();
        }),
        broken("a layout of other dimensions", Rules, &["%g", "layout"], |m| {
            at(m, "g").shape.get_or_insert_default().layout.get_or_insert_default().minor_to_major = vec![5, 0];
        }),
        broken("a stale tuple shape", Rules, &["%outputs"], |m| {
            at(m, "outputs").shape.get_or_insert_default().tuple_shapes.pop();
        }),
        broken("a stale signature of the computation", Rules, &["program_shape"], |m| {
            let entry = m.computations.last_mut().unwrap();
            entry.program_shape.get_or_insert_default().parameters.pop();
        }),
        broken("a stale signature of the module", Rules, &["host_program_shape"], |m| {
            m.host_program_shape.get_or_insert_default().result.get_or_insert_default().tuple_shapes.pop();
        }),
        broken("two instructions of one id", Rules, &["the id", "taken"], |m| {
            let taken = id(m, "u");
            at(m, "g").id = taken;
        }),
        broken("two computations of one id", Rules, &["the id", "taken"], |m| {
            m.computations[0].id = m.computations[1].id;
        }),
        broken("two instructions of one name", Rules, &["V004", "u"], |m| at(m, "g").name = "u".to_owned()),
        broken("an id that XLA aborts on", Rules, &["V006"], |m| {
            let old = id(m, "g");
            let new = (old >> 32 << 32) | 0x7fff_ffff;
            at(m, "g").id = new;
            for user in ["u", "products"] {
                at(m, user).operand_ids.iter_mut().filter(|o| **o == old).for_each(|o| *o = new);
            }
        }),
        broken("an operand that does not exist", Rules, &["refers to", "does not exist"], |m| {
            at(m, "g").operand_ids[0] = 999;
        }),
        broken("a root that does not exist", Rules, &["refers to", "does not exist"], |m| {
            m.computations.last_mut().unwrap().root_id = 999;
        }),
        broken("an entry that does not exist", Rules, &["refers to", "does not exist"], |m| {
            m.entry_computation_id = 999;
        }),
        broken("a use before the definition", Rules, &["V008"], |m| {
            let (g, u) = (place(m, "g"), place(m, "u"));
            m.computations.last_mut().unwrap().instructions.swap(g, u);
        }),
        broken("operands in a circle", Rules, &["V008"], |m| {
            let u = id(m, "u");
            at(m, "g").operand_ids[0] = u;
        }),
        broken("a callee after its caller", Rules, &["V013"], |m| m.computations.swap(0, 1)),
        broken("a computation that calls itself", Rules, &["V014"], |m| {
            at(m, "loss").called_computation_ids[0] = m.entry_computation_id;
        }),
        broken("a reduction by nothing", Rules, &["%loss"], |m| at(m, "loss").called_computation_ids.clear()),
        broken("a reduction over a dimension that is not there", Rules, &["%loss"], |m| {
            at(m, "loss").dimensions[0] = 7;
        }),
        broken("a broadcast into nowhere", Rules, &["%rates"], |m| at(m, "rates").dimensions = vec![3]),
        broken("too few operands", Rules, &["%g"], |m| _ = at(m, "g").operand_ids.pop()),
        broken("a literal without its numbers", Rules, &["%share"], |m| {
            at(m, "share").literal.get_or_insert_default().f32s.clear();
        }),
        broken("no literal", Rules, &["%share"], |m| at(m, "share").literal = Default::default()),
        broken("a parameter number too many", Rules, &["V016"], |m| at(m, "tokens").parameter_number = 5),
        broken("an alias of a parameter that is not there", Rules, &["V020"], |m| {
            m.input_output_alias.get_or_insert_default().entries[0].parameter_number = 9;
        }),
        broken("an alias of an output that is not there", Rules, &["V021"], |m| {
            m.input_output_alias.get_or_insert_default().entries[0].output_shape_index = vec![9];
        }),
        broken("a parameter that is aliased twice", Rules, &["V022"], |m| {
            let entries = &mut m.input_output_alias.get_or_insert_default().entries;
            let mut second = entries[0].clone();
            second.output_shape_index = vec![1];
            entries.push(second);
        }),
        broken("an operation that does not exist", Compiler, &["frobnicate"], |m| {
            at(m, "curvature").opcode = "frobnicate".to_owned();
        }),
        broken("a custom call that nobody knows", Compiler, &["no_such_kernel"], |m| {
            custom_call(m, "no_such_kernel", 2);
        }),
        broken("a typed custom call that nobody knows", Compiler, &["no_such_ffi"], |m| {
            custom_call(m, "no_such_ffi", 4);
        }),
        broken("a custom call without a target", Compiler, &["compile"], |m| custom_call(m, "", 2)),
        broken("a sharding for devices that are not there", Compiler, &["as many devices"], |m| {
            at(m, "g").sharding = OpSharding {
                r#type: op_sharding::Type::OTHER.into(),
                tile_assignment_dimensions: vec![7],
                tile_assignment_devices: vec![99, -3],
                ..Default::default()
            }
            .into();
        }),
        broken("more elements than can be counted", Compiler, &["overflow"], |m| {
            // 2^31 rows of 2^31 columns, all of the learning rate, summed up.
            let huge = Shape::array(PrimitiveType::F32, &[1 << 31, 1 << 31]).to_proto();
            let products = place(m, "products");
            let entry = m.computations.last_mut().unwrap();
            let rate = entry.instructions.iter().find(|i| i.name == "rate").unwrap().id;
            let made = HloInstructionProto {
                name: "huge".to_owned(),
                opcode: "broadcast".to_owned(),
                shape: huge.into(),
                operand_ids: vec![rate],
                id: (entry.id << 32) | 500,
                ..Default::default()
            };
            entry.instructions.insert(products, made);
            let huge = id(m, "huge");
            at(m, "loss").operand_ids[0] = huge;
        }),
        broken("a schedule of other instructions", Compiler, &["compile"], |m| {
            m.schedule = Some(vec![0x0a, 0x06, 0x08, 0x01, 0x12, 0x02, 0x0a, 0x63]);
        }),
        broken("a custom call of XLA's own without its tuple", Death, &["Expected a tuple shape"], |m| {
            custom_call(m, "TopK", 4);
        }),
        broken("a sharding of two values", Death, &["exactly one operand"], |m| custom_call(m, "Sharding", 0)),
        broken("a dynamic shape without sizes", Death, &["dynamic_dims"], |m| custom_call(m, "SliceToDynamic", 0)),
        broken("random bits without the state of their generator", Death, &["Expected a tuple shape"], |m| {
            let bits = at(m, "curvature");
            bits.opcode = "rng-bit-generator".to_owned();
            bits.operand_ids.truncate(1);
        }),
        broken("the number of a partition as a matrix", Death, &["partition-id"], |m| {
            let id = at(m, "curvature");
            id.opcode = "partition-id".to_owned();
            id.operand_ids.clear();
        }),
    ]
}
