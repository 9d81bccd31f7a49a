//! Floating-point numbers of every width: the bits of the number nearest to what is written.

use super::super::float::{Specials, format};
use super::cursor::{Cursor, Result};
use crate::proto::PrimitiveType;

/// A number of single precision.
pub(super) fn single(c: &mut Cursor<'_>) -> Result<f32> {
    let start = *c;
    let text = c.number("a number")?;
    match Special::of(text) {
        Some(Special::Infinity { negative }) => Ok(if negative { f32::NEG_INFINITY } else { f32::INFINITY }),
        Some(Special::Nan { negative, payload }) => {
            let mantissa = mantissa(&start, payload, 0x40_0000, 0x7f_ffff)?;
            let mantissa = u32::try_from(mantissa).map_err(|_| start.expected("a number"))?;
            Ok(f32::from_bits(u32::from(negative) << 31 | 0x7f80_0000 | mantissa))
        }
        None => {
            let value: f32 = finite(&start, text)?.parse().map_err(|_| start.expected("a number"))?;
            if value.is_finite() { Ok(value) } else { Err(start.refused("the number is out of range of its type")) }
        }
    }
}

/// A number of double precision.
pub(super) fn double(c: &mut Cursor<'_>) -> Result<f64> {
    let start = *c;
    let text = c.number("a number")?;
    match Special::of(text) {
        Some(Special::Infinity { negative }) => Ok(if negative { f64::NEG_INFINITY } else { f64::INFINITY }),
        Some(Special::Nan { negative, payload }) => {
            let mantissa = mantissa(&start, payload, 0x8_0000_0000_0000, 0xf_ffff_ffff_ffff)?;
            Ok(f64::from_bits(u64::from(negative) << 63 | 0x7ff0_0000_0000_0000 | mantissa))
        }
        None => {
            let value: f64 = finite(&start, text)?.parse().map_err(|_| start.expected("a number"))?;
            if value.is_finite() { Ok(value) } else { Err(start.refused("the number is out of range of its type")) }
        }
    }
}

/// A number of at most 16 bits, as its bits.
pub(super) fn small(c: &mut Cursor<'_>, element_type: PrimitiveType) -> Result<u16> {
    let start = *c;
    let text = c.number("a number")?;
    let bits = match Special::of(text) {
        Some(special) => special_bits(&start, element_type, &special)?,
        None => {
            let value: f64 = finite(&start, text)?.parse().map_err(|_| start.expected("a number"))?;
            nearest(element_type, value)
        }
    };
    bits.ok_or_else(|| start.refused(format!("{element_type} has no such number")))
}

/// The text of a number that is finite; what else Rust reads as one (`infinity`) has no place in HLO text.
fn finite<'a>(start: &Cursor<'_>, text: &'a str) -> Result<&'a str> {
    let digits = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'e' | b'E'));
    if digits { Ok(text) } else { Err(start.expected("a number")) }
}

enum Special<'a> {
    Infinity {
        negative: bool,
    },
    /// `nan`, `nan(0x1)`: the digits inside the parentheses.
    Nan {
        negative: bool,
        payload: Option<&'a str>,
    },
}

impl<'a> Special<'a> {
    fn of(text: &'a str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(text) => (true, text),
            None => (false, text),
        };
        match text.strip_prefix("nan") {
            Some("") => Some(Self::Nan { negative, payload: None }),
            Some(payload) => {
                let payload = payload.strip_prefix("(0x")?.strip_suffix(')')?;
                Some(Self::Nan { negative, payload: Some(payload) })
            }
            None => (text == "inf").then_some(Self::Infinity { negative }),
        }
    }
}

/// The mantissa of a NaN: its payload, which must not be 0 and fit `mask`, or `quiet` where none is written.
fn mantissa(start: &Cursor<'_>, payload: Option<&str>, quiet: u64, mask: u64) -> Result<u64> {
    let Some(payload) = payload else { return Ok(quiet) };
    match u64::from_str_radix(payload, 16) {
        Ok(mantissa) if mantissa != 0 && mantissa <= mask => Ok(mantissa),
        _ => Err(start.refused("no NaN of this type has this payload")),
    }
}

fn special_bits(start: &Cursor<'_>, element_type: PrimitiveType, special: &Special<'_>) -> Result<Option<u16>> {
    if element_type == PrimitiveType::F8E8M0FNU {
        return Ok(matches!(special, Special::Nan { negative: false, payload: None }).then_some(0xff));
    }
    let Some(format) = format(element_type) else { return Ok(None) };
    let bits = format.mantissa_bits + format.exponent_bits;
    let exponents = (1u64 << bits) - (1 << format.mantissa_bits);
    let sign = |negative| u64::from(negative) << bits;
    let found = match (format.specials, special) {
        (Specials::Ieee, Special::Infinity { negative }) => sign(*negative) | exponents,
        (Specials::Ieee, Special::Nan { negative, payload }) => {
            let largest = (1 << format.mantissa_bits) - 1;
            sign(*negative) | exponents | mantissa(start, *payload, 1 << (format.mantissa_bits - 1), largest)?
        }
        (Specials::AllOnes, Special::Nan { negative, payload: None }) => sign(*negative) | ((1 << bits) - 1),
        // There is one only; XLA prints it with its sign.
        (Specials::NegativeZero, Special::Nan { payload: None, .. }) => 1 << bits,
        _ => return Ok(None),
    };
    Ok(u16::try_from(found).ok())
}

