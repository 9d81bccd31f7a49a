//! Shapes with layouts: `f32[2,<=3]{1,0:T(8,128)(2,1)E(4)S(1)}`, `(f32[], s32[4]{0})`, `b(f32[2]{0})`.

use super::cursor::{Cursor, DEEPEST, Result};
use crate::ir::Shape;
use crate::proto::{LayoutProto, PrimitiveType, ShapeProto, TileProto};

/// A shape; an array without a layout gets the row-major one, as XLA's parser gives it.
pub(super) fn shape(c: &mut Cursor<'_>) -> Result<Shape> {
    Ok(Shape::from(nested(c, 0)?))
}

/// Whether a shape stands next, and not the name of an instruction.
pub(super) fn is_next(c: &Cursor<'_>) -> bool {
    c.peek() == Some(b'(') || c.peek_behind_word().is_some_and(|b| b == b'[' || b == b'(')
}

fn nested(c: &mut Cursor<'_>, depth: usize) -> Result<ShapeProto> {
    if depth == DEEPEST {
        return Err(c.refused(format!("shapes are nested more than {DEEPEST} deep")));
    }
    if c.peek() == Some(b'(') {
        let tuple_shapes = c.list("(", ")", |c| nested(c, depth + 1))?;
        return Ok(ShapeProto { element_type: PrimitiveType::TUPLE.into(), tuple_shapes, ..Default::default() });
    }
    let start = *c;
    let word = c.word("a shape")?;
    if word == "b" && c.eat("(") {
        let tuple_shapes = vec![nested(c, depth + 1)?];
        c.expect(")")?;
        return Ok(ShapeProto { element_type: PrimitiveType::BUFFER.into(), tuple_shapes, ..Default::default() });
    }
    let Some(element_type) = PrimitiveType::from_name(word) else { return Err(start.expected("a shape")) };
    let dims = c.list("[", "]", dimension)?;
    let (sizes, dynamic): (Vec<i64>, Vec<bool>) = dims.into_iter().unzip();
    if !has_elements(element_type) {
        if !sizes.is_empty() {
            return Err(start.refused("a shape of this type has no dimensions"));
        }
        return Ok(ShapeProto { element_type: element_type.into(), ..Default::default() });
    }
    let mut shape = Shape::array(element_type, &sizes);
    let proto = shape.proto_mut();
    proto.is_dynamic_dimension = dynamic;
    // What follows after a space is a literal or a computation's body.
    if c.peek() == Some(b'{') && c.touches() {
        proto.layout = layout(c, sizes.len())?.into();
    }
    Ok(shape.to_proto())
}

fn has_elements(element_type: PrimitiveType) -> bool {
    !matches!(element_type, PrimitiveType::TOKEN | PrimitiveType::OPAQUE_TYPE)
}

/// A size, and whether it is a bound only.
fn dimension(c: &mut Cursor<'_>) -> Result<(i64, bool)> {
    if c.eat("?") {
        return Ok((i64::MIN, true));
    }
    let dynamic = c.eat("<=");
    let start = *c;
    let size: i64 = c.integer()?;
    if size < 0 { Err(start.refused("a dimension has no negative size")) } else { Ok((size, dynamic)) }
}

fn layout(c: &mut Cursor<'_>, rank: usize) -> Result<LayoutProto> {
    let start = *c;
    c.expect("{")?;
    let mut layout = LayoutProto { tail_padding_alignment_in_elements: 1, ..Default::default() };
    while !matches!(c.peek(), Some(b'}' | b':')) {
        if !layout.minor_to_major.is_empty() {
            c.expect(",")?;
        }
        layout.minor_to_major.push(c.integer()?);
    }
    let mut sorted = layout.minor_to_major.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..rank as i64) {
        return Err(start.refused(format!("a layout of {rank} dimensions names each of them once")));
    }
    if c.eat(":") {
        while c.peek() != Some(b'}') {
            property(c, &mut layout)?;
        }
    }
    c.expect("}")?;
    Ok(layout)
}

/// One of `T(8,128)(2,1)`, `L(4)`, `E(4)`, `S(1)`.
fn property(c: &mut Cursor<'_>, layout: &mut LayoutProto) -> Result<()> {
    let start = *c;
    match c.peek_word() {
        "T" => {
            c.expect("T")?;
            while c.peek() == Some(b'(') {
                let dimensions = c.list("(", ")", |c| if c.eat("*") { Ok(i64::MIN) } else { c.integer() })?;
                layout.tiles.push(TileProto { dimensions, ..Default::default() });
            }
            return if layout.tiles.is_empty() { Err(c.expected("`(`")) } else { Ok(()) };
        }
        "L" => c.expect("L(").and_then(|()| c.integer()).map(|n| layout.tail_padding_alignment_in_elements = n),
        "E" => c.expect("E(").and_then(|()| c.integer()).map(|n| layout.element_size_in_bits = n),
        "S" => c.expect("S(").and_then(|()| c.integer()).map(|n| layout.memory_space = n),
        _ => Err(start
            .expected("a tiling `T(...)`, `L(...)`, `E(...)`, `S(...)` or the layout's `}`; others are not held here")),
    }?;
    c.expect(")")
}

#[cfg(test)]
mod tests {
    use super::super::super::shape::{Layouts, ShapeText};
    use super::*;

    #[test]
    fn shapes_print_as_they_were_written() {
        for text in [
            "f32[]",
            "f32[2,3]{1,0}",
            "f32[2,3]{0,1:T(8,*)(2,1)L(4)E(4)S(1)}",
            "(f32[<=2,?]{1,0}, (), (pred[], token[]), /*index=3*/b(s4[2]{0:E(4)}), opaque[])",
            "f32[]{:T(128)}",
            "f8e4m3b11fnuz[0]{0}",
        ] {
            let shape = shape(&mut Cursor::new(text)).unwrap_or_else(|e| panic!("{text}: {e}"));
            let printed = ShapeText { shape: &shape.0, layouts: Layouts::All, indices: false }.to_string();
            assert_eq!(printed, text.replace("/*index=3*/", ""));
        }
        assert_eq!(shape(&mut Cursor::new("f32[2,3] {1,0}")).unwrap(), Shape::array(PrimitiveType::F32, &[2, 3]));
    }

    #[test]
    fn what_is_no_shape_is_refused() {
        for (text, expected) in [
            ("f33[2]", "expected a shape, found `f33`"),
            ("f32[-1]", "no negative size"),
            ("f32[2,3]{1,1}", "a layout of 2 dimensions names each of them once"),
            ("f32[2,3]{0}", "a layout of 2 dimensions names each of them once"),
            ("f32[2]{0:D(D)}", "expected a tiling"),
            ("f32[2]{0:T}", "expected `(`"),
            ("token[2]", "no dimensions"),
            ("f32[9999999999999999999]", "out of range"),
            ("f32[2", "expected `,` or `]`, found the end"),
            (&"(".repeat(100_000), "nested more than 64 deep"),
        ] {
            let error = shape(&mut Cursor::new(text)).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
