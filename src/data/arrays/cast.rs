//! What becomes of an array's elements on their way into an input of another type.
//!
//! Every value arrives as it is: what a type cannot hold is refused, nothing is scaled, clamped or wrapped. The one
//! exception is JAX's own: `float64`, numpy's default, is rounded to `float32`.
//!
//! | array | input | |
//! |---|---|---|
//! | any of whole bytes | the same | copied |
//! | integers, `bool` | integers, `bool`, floats | every value must be exact there |
//! | `float16`, `bfloat16`, `float32` | a wider float | exact |
//! | `float64` | `float32` | rounded to nearest; a finite value must stay finite |
//!
//! Everything else (fractions to integers, other narrower floats, complex and 8-bit floats) is for the user to convert.

use half::{bf16, f16};
use hlo::PrimitiveType as P;

use crate::bundle::Dtype;

/// The index of the first element that does not arrive.
type Check = fn(&[u8]) -> Option<usize>;
type Append = fn(&[u8], &mut Vec<u8>);

/// A conversion of elements, all of them little-endian.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cast {
    check: Option<Check>,
    append: Option<Append>,
}

impl Cast {
    /// From one type to another; `None` where that is refused whatever the values are.
    pub(super) fn new(from: Dtype, to: Dtype) -> Option<Self> {
        let (from, to) = (from.primitive(), to.primitive());
        if from == to {
            // Only 0 and 1 are truth values, and a device may rely on that.
            let check = (from == P::PRED).then_some(check::<Bool, Bool> as Check);
            return (from.bits() >= 8).then_some(Self { check, append: None });
        }
        let allowed = match (from, to) {
            (P::F64, P::F32) => true,
            _ if from.is_floating() => to.is_floating() && from.bits() < to.bits(),
            _ => true,
        };
        let conversion = allowed.then(|| between(from, to))??;
        let check = match from {
            P::PRED => Some(check::<Bool, Bool> as Check),
            _ if always_exact(from, to) => None,
            _ => Some(conversion.0),
        };
        Some(Self { check, append: Some(conversion.1) })
    }

    /// The index of the first element that the other type does not hold.
    pub(super) fn first_lost(&self, bytes: &[u8]) -> Option<usize> {
        self.check.and_then(|check| check(bytes))
    }

    /// Appends converted elements.
    pub(super) fn append(&self, bytes: &[u8], target: &mut Vec<u8>) {
        match self.append {
            Some(append) => append(bytes, target),
            None => target.extend_from_slice(bytes),
        }
    }
}

/// Whether every value of one type is a value of the other.
fn always_exact(from: P, to: P) -> bool {
    let signed = |t| matches!(t, P::S8 | P::S16 | P::S32 | P::S64);
    // Bits of the largest magnitude that is exact, with all below.
    let magnitude = |t: P| match t {
        P::F16 => 11,
        P::BF16 => 8,
        P::F32 => 24,
        P::F64 => 53,
        P::PRED => 1,
        _ => t.bits() - u64::from(signed(t)),
    };
    match (from.is_floating(), to.is_floating()) {
        (true, _) => from.bits() < to.bits(),
        (false, true) => magnitude(from) <= magnitude(to),
        (false, false) => magnitude(from) <= magnitude(to) && (!signed(from) || signed(to)),
    }
}

/// A value of any type, in full.
#[derive(Clone, Copy)]
enum Number {
    Integer(i128),
    Float(f64),
}

/// Whether a value is still itself after a conversion.
fn arrived(before: Number, after: Number) -> bool {
    match (before, after) {
        (Number::Integer(a), Number::Integer(b)) => a == b,
        (Number::Integer(a), Number::Float(b)) => b.is_finite() && b as i128 == a,
        (Number::Float(a), Number::Float(b)) => a.is_finite() == b.is_finite(),
        (Number::Float(_), Number::Integer(_)) => false,
    }
}

trait Element: Copy {
    type Bytes: AsRef<[u8]>;
    const WIDTH: usize;
    /// An element from exactly its bytes.
    fn read(bytes: &[u8]) -> Option<Self>;
    fn bytes(self) -> Self::Bytes;
    fn number(self) -> Number;
    /// The nearest value that this type has, or any where there is none near.
    fn nearest(number: Number) -> Self;
}

/// A truth value in a byte, which may be any until it was checked.
#[derive(Clone, Copy)]
struct Bool(u8);

impl Element for Bool {
    type Bytes = [u8; 1];
    const WIDTH: usize = 1;
    fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first().copied().map(Self)
    }
    fn bytes(self) -> [u8; 1] {
        [self.0]
    }
    fn number(self) -> Number {
        Number::Integer(self.0.into())
    }
    fn nearest(number: Number) -> Self {
        Self(u8::from(matches!(number, Number::Integer(v) if v != 0)))
    }
}