/// The bits of the number of this type that is nearest to `value`, ties to even; `None` where it is out of range.
fn nearest(element_type: PrimitiveType, value: f64) -> Option<u16> {
    if element_type == PrimitiveType::F8E8M0FNU {
        let exponent = value.log2().round();
        return if value > 0.0 && (-127.0..=127.0).contains(&exponent) {
            Some((exponent + 127.0) as u16)
        } else {
            None
        };
    }
    let format = format(element_type)?;
    let bits = format.mantissa_bits + format.exponent_bits;
    let negative = value.is_sign_negative();
    if value == 0.0 {
        // Where the pattern of negative zero is a NaN, there is one zero only.
        let signed = negative && format.specials != Specials::NegativeZero;
        return Some(u16::from(signed) << bits);
    }
    let magnitude = value.abs();
    // The exponent of the number's own binade, not below that of the subnormal numbers.
    let own = i32::try_from(magnitude.to_bits() >> 52).ok()? - 1023;
    let exponent = own.max(1 - format.bias);
    let unit = f64::from(exponent - format.mantissa_bits.cast_signed()).exp2();
    // Exact: the unit is a power of two. It may carry into the next binade, which the sum below gets right.
    let units = (magnitude / unit).round_ties_even() as u32;
    let encoded = (u32::try_from(exponent + format.bias - 1).ok()? << format.mantissa_bits) + units;
    let largest = match format.specials {
        Specials::Ieee => ((1 << bits) - (1 << format.mantissa_bits)) - 1,
        Specials::AllOnes => (1 << bits) - 2,
        Specials::NegativeZero | Specials::None => (1u32 << bits) - 1,
    };
    if encoded > largest { None } else { u16::try_from(u32::from(negative) << bits | encoded).ok() }
}

#[cfg(test)]
mod tests {
    use super::super::super::float::{Double, Single, Small};
    use super::*;

    #[test]
    fn every_small_number_reads_as_it_was_printed() {
        use PrimitiveType as T;
        for element_type in [
            T::F16,
            T::BF16,
            T::F8E5M2,
            T::F8E4M3,
            T::F8E3M4,
            T::F8E4M3FN,
            T::F8E4M3FNUZ,
            T::F8E4M3B11FNUZ,
            T::F8E5M2FNUZ,
            T::F4E2M1FN,
            T::F8E8M0FNU,
        ] {
            for bits in 0..1u32 << element_type.bits() {
                let bits = u16::try_from(bits).unwrap();
                let text = Small(element_type, bits).to_string();
                let read = small(&mut Cursor::new(&text), element_type).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(read, bits, "{element_type} {text}");
            }
        }
    }

    #[test]
    fn wide_numbers_read_as_they_were_printed() {
        let mut bits = 1u64;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = f64::from_bits(bits);
            let read = double(&mut Cursor::new(&Double(number).to_string())).unwrap();
            assert_eq!(read.to_bits(), bits, "{number:e}");
            let bits = (bits >> 32) as u32;
            let number = f32::from_bits(bits);
            let read = single(&mut Cursor::new(&Single(number).to_string())).unwrap();
            assert_eq!(read.to_bits(), bits, "{number:e}");
        }
        for bits in [0x7f80_0001, 0xffc0_0000, 0x7fff_ffff, 0x8000_0000, 0xff80_0000u32] {
            let text = Single(f32::from_bits(bits)).to_string();
            assert_eq!(single(&mut Cursor::new(&text)).unwrap().to_bits(), bits, "{text}");
        }
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_and_refused_out_of_range() {
        use PrimitiveType as T;
        let check = |element_type, text: &str, expected: Option<u16>| {
            assert_eq!(small(&mut Cursor::new(text), element_type).ok(), expected, "{element_type} {text}");
        };
        check(T::BF16, "1.00390625", Some(0x3f80));
        check(T::BF16, "1.01171875", Some(0x3f82));
        check(T::F16, "65519", Some(0x7bff));
        check(T::F16, "65520", None);
        check(T::F8E4M3FN, "448", Some(0x7e));
        check(T::F8E4M3FN, "inf", None);
        check(T::F8E4M3FNUZ, "-0.0", Some(0));
        check(T::F4E2M1FN, "nan", None);
        check(T::F8E5M2, "nan(0x4)", None);
        check(T::F8E8M0FNU, "0", None);
        check(T::F16, "infinity", None);
        check(T::F16, "1,5", Some(0x3c00));
        for text in ["1e39", "x", "0x10", "nan(0x0)", ""] {
            assert!(single(&mut Cursor::new(text)).is_err(), "{text}");
        }
        assert!(double(&mut Cursor::new("1e309")).is_err());
    }
}
