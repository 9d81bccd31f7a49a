//! The element types of PJRT buffers.

use std::fmt;

use crate::error::{Error, Result};

macro_rules! element_types {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal, $bits:literal;)*) => {
        /// The type of one element of an array, with the codes of `PJRT_Buffer_Type`.
        ///
        /// It prints as XLA writes it: `f32`, `bf16`, `s32`, `pred`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum ElementType { $($(#[$doc])* $name = $code,)* }

        impl ElementType {
            /// Every element type.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The `PJRT_Buffer_Type` of this type.
            #[must_use]
            pub fn code(self) -> i32 {
                match self { $(Self::$name => $code,)* }
            }

            /// The type with this `PJRT_Buffer_Type`, or `None` where this crate does not know it.
            #[must_use]
            pub fn from_code(code: i32) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }

            /// Width of one element, in bits; zero for a token.
            #[must_use]
            pub fn bits(self) -> usize {
                match self { $(Self::$name => $bits,)* }
            }

            fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }

        impl std::str::FromStr for ElementType {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($text => Ok(Self::$name),)*
                    _ => Err(Error::Argument(format!("`{text}` is no element type; write it as XLA does, e.g. f32, bf16, s32, pred"))),
                }
            }
        }
    };
}

element_types! {
    /// Truth value, one byte, 0 or 1.
    Pred = 1, "pred", 8;
    /// Signed, 8 bits.
    S8 = 2, "s8", 8;
    /// Signed, 16 bits.
    S16 = 3, "s16", 16;
    /// Signed, 32 bits.
    S32 = 4, "s32", 32;
    /// Signed, 64 bits.
    S64 = 5, "s64", 64;
    /// Unsigned, 8 bits.
    U8 = 6, "u8", 8;
    /// Unsigned, 16 bits.
    U16 = 7, "u16", 16;
    /// Unsigned, 32 bits.
    U32 = 8, "u32", 32;
    /// Unsigned, 64 bits.
    U64 = 9, "u64", 64;
    /// IEEE half precision.
    F16 = 10, "f16", 16;
    /// IEEE single precision.
    F32 = 11, "f32", 32;
    /// IEEE double precision.
    F64 = 12, "f64", 64;
    /// The upper half of an `f32`.
    Bf16 = 13, "bf16", 16;
    /// Two `f32`.
    C64 = 14, "c64", 64;
    /// Two `f64`.
    C128 = 15, "c128", 128;
    /// 8-bit float: 5 exponent bits, 2 mantissa bits.
    F8e5m2 = 16, "f8e5m2", 8;
    /// 8-bit float: 4 and 3 bits, finite.
    F8e4m3fn = 17, "f8e4m3fn", 8;
    /// 8-bit float: 4 and 3 bits, bias 11, no negative zero.
    F8e4m3b11fnuz = 18, "f8e4m3b11fnuz", 8;
    /// 8-bit float: 5 and 2 bits, no negative zero.
    F8e5m2fnuz = 19, "f8e5m2fnuz", 8;
    /// 8-bit float: 4 and 3 bits, no negative zero.
    F8e4m3fnuz = 20, "f8e4m3fnuz", 8;
    /// Signed, 4 bits.
    S4 = 21, "s4", 4;
    /// Unsigned, 4 bits.
    U4 = 22, "u4", 4;
    /// No data; orders side effects.
    Token = 23, "token", 0;
    /// Signed, 2 bits.
    S2 = 24, "s2", 2;
    /// Unsigned, 2 bits.
    U2 = 25, "u2", 2;
    /// 8-bit float: 4 and 3 bits, with infinities.
    F8e4m3 = 26, "f8e4m3", 8;
    /// 8-bit float: 3 and 4 bits.
    F8e3m4 = 27, "f8e3m4", 8;
    /// 8-bit power of two.
    F8e8m0fnu = 28, "f8e8m0fnu", 8;
    /// 4-bit float: 2 and 1 bits.
    F4e2m1fn = 29, "f4e2m1fn", 4;
    /// Signed, 1 bit.
    S1 = 30, "s1", 1;
    /// Unsigned, 1 bit.
    U1 = 31, "u1", 1;
}

impl ElementType {
    /// Bytes of one element on the host, where types narrower than a byte take a whole one.
    #[must_use]
    pub fn host_bytes(self) -> usize {
        self.bits().div_ceil(8)
    }

    /// Bytes of a dense array with these dimensions on the host.
    ///
    /// # Errors
    ///
    /// A negative dimension, or a size beyond what memory can hold.
    pub fn byte_count(self, dims: &[i64]) -> Result<usize> {
        dims.iter()
            .try_fold(self.host_bytes(), |bytes, &dim| bytes.checked_mul(usize::try_from(dim).ok()?))
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or_else(|| {
                Error::Argument(format!(
                    "{self}{dims:?} is no valid shape: a dimension is negative, or the size overflows"
                ))
            })
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A Rust type whose memory is an array element as PJRT wants it.
pub trait Element: Copy + private::Sealed {
    /// The matching element type.
    const TYPE: ElementType;
    /// The bytes of this element, in the machine's order.
    fn to_bytes(self) -> Vec<u8>;
}

mod private {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($rust:ty => $name:ident),* $(,)?) => {$(
        impl private::Sealed for $rust {}
        impl Element for $rust {
            const TYPE: ElementType = ElementType::$name;
            fn to_bytes(self) -> Vec<u8> {
                self.to_ne_bytes().to_vec()
            }
        }
    )*};
}

elements! {
    i8 => S8, i16 => S16, i32 => S32, i64 => S64,
    u8 => U8, u16 => U16, u32 => U32, u64 => U64,
    f32 => F32, f64 => F64,
}

impl private::Sealed for bool {}
impl Element for bool {
    const TYPE: ElementType = ElementType::Pred;
    fn to_bytes(self) -> Vec<u8> {
        vec![u8::from(self)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_a_bijection() {
        for &element_type in ElementType::ALL {
            assert_eq!(ElementType::from_code(element_type.code()), Some(element_type));
            assert_eq!(element_type.to_string().parse::<ElementType>().unwrap(), element_type);
        }
        // 0 is INVALID, the rest is consecutive.
        let codes: Vec<i32> = ElementType::ALL.iter().map(|element_type| element_type.code()).collect();
        assert_eq!(codes, (1..=31).collect::<Vec<_>>());
        assert_eq!(ElementType::from_code(0), None);
        assert_eq!(ElementType::from_code(32), None);
    }

    #[test]
    fn byte_counts() {
        for (element_type, dims, expected) in [
            (ElementType::F32, &[2, 3][..], Some(24)),
            (ElementType::Bf16, &[5], Some(10)),
            (ElementType::Pred, &[], Some(1)),
            (ElementType::S4, &[3], Some(3)),
            (ElementType::C128, &[0, 7], Some(0)),
            (ElementType::Token, &[], Some(0)),
            (ElementType::F32, &[-1], None),
            (ElementType::F32, &[i64::MAX, 4], None),
            (ElementType::U8, &[i64::MAX, 1], Some(isize::MAX as usize)),
            (ElementType::U8, &[1 << 62, 2], None),
        ] {
            assert_eq!(element_type.byte_count(dims).ok(), expected, "{element_type}{dims:?}");
        }
    }
}
