//! Literals: nested braces in logical order, whatever the layout they are stored in.

use std::fmt::{self, Write};

use super::float::{Double, Single, Small};
use super::{Preset, SNAPSHOT_ELEMENTS};
use crate::ir::{Instruction, Shape};
use crate::proto::{LiteralProto, PrimitiveType, ShapeProto};

/// Writes what stands between the parentheses of a constant.
pub(super) fn write(out: &mut String, instruction: &Instruction, preset: Preset) -> fmt::Result {
    match instruction.attributes.literal.as_option() {
        Some(literal) => write_literal(out, literal, &instruction.shape.0, preset),
        None => out.write_str("?"),
    }
}

/// Writes a literal; `fallback` is its shape where it does not state one.
pub(super) fn write_literal(
    out: &mut String,
    literal: &LiteralProto,
    fallback: &ShapeProto,
    preset: Preset,
) -> fmt::Result {
    let shape = literal.shape.as_option().unwrap_or(fallback);
    let element_type = shape.element_type.as_known().unwrap_or_default();
    if element_type == PrimitiveType::TUPLE {
        out.write_str("( ")?;
        for (n, (element, shape)) in literal.tuple_literals.iter().zip(&shape.tuple_shapes).enumerate() {
            out.write_str(if n > 0 { ", " } else { "" })?;
            write_literal(out, element, shape, preset)?;
        }
        return out.write_str(" )");
    }
    let count = Shape::from(shape.clone()).num_elements();
    if preset == Preset::Snapshot && count > SNAPSHOT_ELEMENTS {
        return out.write_str("{...}");
    }
    if is_absurd(&shape.dimensions) {
        return out.write_str("{...}");
    }
    if element_type.bits() == 0 || literal.element_count(element_type) != Some(count) {
        return out.write_str("?");
    }
    let strides = strides(shape);
    let mut writer = Writer { out, literal, element_type, dims: &shape.dimensions, strides: &strides };
    writer.nested(0, 0)
}

/// Whether braces alone, without any element, would be too many or too deep.
fn is_absurd(dims: &[i64]) -> bool {
    const MOST_BRACES: i64 = 1 << 16;
    const DEEPEST: usize = 64;
    let empty = dims.iter().position(|&d| d <= 0);
    let braces = empty.map(|at| dims.iter().take(at).fold(1i64, |n, &d| n.saturating_mul(d)));
    dims.len() > DEEPEST || braces.is_some_and(|n| n > MOST_BRACES)
}

/// Distance in the stored order between neighbours along each dimension.
pub(super) fn strides(shape: &ShapeProto) -> Vec<usize> {
    let rank = shape.dimensions.len();
    let row_major = || (0..rank as i64).rev().collect();
    let stored = shape.layout.as_option().map(|l| l.minor_to_major.clone());
    let minor_to_major: Vec<i64> = stored.filter(|m| m.len() == rank).unwrap_or_else(row_major);
    let mut strides = vec![0; rank];
    let mut stride = 1usize;
    for d in minor_to_major {
        let Ok(d) = usize::try_from(d) else { continue };
        if let (Some(slot), Some(&size)) = (strides.get_mut(d), shape.dimensions.get(d)) {
            *slot = stride;
            stride = stride.saturating_mul(usize::try_from(size).unwrap_or(0));
        }
    }
    strides
}

struct Writer<'a> {
    out: &'a mut String,
    literal: &'a LiteralProto,
    element_type: PrimitiveType,
    dims: &'a [i64],
    strides: &'a [usize],
}

