//! Shuffled names change names and nothing else.

use std::collections::HashSet;

use buffa::Message;
use hlo::Module;
use hlo::testing::shuffle_names;

#[cfg(test)]
mod common;

#[test]
fn shuffled_names_are_new_and_the_program_is_the_same() {
    for (file, bytes) in common::modules() {
        let original = Module::import(&bytes).unwrap();
        let mut shuffled = original.clone();
        shuffle_names(&mut shuffled, 7);
        hlo::verify::verify(&shuffled).unwrap_or_else(|e| panic!("{file}: {e}"));
        let old: HashSet<_> = original.computations().flat_map(|(_, c)| names(c)).collect();
        let mut kept: Vec<_> =
            shuffled.computations().flat_map(|(_, c)| names(c)).filter(|n| old.contains(n)).collect();
        kept.retain(|n| !n.starts_with("xla.sdy"));
        assert!(kept.is_empty(), "{file}: {kept:?}");
        for ((_, a), (_, b)) in original.computations().zip(shuffled.computations()) {
            assert_eq!(a.name.starts_with("xla.sdy"), b.name.starts_with("xla.sdy"));
            assert_eq!((a.order(), a.root()), (b.order(), b.root()));
            for ((_, a), (_, b)) in a.instructions().zip(b.instructions()) {
                assert_eq!((a.opcode, &a.shape, &a.operands, &a.called), (b.opcode, &b.shape, &b.operands, &b.called));
                assert_eq!(a.attributes.encode_to_vec(), b.attributes.encode_to_vec());
            }
        }
        let entry = shuffled.entry_computation();
        let parameters: Vec<_> = entry.parameters().into_iter().map(|p| entry.get(p).unwrap().name.clone()).collect();
        assert_eq!(shuffled.header().host_program_shape.as_option().unwrap().parameter_names, parameters);
        let mut again = original.clone();
        shuffle_names(&mut again, 7);
        assert!(again.export() == shuffled.export(), "{file}: the same seed gave other names");
        let fresh = shuffled.unique_name("v0");
        assert!(fresh.starts_with("v0.") || shuffled.computations().all(|(_, c)| c.find("v0").is_none()));
    }
}

fn names(computation: &hlo::Computation) -> impl Iterator<Item = &str> {
    computation.instructions().map(|(_, i)| i.name.as_str()).chain([computation.name.as_str()])
}
