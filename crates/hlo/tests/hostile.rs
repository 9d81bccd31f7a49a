//! Bytes that are no module: refused with an error that helps, never with a panic, never with much memory.

use std::sync::OnceLock;

use buffa::Message;
use hlo::proto::{HloModuleProto, LiteralProto, ShapeProto};
use hlo::text::{Preset, print};
use hlo::{ImportError, Module};
use proptest::prelude::*;

#[cfg(test)]
mod common;

/// What any user of a module does with it; must not panic whatever the bytes are.
fn exercise(bytes: &[u8]) {
    let Ok(module) = Module::import(bytes) else { return };
    if let Err(errors) = hlo::verify::verify(&module) {
        assert!(!errors.violations.is_empty() && !errors.to_string().is_empty());
    }
    for preset in [Preset::Canonical, Preset::Snapshot] {
        assert!(print(&module, preset).starts_with("HloModule"));
    }
    let exported = module.export();
    let again = Module::import(&exported).map(|m| m.export());
    assert!(again.as_ref().is_ok_and(|e| *e == exported), "the second export differs: {:?}", again.err());
    let mut edited = module;
    let entry = edited.entry();
    // Damaged modules may be refused by each of these.
    let _ = edited.sort(entry);
    let _ = edited.remove_dead_instructions(entry);
    let _ = edited.inline_calls(|_| false);
    hlo::testing::shuffle_names(&mut edited, 1);
}

/// Small modules with much in them.
fn seeds() -> &'static [Vec<u8>; 4] {
    static SEEDS: OnceLock<[Vec<u8>; 4]> = OnceLock::new();
    SEEDS.get_or_init(|| {
        ["data/opcodes.hlo.pb", "data/corners.hlo.pb", "corpus/mlp_sgd.hlo.pb", "corpus/gptscan_adamw_clip.hlo.pb"]
            .map(|name| common::module(name).1)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        exercise(&bytes);
    }

    #[test]
    fn random_fields_do_not_panic(fields in proptest::collection::vec((1u8..32, any::<Vec<u8>>()), 0..64)) {
        // Length-delimited fields nest, so that random bytes get deeper into the schema.
        let mut bytes = Vec::new();
        for (number, payload) in fields {
            bytes.extend([number << 3 | 2, u8::try_from(payload.len().min(127)).unwrap()]);
            bytes.extend(payload.iter().take(127));
        }
        let mut module = vec![0x1a, 0];
        module.extend(&bytes);
        exercise(&bytes);
        exercise(&module);
    }

    #[test]
    fn damaged_modules_do_not_panic(
        which in 0usize..4,
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..6),
    ) {
        let mut bytes = seeds()[which].clone();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        exercise(&bytes);
    }
}

#[test]
fn every_truncation_of_a_module_is_refused() {
    let (_, bytes) = common::module("mlp/eval.hlo.pb");
    for length in (0..bytes.len()).step_by(61) {
        // A cut between two fields leaves protobuf; what is missing is noticed all the same.
        let refused = match Module::import(&bytes[..length]) {
            Err(_) => true,
            Ok(module) => hlo::verify::verify(&module).is_err(),
        };
        assert!(refused, "{length} bytes of {}", bytes.len());
    }
}

#[test]
fn what_is_no_module_is_called_by_its_name() {
    let mlir = "module @jit_step attributes {mhlo.num_partitions = 1 : i32} {\n  func.func public @main() {\n";
    let text = "HloModule m\n\nENTRY e {\n  ROOT p = f32[] parameter(0)\n}\n";
    let (_, real) = common::module("mlp/module.hlo.pb");
    let named = HloModuleProto { name: "empty".into(), id: 7, ..Default::default() };
    let cases: [(&[u8], &str); 8] = [
        (b"", "empty"),
        (mlir.as_bytes(), "text"),
        (text.as_bytes(), "text"),
        (b"{\"format_version\": 1}", "text"),
        (b"\x7fELF\x02\x01\x01\0\0\0\0\0", "another format"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "another format"),
        (&real[..real.len() / 2], "truncated"),
        (&named.encode_to_vec(), "\"empty\" has no computations"),
    ];
    for (bytes, expected) in cases {
        let error = Module::import(bytes).expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected:?} is not in {error}");
    }
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    let (_, bytes) = common::module("mlp/eval.hlo.pb");
    let nest = |depth: usize, edit: fn(&mut HloModuleProto, usize)| {
        let mut proto = HloModuleProto::decode_from_slice(&bytes).unwrap();
        edit(&mut proto, depth);
        Module::import(&proto.encode_to_vec())
    };
    let shape: fn(&mut HloModuleProto, usize) = |proto, depth| {
        let mut shape = ShapeProto::default();
        for _ in 0..depth {
            shape = ShapeProto {
                element_type: hlo::PrimitiveType::TUPLE.into(),
                tuple_shapes: vec![shape],
                ..Default::default()
            };
        }
        proto.computations[0].instructions[0].shape = shape.into();
    };
    let literal: fn(&mut HloModuleProto, usize) = |proto, depth| {
        let mut literal = LiteralProto::default();
        for _ in 0..depth {
            literal = LiteralProto { tuple_literals: vec![literal], ..Default::default() };
        }
        proto.computations[0].instructions[0].literal = literal.into();
    };
    for edit in [shape, literal] {
        assert!(nest(20, edit).is_ok());
        let error = nest(1000, edit).unwrap_err();
        assert!(matches!(&error, ImportError::Decode { .. }), "{error}");
        assert!(error.to_string().contains("recursion limit"), "{error}");
    }
}

#[test]
fn a_small_file_cannot_ask_for_much_memory() {
    // A computation of instructions of no bytes: two bytes of file for each.
    let mut computation = Vec::new();
    for _ in 0..200_000 {
        computation.extend([0x12, 0]);
    }
    let mut bytes = vec![0x1a];
    let mut length = computation.len();
    while length >= 0x80 {
        bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend(computation);
    assert!(Module::import(&bytes).is_err());
}
