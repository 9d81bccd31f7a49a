//! Literals: nested braces in logical order, stored in the order of the shape's layout.
//!
//! A literal that was elided when it was printed (`{...}`) is refused: its numbers are not in the text.

use super::super::literal::strides;
use super::cursor::{Cursor, DEEPEST, Result};
use super::float::{double, single, small};
use crate::ir::Shape;
use crate::proto::{LiteralProto, PrimitiveType, ShapeProto};

/// A literal of that shape.
pub(super) fn literal(c: &mut Cursor<'_>, shape: &Shape) -> Result<LiteralProto> {
    nested(c, &shape.0, 0)
}

fn nested(c: &mut Cursor<'_>, shape: &ShapeProto, depth: usize) -> Result<LiteralProto> {
    let element_type = shape.element_type.as_known().unwrap_or_default();
    if element_type == PrimitiveType::TUPLE {
        return tuple(c, shape, depth);
    }
    let start = *c;
    if element_type.bits() == 0 || shape.is_dynamic_dimension.iter().any(|&d| d) {
        return Err(start.refused(format!("a {} has no literal in text", Shape::from(shape.clone()))));
    }
    if shape.dimensions.len() > DEEPEST {
        return Err(start.refused(format!("literals are nested more than {DEEPEST} deep")));
    }
    let mut elements = Elements::new(element_type);
    let mut reader = Reader { elements: &mut elements, dims: &shape.dimensions };
    reader.nested(c, 0)?;
    let order =
        stored_order(shape, elements.len()).ok_or_else(|| start.refused("the literal has too many elements"))?;
    let mut literal = elements.into_literal(&order);
    literal.shape = shape.clone().into();
    Ok(literal)
}

fn tuple(c: &mut Cursor<'_>, shape: &ShapeProto, depth: usize) -> Result<LiteralProto> {
    if depth == DEEPEST {
        return Err(c.refused(format!("literals are nested more than {DEEPEST} deep")));
    }
    refuse_elided(c)?;
    c.expect("(")?;
    let mut literal = LiteralProto { shape: shape.clone().into(), ..Default::default() };
    for (n, element) in shape.tuple_shapes.iter().enumerate() {
        if n > 0 {
            c.expect(",")?;
        }
        literal.tuple_literals.push(nested(c, element, depth + 1)?);
    }
    c.expect(")")?;
    Ok(literal)
}

/// Refuses `{...}`.
fn refuse_elided(c: &Cursor<'_>) -> Result<()> {
    let mut inside = *c;
    if inside.eat("{") && inside.peek() == Some(b'.') {
        let advice = "print the module with its large constants, or read its proto";
        return Err(c.refused(format!("the literal was elided when it was printed; {advice}")));
    }
    Ok(())
}

/// For each place of the stored order the number of the element that goes there, counted in logical order.
fn stored_order(shape: &ShapeProto, count: usize) -> Option<Vec<usize>> {
    let strides = strides(shape);
    let sizes: Vec<usize> = shape.dimensions.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
    let mut order = vec![0; count];
    let mut index = vec![0usize; sizes.len()];
    for logical in 0..count {
        let place: usize = index.iter().zip(&strides).map(|(i, stride)| i * stride).sum();
        *order.get_mut(place)? = logical;
        for (at, size) in index.iter_mut().zip(&sizes).rev() {
            *at += 1;
            if *at < *size {
                break;
            }
            *at = 0;
        }
    }
    Some(order)
}