impl Writer<'_> {
    fn nested(&mut self, dimension: usize, offset: usize) -> fmt::Result {
        let (Some(&size), Some(&stride)) = (self.dims.get(dimension), self.strides.get(dimension)) else {
            return self.element(offset);
        };
        // XLA sets off the braces of all but vectors and what is empty.
        let (open, close) = if self.dims.len() == 1 || size == 0 { ("{", "}") } else { ("{ ", " }") };
        self.out.write_str(open)?;
        for i in 0..usize::try_from(size).unwrap_or(0) {
            self.out.write_str(if i > 0 { ", " } else { "" })?;
            self.nested(dimension + 1, offset.saturating_add(i.saturating_mul(stride)))?;
        }
        self.out.write_str(close)
    }

    fn element(&mut self, n: usize) -> fmt::Result {
        use PrimitiveType as T;
        let literal = self.literal;
        let out = &mut *self.out;
        // Absent only where the stored order is no permutation.
        let shown = match self.element_type {
            T::PRED => literal.preds.get(n).map(|&p| match (self.dims.is_empty(), p) {
                (true, p) => write!(out, "{p}"),
                (false, p) => write!(out, "{}", u8::from(p)),
            }),
            T::S32 => literal.s32s.get(n).map(|x| write!(out, "{x}")),
            T::S64 => literal.s64s.get(n).map(|x| write!(out, "{x}")),
            T::U32 => literal.u32s.get(n).map(|x| write!(out, "{x}")),
            T::U64 => literal.u64s.get(n).map(|x| write!(out, "{x}")),
            T::S16 => half(&literal.s16s, n).map(|x| write!(out, "{}", x.cast_signed())),
            T::U16 => half(&literal.u16s, n).map(|x| write!(out, "{x}")),
            T::F16 => half(&literal.f16s, n).map(|x| write!(out, "{}", Small(T::F16, x))),
            T::BF16 => half(&literal.bf16s, n).map(|x| write!(out, "{}", Small(T::BF16, x))),
            T::F32 => literal.f32s.get(n).map(|&x| write!(out, "{}", Single(x))),
            T::F64 => literal.f64s.get(n).map(|&x| write!(out, "{}", Double(x))),
            T::C64 => pair(&literal.c64s, n).map(|(re, im)| write!(out, "({}, {})", Single(re), Single(im))),
            T::C128 => pair(&literal.c128s, n).map(|(re, im)| write!(out, "({}, {})", Double(re), Double(im))),
            other => literal.bytes_of(other).and_then(|b| b.get(n).copied()).map(|x| match other {
                t if t.is_floating() => write!(out, "{}", Small(t, x.into())),
                T::S1 | T::S2 | T::S4 | T::S8 => {
                    // Moved to the top of the byte and back, so that the sign spreads.
                    let unused = 8u64.saturating_sub(other.bits());
                    write!(out, "{}", (x << unused).cast_signed() >> unused)
                }
                _ => write!(out, "{x}"),
            }),
        };
        shown.unwrap_or_else(|| self.out.write_str("?"))
    }
}

/// The `n`-th little-endian half word.
fn half(bytes: &[u8], n: usize) -> Option<u16> {
    let at = n.checked_mul(2)?;
    Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at.checked_add(1)?)?]))
}

/// The `n`-th complex number.
fn pair<T: Copy>(numbers: &[T], n: usize) -> Option<(T, T)> {
    let at = n.checked_mul(2)?;
    Some((*numbers.get(at)?, *numbers.get(at.checked_add(1)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_printed_in_logical_order() {
        let check = |shape: &Shape, literal: LiteralProto, expected: &str| {
            let mut out = String::new();
            write_literal(&mut out, &literal, &shape.0, Preset::Canonical).unwrap();
            assert_eq!(out, expected);
        };
        use PrimitiveType as T;
        let f32s = || LiteralProto { f32s: vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], ..Default::default() };
        let row = Shape::array(T::F32, &[2, 3]);
        check(&row, f32s(), "{ { 0, 1, 2 }, { 3, 4, 5 } }");
        let mut column = row.clone();
        column.proto_mut().layout.get_or_insert_default().minor_to_major = vec![0, 1];
        check(&column, f32s(), "{ { 0, 2, 4 }, { 1, 3, 5 } }");
        check(&Shape::array(T::F32, &[2, 0]), LiteralProto::default(), "{ {}, {} }");
        check(&Shape::array(T::F32, &[5]), f32s(), "?");
        check(&Shape::array(T::F32, &[1 << 60, 0]), LiteralProto::default(), "{...}");
        check(&Shape::array(T::F32, &[1; 100_000]), LiteralProto { f32s: vec![1.0], ..Default::default() }, "{...}");
        let s4s = LiteralProto { s4s: vec![1, 0xe, 3], ..Default::default() };
        check(&Shape::array(T::S4, &[3]), s4s, "{1, -2, 3}");
        let preds = |p: &[bool]| LiteralProto { preds: p.to_vec(), ..Default::default() };
        check(&Shape::scalar(T::PRED), preds(&[true]), "true");
        check(&Shape::array(T::PRED, &[2]), preds(&[true, false]), "{1, 0}");
        let c64s = LiteralProto { c64s: vec![1.0, -0.0], ..Default::default() };
        check(&Shape::scalar(T::C64), c64s, "(1, -0.0)");
        let tuple = LiteralProto { tuple_literals: vec![preds(&[false]), f32s()], ..Default::default() };
        check(&Shape::tuple(vec![Shape::scalar(T::PRED), row]), tuple, "( false, { { 0, 1, 2 }, { 3, 4, 5 } } )");
    }
}
