//! Steps over a mesh, placed on the devices of the CPU plugin.

#![allow(unreachable_pub, reason = "a module of one test binary")]

use std::fs;
use std::path::Path;

use hlo::partitioning::{Partitioning, RESULT_SHARDING, Tiles};
use hlo::proto::OpSharding;
use hlo::{InstructionId, Module, Opcode};
use passes::layout::ArrayKind;
use passes::step::StateRole;
use passes::{InjectOptions, Injection, Policy, Telemetry, TrainStep, inject};

use crate::common::devices::{Over, Spread};
use crate::common::{Array, Compiled, Contraction, Random};

/// Steps over a mesh; each also as `NAME_gspmd`, without the word for Shardy.
pub const STEPS: &[&str] = &[
    "mlp_dp",
    "mlp_fsdp",
    "mlp_tp",
    "mlp_open",
    "gpt_fsdp",
    "gpt_tp",
    "mlp_dp_gspmd",
    "mlp_fsdp_gspmd",
    "mlp_tp_gspmd",
    "gpt_fsdp_gspmd",
    "gpt_tp_gspmd",
];

/// Labels and tokens are below this.
const CLASSES: u64 = 16;

pub fn module(name: &str) -> Module {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus_mesh");
    Module::import(&fs::read(folder.join(format!("{name}.hlo.pb"))).unwrap()).unwrap()
}

/// The step, found in a copy of the module.
pub fn found(module: &Module) -> TrainStep {
    inject(&mut module.clone(), &Policy::monitor(), InjectOptions::default()).unwrap().step
}

/// The same step for one device: without shardings.
pub fn unsplit(module: &Module) -> Module {
    let mut single = module.clone();
    let entry = single.entry();
    let calls: Vec<(InstructionId, InstructionId)> = single
        .entry_computation()
        .instructions()
        .filter(|(_, i)| i.opcode == Opcode::CustomCall)
        .filter(|(_, i)| [RESULT_SHARDING, "Sharding"].contains(&i.attributes.custom_call_target.as_str()))
        .map(|(id, i)| (id, i.operands[0]))
        .collect();
    // Innermost first, so that calls of calls end at the value.
    for &(call, value) in &calls {
        single.replace_uses(entry, &[(call, value)].into(), &Default::default()).unwrap();
    }
    for (call, _) in calls {
        single.entry_computation_mut().get_mut(call).unwrap().attributes_mut().custom_call_has_side_effect = false;
    }
    single.remove_dead_instructions(entry).unwrap();
    let ids: Vec<_> = single.entry_computation().order().to_vec();
    for id in ids {
        let instruction = single.entry_computation_mut().get_mut(id).unwrap();
        instruction.attributes_mut().sharding = Default::default();
        instruction.attributes_mut().frontend_attributes = Default::default();
    }
    single
}

/// Inputs of a step for one device, by parameter number: what trains is random, the rest of the state zero.
pub fn first_inputs(module: &Module, step: &TrainStep, seed: u64) -> Vec<Array> {
    let entry = module.entry_computation();
    let mut random = Random::new(seed);
    let parameters = entry.parameters();
    let made = parameters.iter().enumerate().map(|(number, &id)| {
        let shape = &entry.get(id).unwrap().shape;
        let role = step.state(number).map(|s| s.role);
        let count = shape.num_elements() as usize;
        match shape.element_type() {
            hlo::PrimitiveType::S32 => Array::s32(
                shape.dims(),
                &(0..count)
                    .map(|_| if role.is_some() { 0 } else { (random.bits() % CLASSES) as i32 })
                    .collect::<Vec<_>>(),
            ),
            _ => {
                let width = match role {
                    None => 1.0,
                    Some(StateRole::Parameter) => 0.3,
                    Some(_) => 0.0,
                };
                Array::f32(shape.dims(), &(0..count).map(|_| (width * random.normal()) as f32).collect::<Vec<_>>())
            }
        }
    });
    made.collect()
}

/// The next inputs: states from outputs, new data.
pub fn next_inputs(module: &Module, step: &TrainStep, outputs: &[Array], seed: u64) -> Vec<Array> {
    let mut inputs = first_inputs(module, step, seed);
    for state in &step.states {
        inputs[state.input] = outputs[state.output].clone();
    }
    inputs
}

/// A program on the devices of a mesh.
pub struct Placed {
    program: Spread,
    inputs: Vec<Option<OpSharding>>,
    partitions: usize,
}

impl Placed {
    pub fn new(module: &Module, contraction: Contraction) -> Self {
        let entry = module.entry_computation();
        let sharding = |&id: &InstructionId| entry.get(id).unwrap().attributes.sharding.as_option().cloned();
        Self {
            program: Spread::with(module, Over::partitions_of(module), contraction),
            inputs: entry.parameters().iter().map(sharding).collect(),
            partitions: Partitioning::of(module).unwrap().unwrap().partitions,
        }
    }

    pub fn optimized(&self) -> Module {
        Module::import(&self.program.optimized()).unwrap()
    }

    /// Whole inputs, one list per device with its parts.
    pub fn place(&self, inputs: &[Array], first: usize) -> Vec<Vec<Array>> {
        let part = |device: usize, (number, array): (usize, &Array)| {
            let Some(sharding) = &self.inputs[first + number] else { return array.clone() };
            let tiles = Tiles::of(sharding, array.dims.len(), self.partitions).unwrap();
            part(array, tiles.counts(), &tiles.tile_of(device).unwrap())
        };
        (0..self.partitions).map(|d| inputs.iter().enumerate().map(|i| part(d, i)).collect()).collect()
    }