/// Elements in the order in which they stand in the text.
enum Elements {
    Pred(Vec<bool>),
    S32(Vec<i32>),
    S64(Vec<i64>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    C64(Vec<[f32; 2]>),
    C128(Vec<[f64; 2]>),
    /// Of types of 16 bits.
    Halves(PrimitiveType, Vec<u16>),
    /// Of types of at most 8 bits.
    Bytes(PrimitiveType, Vec<u8>),
}

impl Elements {
    fn new(element_type: PrimitiveType) -> Self {
        use PrimitiveType as T;
        match element_type {
            T::PRED => Self::Pred(Vec::new()),
            T::S32 => Self::S32(Vec::new()),
            T::S64 => Self::S64(Vec::new()),
            T::U32 => Self::U32(Vec::new()),
            T::U64 => Self::U64(Vec::new()),
            T::F32 => Self::F32(Vec::new()),
            T::F64 => Self::F64(Vec::new()),
            T::C64 => Self::C64(Vec::new()),
            T::C128 => Self::C128(Vec::new()),
            other if other.bits() == 16 => Self::Halves(other, Vec::new()),
            other => Self::Bytes(other, Vec::new()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Pred(v) => v.len(),
            Self::S32(v) => v.len(),
            Self::S64(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::C64(v) => v.len(),
            Self::C128(v) => v.len(),
            Self::Halves(_, v) => v.len(),
            Self::Bytes(_, v) => v.len(),
        }
    }

    fn read(&mut self, c: &mut Cursor<'_>) -> Result<()> {
        match self {
            Self::Pred(v) => v.push(predicate(c)?),
            Self::S32(v) => v.push(c.integer()?),
            Self::S64(v) => v.push(c.integer()?),
            Self::U32(v) => v.push(c.integer()?),
            Self::U64(v) => v.push(c.integer()?),
            Self::F32(v) => v.push(single(c)?),
            Self::F64(v) => v.push(double(c)?),
            Self::C64(v) => v.push(complex(c, single)?),
            Self::C128(v) => v.push(complex(c, double)?),
            Self::Halves(PrimitiveType::S16, v) => v.push(c.integer::<i16>()?.cast_unsigned()),
            Self::Halves(PrimitiveType::U16, v) => v.push(c.integer()?),
            Self::Halves(element_type, v) => v.push(small(c, *element_type)?),
            Self::Bytes(element_type, v) if element_type.is_floating() => {
                v.push(small(c, *element_type)?.to_le_bytes()[0])
            }
            Self::Bytes(element_type, v) => v.push(narrow(c, *element_type)?),
        }
        Ok(())
    }

    /// The literal that holds the elements in the given order.
    fn into_literal(self, order: &[usize]) -> LiteralProto {
        fn sorted<T: Copy>(values: &[T], order: &[usize]) -> Vec<T> {
            order.iter().filter_map(|&n| values.get(n).copied()).collect()
        }
        let mut literal = LiteralProto::default();
        match self {
            Self::Pred(v) => literal.preds = sorted(&v, order),
            Self::S32(v) => literal.s32s = sorted(&v, order),
            Self::S64(v) => literal.s64s = sorted(&v, order),
            Self::U32(v) => literal.u32s = sorted(&v, order),
            Self::U64(v) => literal.u64s = sorted(&v, order),
            Self::F32(v) => literal.f32s = sorted(&v, order),
            Self::F64(v) => literal.f64s = sorted(&v, order),
            Self::C64(v) => literal.c64s = sorted(&v, order).concat(),
            Self::C128(v) => literal.c128s = sorted(&v, order).concat(),
            Self::Halves(element_type, v) => {
                let bytes = sorted(&v, order).into_iter().flat_map(u16::to_le_bytes).collect();
                match element_type {
                    PrimitiveType::S16 => literal.s16s = bytes,
                    PrimitiveType::U16 => literal.u16s = bytes,
                    PrimitiveType::F16 => literal.f16s = bytes,
                    _ => literal.bf16s = bytes,
                }
            }
            Self::Bytes(element_type, v) => {
                if let Some(bytes) = literal.bytes_of_mut(element_type) {
                    *bytes = sorted(&v, order);
                }
            }
        }
        literal
    }
}

struct Reader<'a> {
    elements: &'a mut Elements,
    dims: &'a [i64],
}

impl Reader<'_> {
    fn nested(&mut self, c: &mut Cursor<'_>, dimension: usize) -> Result<()> {
        refuse_elided(c)?;
        let Some(&size) = self.dims.get(dimension) else { return self.elements.read(c) };
        c.expect("{")?;
        for n in 0..size {
            if n > 0 && !c.eat(",") {
                return Err(c.expected(format!("`,` and {} more of {size} elements", size - n)));
            }
            self.nested(c, dimension + 1)?;
        }
        if c.eat("}") { Ok(()) } else { Err(c.expected(format!("`}}` after {size} elements"))) }
    }
}

fn predicate(c: &mut Cursor<'_>) -> Result<bool> {
    match c.peek_word() {
        "0" | "false" => c.word("").map(|_| false),
        "1" | "true" => c.word("").map(|_| true),
        _ => Err(c.expected("`true`, `false`, `1` or `0`")),
    }
}

fn complex<T>(c: &mut Cursor<'_>, part: fn(&mut Cursor<'_>) -> Result<T>) -> Result<[T; 2]> {
    c.expect("(")?;
    let real = part(c)?;
    c.expect(",")?;
    let imaginary = part(c)?;
    c.expect(")")?;
    Ok([real, imaginary])
}