macro_rules! integers {
    ($($t:ty)*) => {$(
        impl Element for $t {
            type Bytes = [u8; size_of::<$t>()];
            const WIDTH: usize = size_of::<$t>();
            fn read(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self::from_le_bytes)
            }
            fn bytes(self) -> Self::Bytes {
                self.to_le_bytes()
            }
            fn number(self) -> Number {
                Number::Integer(self.into())
            }
            fn nearest(number: Number) -> Self {
                match number {
                    Number::Integer(value) => value as Self,
                    Number::Float(value) => value as Self,
                }
            }
        }
    )*};
}

macro_rules! floats {
    ($($t:ty, $wide:ty, $narrow:path;)*) => {$(
        impl Element for $t {
            type Bytes = [u8; size_of::<$t>()];
            const WIDTH: usize = size_of::<$t>();
            fn read(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self::from_le_bytes)
            }
            fn bytes(self) -> Self::Bytes {
                self.to_le_bytes()
            }
            fn number(self) -> Number {
                Number::Float(self.into())
            }
            fn nearest(number: Number) -> Self {
                $narrow(match number {
                    Number::Integer(value) => value as $wide,
                    Number::Float(value) => value as $wide,
                })
            }
        }
    )*};
}

integers!(i8 i16 i32 i64 u8 u16 u32 u64);
floats!(f16, f64, f16::from_f64; bf16, f64, bf16::from_f64; f32, f32, f32::from; f64, f64, f64::from;);

fn check<S: Element, T: Element>(bytes: &[u8]) -> Option<usize> {
    let lost = |number| !arrived(number, T::nearest(number).number());
    bytes.chunks_exact(S::WIDTH).position(|chunk| S::read(chunk).is_none_or(|value| lost(value.number())))
}

fn append<S: Element, T: Element>(bytes: &[u8], target: &mut Vec<u8>) {
    target.reserve(bytes.len() / S::WIDTH * T::WIDTH);
    for value in bytes.chunks_exact(S::WIDTH).filter_map(S::read) {
        target.extend_from_slice(T::nearest(value.number()).bytes().as_ref());
    }
}

/// Check and conversion for two types that are numbers.
fn between(from: P, to: P) -> Option<(Check, Append)> {
    match from {
        P::PRED => out_of::<Bool>(to),
        P::S8 => out_of::<i8>(to),
        P::S16 => out_of::<i16>(to),
        P::S32 => out_of::<i32>(to),
        P::S64 => out_of::<i64>(to),
        P::U8 => out_of::<u8>(to),
        P::U16 => out_of::<u16>(to),
        P::U32 => out_of::<u32>(to),
        P::U64 => out_of::<u64>(to),
        P::F16 => out_of::<f16>(to),
        P::BF16 => out_of::<bf16>(to),
        P::F32 => out_of::<f32>(to),
        P::F64 => out_of::<f64>(to),
        _ => None,
    }
}

