//! What the plugin does on several devices, as passes and program rely on it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::Array;
use common::devices::{DEVICES, Over, Spread};
use hlo::Module;
use hlo::build::Builder;
use hlo::proto::HloInstructionProto;
use hlo::{Opcode, PrimitiveType, Shape};

#[test]
fn an_all_reduce_gives_every_replica_the_same_sum() {
    let mut module = Module::new("sum");
    let add = module.add_computation("add");
    let scalar = Shape::scalar(PrimitiveType::F32);
    let mut b = Builder::new(&mut module, add);
    let (x, y) = (b.parameter("x", scalar.clone()).unwrap(), b.parameter("y", scalar).unwrap());
    let sum = b.add(x, y).unwrap();
    b.set_root(sum).unwrap();
    let mut b = Builder::at_entry(&mut module);
    let shape = Shape::array(PrimitiveType::F32, &[3]);
    let x = b.parameter("x", shape.clone()).unwrap();
    let total = b.emit_with(Opcode::AllReduce, &[x], shape, HloInstructionProto::default(), vec![add]).unwrap();
    module.set_outputs(&[total]).unwrap();

    let program = Spread::new(&module, Over::Replicas(DEVICES));
    let inputs: Vec<_> = (0..DEVICES).map(|r| vec![Array::vector(&[r as f32, 0.1, 1e-3 * r as f32])]).collect();
    let outputs = program.run(&inputs);
    assert_eq!(outputs[0][0].floats()[0], 28.0);
    assert!(outputs.iter().all(|o| o == &outputs[0]));
}