/// An integer of at most eight bits, as the byte that the wire has for it.
fn narrow(c: &mut Cursor<'_>, element_type: PrimitiveType) -> Result<u8> {
    use PrimitiveType as T;
    let start = *c;
    let value: i16 = c.integer()?;
    let bits = element_type.bits();
    let signed = matches!(element_type, T::S1 | T::S2 | T::S4 | T::S8);
    let range = if signed { -(1i16 << (bits - 1))..1 << (bits - 1) } else { 0..1 << bits };
    if !range.contains(&value) {
        return Err(start.refused(format!("{element_type} has no such number")));
    }
    // Of a narrow type only its own bits are stored.
    Ok(value.to_le_bytes()[0] & (0xffu8 >> (8u64.saturating_sub(bits))))
}

#[cfg(test)]
mod tests {
    use super::super::super::Preset;
    use super::super::super::literal::write_literal;
    use super::super::shape::shape;
    use super::*;

    fn read(text: &str) -> Result<(Shape, LiteralProto)> {
        let mut c = Cursor::new(text);
        let shape = shape(&mut c)?;
        let literal = literal(&mut c, &shape)?;
        Ok((shape, literal))
    }

    #[test]
    fn literals_print_as_they_were_written() {
        for text in [
            "f32[2,3]{1,0} { { 0, 1, 2 }, { 3, 4, 5 } }",
            "f32[2,3]{0,1} { { 0, 1, 2 }, { 3, 4, 5 } }",
            "s64[2,3,2]{0,2,1} { { { 0, 1 }, { 2, 3 }, { 4, 5 } }, { { 6, 7 }, { 8, 9 }, { 10, 11 } } }",
            "f32[2,0]{1,0} { {}, {} }",
            "(pred[], s4[3]{0}, (c64[1]{0})) ( true, {1, -2, 7}, ( {(1, -inf)} ) )",
            "u64[] 18446744073709551615",
            "s8[2]{0} {-128, 127}",
            "u2[2]{0} {0, 3}",
            "bf16[3]{0} {1.5, nan, -0.0}",
            "f8e4m3fn[2]{0} {448, 0.001953125}",
        ] {
            let (shape, literal) = read(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            let mut printed = String::new();
            write_literal(&mut printed, &literal, &shape.0, Preset::Canonical).unwrap();
            assert!(text.ends_with(&format!(" {printed}")), "{text}: {printed}");
        }
    }

    #[test]
    fn elements_lie_in_the_order_of_the_layout() {
        let (_, literal) = read("s32[2,3]{0,1} { { 0, 1, 2 }, { 3, 4, 5 } }").unwrap();
        assert_eq!(literal.s32s, [0, 3, 1, 4, 2, 5]);
    }

    #[test]
    fn what_is_no_literal_of_the_shape_is_refused() {
        for (text, expected) in [
            ("f32[2]{0} {1}", "`,` and 1 more of 2 elements"),
            ("f32[1]{0} {1, 2}", "`}` after 1 elements"),
            ("f32[4]{0} {...}", "elided"),
            ("f32[2,2]{1,0} {...}", "elided"),
            ("s8[] 128", "s8 has no such number"),
            ("u32[] -1", "out of range"),
            ("pred[] 2", "expected `true`, `false`"),
            ("s32[] 1.5", "a whole number"),
            ("token[] 1", "has no literal"),
            ("f32[<=2]{0} {1, 2}", "has no literal"),
            ("f32[1152921504606846976,0] {}", "expected `{`"),
            ("(f32[]) ( 1, 2 )", "expected `)`"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
