//! Floating-point numbers of every width, printed so that they parse to the same bits.

use std::fmt;

use crate::proto::PrimitiveType;

/// How a small format uses its bits.
pub(super) struct Format {
    pub(super) exponent_bits: u32,
    pub(super) mantissa_bits: u32,
    pub(super) bias: i32,
    pub(super) specials: Specials,
}

/// Where infinities and NaNs are.
#[derive(PartialEq)]
pub(super) enum Specials {
    /// The largest exponent, as IEEE 754 says.
    Ieee,
    /// No infinity; NaN has all bits set below the sign.
    AllOnes,
    /// No infinity; NaN is the pattern of negative zero.
    NegativeZero,
    /// Neither.
    None,
}

/// How a type of at most 16 bits uses them; `None` for others and for powers of two.
pub(super) fn format(element_type: PrimitiveType) -> Option<Format> {
    use PrimitiveType as T;
    use Specials as S;
    let (exponent_bits, mantissa_bits, bias, specials) = match element_type {
        T::F16 => (5, 10, 15, S::Ieee),
        T::BF16 => (8, 7, 127, S::Ieee),
        T::F8E5M2 => (5, 2, 15, S::Ieee),
        T::F8E4M3 => (4, 3, 7, S::Ieee),
        T::F8E3M4 => (3, 4, 3, S::Ieee),
        T::F8E4M3FN => (4, 3, 7, S::AllOnes),
        T::F8E4M3FNUZ => (4, 3, 8, S::NegativeZero),
        T::F8E4M3B11FNUZ => (4, 3, 11, S::NegativeZero),
        T::F8E5M2FNUZ => (5, 2, 16, S::NegativeZero),
        T::F4E2M1FN => (2, 1, 1, S::None),
        _ => return None,
    };
    Some(Format { exponent_bits, mantissa_bits, bias, specials })
}

/// A number of at most 16 bits, given as its bits.
pub(super) struct Small(pub(super) PrimitiveType, pub(super) u16);

impl fmt::Display for Small {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = u32::from(self.1);
        if self.0 == PrimitiveType::F8E8M0FNU {
            // A power of two, nothing else.
            return if bits == 0xff {
                f.write_str("nan")
            } else {
                write_finite(f, f64::from(bits as f32 - 127.0).exp2())
            };
        }
        let Some(format) = format(self.0) else { return f.write_str("?") };
        let mantissa = bits & ((1 << format.mantissa_bits) - 1);
        let largest = (1 << format.exponent_bits) - 1;
        let exponent = (bits >> format.mantissa_bits) & largest;
        let negative = bits >> (format.mantissa_bits + format.exponent_bits) & 1 == 1;
        let sign = if negative { "-" } else { "" };
        match format.specials {
            Specials::Ieee if exponent == largest && mantissa == 0 => return write!(f, "{sign}inf"),
            Specials::Ieee if exponent == largest => {
                return write_nan(f, negative, u64::from(mantissa), 1 << (format.mantissa_bits - 1));
            }
            Specials::AllOnes if exponent == largest && mantissa + 1 == 1 << format.mantissa_bits => {
                return write!(f, "{sign}nan");
            }
            Specials::NegativeZero if negative && exponent == 0 && mantissa == 0 => return f.write_str("nan"),
            _ => {}
        }
        let (significand, exponent) = match exponent {
            0 => (mantissa, 1),
            e => (mantissa | 1 << format.mantissa_bits, e),
        };
        let scale = exponent.cast_signed() - format.bias - format.mantissa_bits.cast_signed();
        let magnitude = f64::from(significand) * f64::from(scale).exp2();
        write_finite(f, if negative { -magnitude } else { magnitude })
    }
}

/// A single-precision number.
pub(super) struct Single(pub(super) f32);

impl fmt::Display for Single {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_nan() {
            let mantissa = self.0.to_bits() & 0x7f_ffff;
            return write_nan(f, self.0.is_sign_negative(), mantissa.into(), 0x40_0000);
        }
        if self.0 == 0.0 || self.0.is_infinite() {
            return write_finite(f, self.0.into());
        }
        // The shortest decimal that is nearest to this number among all of single precision.
        if is_plain(self.0.into()) { write!(f, "{}", self.0) } else { write!(f, "{:e}", self.0) }
    }
}

/// A double-precision number.
pub(super) struct Double(pub(super) f64);

impl fmt::Display for Double {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_nan() {
            let mantissa = self.0.to_bits() & 0xf_ffff_ffff_ffff;
            return write_nan(f, self.0.is_sign_negative(), mantissa, 0x8_0000_0000_0000);
        }
        write_finite(f, self.0)
    }
}

/// Whether digits without an exponent are short, and whole numbers fit XLA's 64-bit integer token.
fn is_plain(value: f64) -> bool {
    (1e-5..1e16).contains(&value.abs())
}

fn write_finite(f: &mut fmt::Formatter<'_>, value: f64) -> fmt::Result {
    let sign = if value.is_sign_negative() { "-" } else { "" };
    if value == 0.0 {
        // `-0` would be read as the integer.
        f.write_str(if sign.is_empty() { "0" } else { "-0.0" })
    } else if value.is_infinite() {
        write!(f, "{sign}inf")
    } else if is_plain(value) {
        write!(f, "{value}")
    } else {
        write!(f, "{value:e}")
    }
}

/// The payload is written where it is not the one that every processor makes.
fn write_nan(f: &mut fmt::Formatter<'_>, negative: bool, mantissa: u64, quiet: u64) -> fmt::Result {
    f.write_str(if negative { "-nan" } else { "nan" })?;
    if mantissa == quiet { Ok(()) } else { write!(f, "(0x{mantissa:x})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_single_number_parses_to_the_same_bits() {
        let mut bits = 1u32;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(bits);
            if !value.is_nan() {
                assert_eq!(Single(value).to_string().parse::<f32>().unwrap().to_bits(), bits, "{value:e}");
            }
        }
        for (value, text) in
            [(0.1, "0.1"), (-0.0, "-0.0"), (1e30, "1e30"), (1e-45, "1e-45"), (16_777_216.0, "16777216")]
        {
            assert_eq!(Single(value).to_string(), text);
        }
        assert_eq!(Single(f32::from_bits(0xffc0_0000)).to_string(), "-nan");
        assert_eq!(Single(f32::from_bits(0x7fc0_0001)).to_string(), "nan(0x400001)");
        assert_eq!(Double(f64::NEG_INFINITY).to_string(), "-inf");
        assert_eq!(Double(0.1).to_string(), "0.1");
    }

    #[test]
    fn small_formats_decode() {
        use PrimitiveType as T;
        let check = |element_type, bits, text: &str| assert_eq!(Small(element_type, bits).to_string(), text);
        check(T::BF16, 0x3fc0, "1.5");
        check(T::BF16, 0x7fc0, "nan");
        check(T::BF16, 0x0001, "9.183549615799121e-41");
        check(T::F16, 0x7bff, "65504");
        check(T::F16, 0x8000, "-0.0");
        check(T::F16, 0xfc00, "-inf");
        check(T::F16, 0x0001, "5.960464477539063e-8");
        check(T::F8E4M3FN, 0x7e, "448");
        check(T::F8E4M3FN, 0x7f, "nan");
        check(T::F8E4M3FNUZ, 0x80, "nan");
        check(T::F8E5M2, 0x7c, "inf");
        check(T::F8E5M2FNUZ, 0x7f, "57344");
        check(T::F8E8M0FNU, 0x80, "2");
        check(T::F4E2M1FN, 0x7, "6");
    }
}
