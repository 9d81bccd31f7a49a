//! The consistency check of replicas, on two and three devices of the CPU plugin, against its reference.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::devices::{Over, Spread};
use common::{Array, Random};
use hlo::PrimitiveType as P;
use hlo::Shape;
use passes::reference::checksum;
use passes::state_checksum::{Compared, state_checksum};
use pjrt::ElementType;

/// HLO's types of arrays.
const PRIMITIVES: &[P] = &[
    P::PRED,
    P::S2,
    P::S4,
    P::S8,
    P::S16,
    P::S32,
    P::S64,
    P::U2,
    P::U4,
    P::U8,
    P::U16,
    P::U32,
    P::U64,
    P::F16,
    P::BF16,
    P::F32,
    P::F64,
    P::C64,
    P::C128,
    P::F8E5M2,
    P::F8E4M3,
    P::F8E4M3FN,
    P::F8E4M3B11FNUZ,
    P::F8E3M4,
    P::F8E5M2FNUZ,
    P::F8E4M3FNUZ,
    P::F8E8M0FNU,
    P::F4E2M1FN,
];

fn compile(states: &[Array], replicas: usize) -> Spread {
    let shape = |a: &Array| {
        let name = a.element_type.to_string();
        Shape::array(*PRIMITIVES.iter().find(|t| t.name() == name).expect("a type of HLO"), &a.dims)
    };
    Spread::new(&state_checksum(&states.iter().map(shape).collect::<Vec<_>>()).unwrap(), Over::Replicas(replicas))
}

/// What each replica says.
fn compare(program: &Spread, replicas: &[Vec<Array>]) -> Vec<Compared> {
    let outputs = program.run(replicas);
    outputs.iter().map(|list| Compared::decode(&list[0].bytes, replicas[0].len()).unwrap()).collect()
}

/// States that differ, which all replicas must say alike.
fn differing(program: &Spread, replicas: &[Vec<Array>]) -> Vec<usize> {
    let said = compare(program, replicas);
    assert!(said.iter().all(|s| s.differs == said[0].differs), "replicas disagree about whether they differ");
    said[0].differing().collect()
}

/// The words of an array as the host has it.
fn words(array: &Array) -> Vec<u32> {
    let bits = array.element_type.bits();
    match (array.element_type, bits) {
        (_, 64 | 128 | 32) => array.bytes.as_chunks().0.iter().map(|w| u32::from_le_bytes(*w)).collect(),
        (_, 16) => array.bytes.as_chunks().0.iter().map(|w| u16::from_le_bytes(*w).into()).collect(),
        (ElementType::S2 | ElementType::S4, _) => {
            let unused = 32 - bits as u32;
            array.bytes.iter().map(|&b| ((i32::from(b) << unused) >> unused) as u32).collect()
        }
        (ElementType::F4e2m1fn, _) => {
            let magnitudes = [0.0_f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
            let value = |b: u8| magnitudes[usize::from(b & 7)].to_bits() | u32::from(b >> 3) << 31;
            array.bytes.iter().map(|&b| value(b)).collect()
        }
        _ => array.bytes.iter().map(|&b| b.into()).collect(),
    }
}

/// A state of every element type, each of other dimensions, one without elements.
fn all_types() -> Vec<Array> {
    let mut random = Random::new(3);
    let dims: [&[i64]; 6] = [&[7], &[3, 5], &[2, 1, 9], &[], &[1, 1], &[4, 3, 2, 2]];
    let types = ElementType::ALL.iter().filter(|t| t.bits() > 1);
    let mut states: Vec<Array> = types
        .zip(dims.iter().cycle())
        .map(|(&element_type, dims)| {
            let narrow = if element_type == ElementType::Pred { 1 } else { element_type.bits().min(8) };
            let count = element_type.byte_count(dims).unwrap();
            let bytes = (0..count).map(|_| (random.bits() >> 20) as u8 & ((1_u16 << narrow) - 1) as u8).collect();
            Array { element_type, dims: dims.to_vec(), bytes }
        })
        .collect();
    states.push(Array::f32(&[0, 4], &[]));
    states
}

#[test]
fn every_type_is_compared_bit_by_bit_and_the_state_that_differs_is_named() {
    let states = all_types();
    let program = compile(&states, 3);
    let expected: Vec<u32> = states.iter().map(|s| checksum(words(s))).collect();
    for said in compare(&program, &[states.clone(), states.clone(), states.clone()]) {
        assert_eq!(said.differing().count(), 0);
        for ((found, expected), state) in said.checksums.iter().zip(&expected).zip(&states) {
            assert_eq!(found, expected, "{}{:?}", state.element_type, state.dims);
        }
    }
    for (number, state) in states.iter().enumerate().filter(|(_, s)| !s.bytes.is_empty()) {
        let mut other = states.clone();
        let byte = other[number].bytes.len() / 2;
        other[number].bytes[byte] ^= 1;
        let found = differing(&program, &[states.clone(), states.clone(), other]);
        assert_eq!(found, [number], "{}{:?}", state.element_type, state.dims);
    }
}

#[test]
fn bits_count_where_numbers_do_not() {
    let one = vec![Array::f32(&[4], &[0.0, f32::NAN, 1.5, -1.5]), Array::f32(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])];
    let program = compile(&one, 2);
    let with = |values: [f32; 4]| vec![Array::f32(&[4], &values), one[1].clone()];
    assert!(differing(&program, &[one.clone(), one.clone()]).is_empty(), "a NaN is like itself");
    for (what, other) in [
        ("-0.0", with([-0.0, f32::NAN, 1.5, -1.5])),
        ("the payload of a NaN", with([0.0, f32::from_bits(0x7fc0_0001), 1.5, -1.5])),
        ("a signalling NaN", with([0.0, f32::from_bits(0x7f80_0001), 1.5, -1.5])),
        ("the sign of a NaN", with([0.0, -f32::NAN, 1.5, -1.5])),
        ("a and -a that change places", with([0.0, f32::NAN, -1.5, 1.5])),
    ] {
        assert_eq!(differing(&program, &[one.clone(), other]), [0], "{what}");
    }
    // The same elements in other places, within a row and across rows.
    for swapped in [[2.0, 1.0, 3.0, 4.0, 5.0, 6.0], [4.0, 2.0, 3.0, 1.0, 5.0, 6.0], [4.0, 5.0, 6.0, 1.0, 2.0, 3.0]] {
        let other = vec![one[0].clone(), Array::f32(&[2, 3], &swapped)];
        assert_eq!(differing(&program, &[one.clone(), other]), [1], "{swapped:?}");
    }
    let both = vec![Array::vector(&[0.0; 4]), Array::f32(&[2, 3], &[0.0; 6])];
    assert_eq!(differing(&program, &[one, both]), [0, 1]);
}