fn out_of<S: Element>(to: P) -> Option<(Check, Append)> {
    Some(match to {
        P::PRED => (check::<S, Bool>, append::<S, Bool>),
        P::S8 => (check::<S, i8>, append::<S, i8>),
        P::S16 => (check::<S, i16>, append::<S, i16>),
        P::S32 => (check::<S, i32>, append::<S, i32>),
        P::S64 => (check::<S, i64>, append::<S, i64>),
        P::U8 => (check::<S, u8>, append::<S, u8>),
        P::U16 => (check::<S, u16>, append::<S, u16>),
        P::U32 => (check::<S, u32>, append::<S, u32>),
        P::U64 => (check::<S, u64>, append::<S, u64>),
        P::F16 => (check::<S, f16>, append::<S, f16>),
        P::BF16 => (check::<S, bf16>, append::<S, bf16>),
        P::F32 => (check::<S, f32>, append::<S, f32>),
        P::F64 => (check::<S, f64>, append::<S, f64>),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cast(from: P, to: P) -> Option<Cast> {
        Cast::new(Dtype::from_primitive(from).unwrap(), Dtype::from_primitive(to).unwrap())
    }

    fn converted(from: P, to: P, bytes: &[u8]) -> Vec<u8> {
        let cast = cast(from, to).unwrap();
        assert_eq!(cast.first_lost(bytes), None);
        let mut out = Vec::new();
        cast.append(bytes, &mut out);
        out
    }

    fn bytes<const N: usize, T>(values: &[T], of: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(of).collect()
    }

    #[test]
    fn values_arrive_as_they_are() {
        let pixels = [0u8, 1, 127, 128, 255];
        let floats = [0.0f32, 1.0, 127.0, 128.0, 255.0];
        assert_eq!(converted(P::U8, P::F32, &pixels), bytes(&floats, |v| v.to_le_bytes()));
        assert_eq!(converted(P::U8, P::BF16, &pixels), bytes(&floats, |v| bf16::from_f32(*v).to_le_bytes()));
        assert_eq!(converted(P::U8, P::S32, &pixels), bytes(&[0i32, 1, 127, 128, 255], |v| v.to_le_bytes()));
        let labels = bytes(&[-1i64, 0, i64::from(i32::MAX), i64::from(i32::MIN)], |v| v.to_le_bytes());
        assert_eq!(converted(P::S64, P::S32, &labels), bytes(&[-1, 0, i32::MAX, i32::MIN], |v| v.to_le_bytes()));
        assert_eq!(converted(P::PRED, P::F32, &[0, 1]), bytes(&[0.0f32, 1.0], |v| v.to_le_bytes()));
        assert_eq!(converted(P::S64, P::PRED, &bytes(&[0i64, 1], |v| v.to_le_bytes())), [0, 1]);
        let doubles = [0.1f64, -0.0, f64::INFINITY, f64::NAN, 1e-300];
        let out = converted(P::F64, P::F32, &bytes(&doubles, |v| v.to_le_bytes()));
        let singles: Vec<f32> = out.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
        assert!(singles[0] == 0.1 && singles[1].is_sign_negative() && singles[2] == f32::INFINITY);
        assert!(singles[3].is_nan() && singles[4] == 0.0);
        let narrow = bytes(&[bf16::from_f32(1.5), bf16::NAN], |v| v.to_le_bytes());
        assert_eq!(converted(P::BF16, P::F32, &narrow)[..4], 1.5f32.to_le_bytes());
        assert_eq!(converted(P::C64, P::C64, &[7; 8]), [7; 8]);
    }

    #[test]
    fn values_that_do_not_fit_are_found() {
        for (from, to, values, lost) in [
            (P::S64, P::S32, bytes(&[1i64, 1 << 31], |v| v.to_le_bytes()), 1),
            (P::S32, P::U8, bytes(&[0i32, 255, -1], |v| v.to_le_bytes()), 2),
            (P::U64, P::S64, bytes(&[u64::MAX], |v| v.to_le_bytes()), 0),
            (P::S32, P::F32, bytes(&[1i32 << 24, (1 << 24) + 1], |v| v.to_le_bytes()), 1),
            (P::U64, P::F32, bytes(&[1u64 << 63, u64::MAX], |v| v.to_le_bytes()), 1),
            (P::U16, P::F16, bytes(&[2048u16, 65504, 65535], |v| v.to_le_bytes()), 2),
            (P::U8, P::PRED, vec![0, 1, 2], 2),
            (P::PRED, P::PRED, vec![1, 2], 1),
            (P::PRED, P::S32, vec![1, 0, 255], 2),
            (P::F64, P::F32, bytes(&[3e38f64, 4e38], |v| v.to_le_bytes()), 1),
        ] {
            assert_eq!(cast(from, to).unwrap().first_lost(&values), Some(lost), "{from:?} to {to:?}");
        }
    }

    #[test]
    fn conversions_with_a_choice_are_left_to_the_user() {
        for (from, to) in [
            (P::F32, P::S32),
            (P::F64, P::BF16),
            (P::F64, P::F16),
            (P::F32, P::BF16),
            (P::F16, P::BF16),
            (P::BF16, P::F16),
            (P::F32, P::PRED),
            (P::F32, P::C64),
            (P::C64, P::F32),
            (P::U8, P::F8E4M3FN),
            (P::S4, P::S4),
            (P::S8, P::S4),
        ] {
            assert!(cast(from, to).is_none(), "{from:?} to {to:?}");
        }
    }

    const INTEGERS: [P; 8] = [P::S8, P::S16, P::S32, P::S64, P::U8, P::U16, P::U32, P::U64];

    proptest! {
        /// Conversions without a check lose nothing either: what comes back is what went in.
        #[test]
        fn what_is_not_lost_returns(from in 0usize..8, to in 0usize..12, value: u64) {
            let others = [P::F16, P::BF16, P::F32, P::F64];
            let (from, to) = (INTEGERS[from], *INTEGERS.iter().chain(&others).nth(to).unwrap());
            let width = usize::try_from(from.bits() / 8).unwrap();
            let bytes = &value.to_le_bytes()[..width];
            let there = cast(from, to).unwrap();
            let mut out = Vec::new();
            there.append(bytes, &mut out);
            let (_, back) = between(to, from).unwrap();
            let mut again = Vec::new();
            if from != to {
                back(&out, &mut again);
            } else {
                again = out;
            }
            // A wrapped integer returns too, so that the value itself is compared where both are integers.
            let kept = there.first_lost(bytes).is_none();
            prop_assert!(!kept || again == bytes);
            prop_assert!(kept || there.check.is_some());
        }
    }
}
