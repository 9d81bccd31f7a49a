//! The printer, on modules that hold every opcode and every literal type.
//!
//! XLA's own parser makes the same module of each canonical text; `make test-python` holds it to that.

use hlo::build::Builder;
use hlo::text::{Preset, print};
use hlo::{AliasKind, Module, Opcode, PrimitiveType, Shape};

#[cfg(test)]
mod common;

#[test]
fn canonical_text_of_every_opcode_and_literal() {
    for name in ["opcodes", "corners"] {
        let (_, bytes) = common::module(&format!("data/{name}.hlo.pb"));
        insta::assert_snapshot!(name, print(&Module::import(&bytes).unwrap(), Preset::Canonical));
    }
}

#[test]
fn snapshot_text_leaves_out_what_hides_a_change() {
    let mut module = Module::new("small");
    let mut b = Builder::at_entry(&mut module);
    b.set_scope("scale", "controller/scale");
    let mut columns = Shape::array(PrimitiveType::F32, &[2, 20]);
    columns.proto_mut().layout.get_or_insert_default().minor_to_major = vec![0, 1];
    let x = b.parameter("x", columns).unwrap();
    let long = b.constant_f32_vector(&[0.5; 20]).unwrap();
    let short = b.constant_f32_vector(&[1.0, f32::NAN, -0.0]).unwrap();
    let doubled = b.add(x, x).unwrap();
    let outputs = [doubled, long, short, x, long, short];
    module.set_outputs(&outputs).unwrap();
    module.alias(0, 0, AliasKind::May).unwrap();
    hlo::verify::verify(&module).unwrap();
    insta::assert_snapshot!("preset_snapshot", print(&module, Preset::Snapshot));
    module.strip_metadata();
    assert!(!print(&module, Preset::Snapshot).contains("metadata="));
}

#[test]
fn the_data_holds_the_opcodes_of_the_table() {
    let held: Vec<_> = ["opcodes", "corners"]
        .iter()
        .flat_map(|name| {
            let module = Module::import(&common::module(&format!("data/{name}.hlo.pb")).1).unwrap();
            let opcodes: Vec<_> =
                module.computations().flat_map(|(_, c)| c.instructions().map(|(_, i)| i.opcode)).collect();
            opcodes
        })
        .collect();
    // Elementwise ones print alike. XLA's parser wants more of a `scan` than is known of it here.
    let missing: Vec<_> =
        Opcode::ALL.iter().filter(|o| !o.is_elementwise() && **o != Opcode::Scan && !held.contains(o)).collect();
    assert!(missing.is_empty(), "no {missing:?} in the data");
}

#[test]
fn one_instruction_prints_as_in_its_module() {
    let module = Module::import(&common::module("mlp/module.hlo.pb").1).unwrap();
    let text = print(&module, Preset::Canonical);
    let lines: std::collections::HashSet<_> =
        text.lines().map(|l| l.trim_start().trim_start_matches("ROOT ")).collect();
    for (_, computation) in module.computations() {
        for (_, instruction) in computation.instructions() {
            let line = hlo::text::print_instruction(&module, computation, instruction, Preset::Canonical);
            assert!(lines.contains(line.as_str()), "{line}");
        }
    }
}