    /// Runs it on parts.
    pub fn run(&self, inputs: &[Vec<Array>]) -> Vec<Vec<Array>> {
        self.program.run(inputs)
    }
}

/// One tile of an array.
fn part(array: &Array, counts: &[usize], tile: &[usize]) -> Array {
    let dims: Vec<usize> = array.dims.iter().map(|&d| d as usize).collect();
    let width = array.bytes.len() / dims.iter().product::<usize>().max(1);
    let size: Vec<usize> = dims.iter().zip(counts).map(|(d, c)| d / c).collect();
    let mut bytes = Vec::new();
    for index in 0..size.iter().product::<usize>() {
        let (mut rest, mut offset, mut stride) = (index, 0, 1);
        for k in (0..dims.len()).rev() {
            offset += (tile[k] * size[k] + rest % size[k]) * stride;
            rest /= size[k];
            stride *= dims[k];
        }
        bytes.extend_from_slice(&array.bytes[offset * width..(offset + 1) * width]);
    }
    Array { element_type: array.element_type, dims: size.iter().map(|&d| d as i64).collect(), bytes }
}

/// A controlled step on a mesh, with the controller's arrays.
pub struct Controlled {
    pub program: Placed,
    pub injection: Injection,
    own: Vec<Vec<Array>>,
    pub told: Option<Telemetry>,
}

impl Controlled {
    pub fn new(module: &Module, policy: &Policy, options: InjectOptions, contraction: Contraction) -> Self {
        let mut module = module.clone();
        let injection = inject(&mut module, policy, options).unwrap();
        let program = Placed::new(&module, contraction);
        let layout = &injection.layout;
        let own = own_arrays(&injection, policy);
        let first = layout.inputs.first().unwrap().parameter;
        let own = program.place(&own, first);
        Self { program, injection, own, told: None }
    }

    /// Runs one step on parts; returns the step's own outputs on each device.
    pub fn run(&mut self, inputs: &[Vec<Array>]) -> Vec<Vec<Array>> {
        let lists: Vec<_> = inputs.iter().zip(&self.own).map(|(i, own)| [i.as_slice(), own].concat()).collect();
        let mut outputs = self.program.run(&lists);
        let layout = &self.injection.layout;
        for (device, outputs) in outputs.iter_mut().enumerate() {
            let added = outputs.split_off(outputs.len() - layout.outputs.len());
            for (said, value) in layout.outputs.iter().zip(added) {
                if said.kind == ArrayKind::Telemetry {
                    let told = Telemetry::decode(layout, &value.floats()).unwrap();
                    if device > 0 {
                        assert_eq!(format!("{:?}", self.told.as_ref().unwrap()), format!("{told:?}"));
                    }
                    self.told = Some(told);
                    continue;
                }
                let slot = layout.inputs.iter().position(|i| i.kind == said.kind && i.copy_of == said.copy_of);
                let slot = &mut self.own[device][slot.unwrap()];
                assert_eq!(slot.dims, value.dims, "{said:?}");
                *slot = value;
            }
        }
        outputs
    }
}

fn own_arrays(injection: &Injection, policy: &Policy) -> Vec<Array> {
    let layout = &injection.layout;
    let made = layout.inputs.iter().map(|input| match input.kind {
        ArrayKind::Policy => Array::vector(&layout.policy_vector(policy).unwrap()),
        ArrayKind::State => Array::vector(&layout.initial_state()),
        ArrayKind::Counters => Array::s32(&input.dims, &layout.initial_counters()),
        ArrayKind::Snapshot => {
            let of = injection.step.state(input.copy_of.unwrap()).unwrap();
            // The step's own shapes are those of its body; the copy's are the program's.
            let width = of.shape.byte_size() / of.shape.num_elements();
            let bytes = vec![0; width as usize * input.dims.iter().product::<i64>() as usize];
            Array { element_type: input.element_type.parse().unwrap(), dims: input.dims.clone(), bytes }
        }
        ArrayKind::Telemetry => panic!("telemetry as an input"),
    });
    made.collect()
}

/// A controlled step on one device.
pub struct Single {
    program: Compiled,
    injection: Injection,
    own: Vec<Array>,
    pub told: Option<Telemetry>,
}

impl Single {
    pub fn new(module: &Module, policy: &Policy) -> Self {
        let mut module = module.clone();
        let injection = inject(&mut module, policy, InjectOptions::default()).unwrap();
        let own = own_arrays(&injection, policy);
        Self { program: Compiled::new(&module), injection, own, told: None }
    }

    pub fn run(&mut self, inputs: &[Array]) -> Vec<Array> {
        let layout = &self.injection.layout;
        let mut outputs = self.program.run(&[inputs, &self.own].concat());
        let added = outputs.split_off(outputs.len() - layout.outputs.len());
        for (said, value) in layout.outputs.iter().zip(added) {
            if said.kind == ArrayKind::Telemetry {
                self.told = Some(Telemetry::decode(layout, &value.floats()).unwrap());
            } else {
                let slot = layout.inputs.iter().position(|i| i.kind == said.kind && i.copy_of == said.copy_of);
                self.own[slot.unwrap()] = value;
            }
        }
        outputs
    }
}
