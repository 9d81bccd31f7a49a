//! Shapes with layouts.

use std::fmt;

use super::quote::{Joined, Separated};
use crate::proto::{LayoutProto, PrimitiveType, ShapeProto};

/// Which layouts are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layouts {
    None,
    NotRowMajor,
    All,
}

/// A shape as XLA prints it: `f32[2,3]{1,0}`, `(f32[], s32[4]{0})`.
pub(super) struct ShapeText<'a> {
    pub(super) shape: &'a ShapeProto,
    pub(super) layouts: Layouts,
    pub(super) indices: bool,
}

impl<'a> ShapeText<'a> {
    fn inner(&self, shape: &'a ShapeProto) -> Self {
        Self { shape, ..*self }
    }
}

impl fmt::Display for ShapeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = self.shape;
        let element_type = shape.element_type.as_known().unwrap_or_default();
        let mut elements = shape.tuple_shapes.iter().map(|s| self.inner(s));
        match element_type {
            PrimitiveType::TUPLE => return write!(f, "({})", Separated::new(elements, self.indices)),
            PrimitiveType::BUFFER => {
                return match elements.next() {
                    Some(element) => write!(f, "b({element})"),
                    None => f.write_str("b()"),
                };
            }
            _ => {}
        }
        write!(f, "{element_type}[")?;
        for (n, &d) in shape.dimensions.iter().enumerate() {
            let dynamic = shape.is_dynamic_dimension.get(n).copied().unwrap_or(false);
            f.write_str(if n > 0 { "," } else { "" })?;
            match (dynamic, d) {
                (true, i64::MIN) => f.write_str("?")?,
                (true, d) => write!(f, "<={d}")?,
                (false, d) => write!(f, "{d}")?,
            }
        }
        f.write_str("]")?;
        match shape.layout.as_option() {
            Some(layout) if self.shows(layout) => write!(f, "{}", LayoutText(layout)),
            _ => Ok(()),
        }
    }
}

impl ShapeText<'_> {
    fn shows(&self, layout: &LayoutProto) -> bool {
        let plain = layout.tiles.is_empty()
            && layout.element_size_in_bits == 0
            && layout.memory_space == 0
            && layout.tail_padding_alignment_in_elements <= 1;
        let order = &layout.minor_to_major;
        let row_major = order.iter().rev().zip(0i64..).all(|(&d, expected)| d == expected);
        match self.layouts {
            Layouts::None => false,
            Layouts::NotRowMajor => !(plain && row_major),
            Layouts::All => !(plain && order.is_empty() && self.shape.dimensions.is_empty()),
        }
    }
}

/// `{1,0:T(8,128)E(4)S(1)}`
struct LayoutText<'a>(&'a LayoutProto);

impl fmt::Display for LayoutText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layout = self.0;
        write!(f, "{{{}", Joined(&layout.minor_to_major, ","))?;
        let mut colon = ":";
        let mut separator = || std::mem::take(&mut colon);
        for (n, tile) in layout.tiles.iter().enumerate() {
            write!(f, "{}{}(", separator(), if n == 0 { "T" } else { "" })?;
            for (n, &d) in tile.dimensions.iter().enumerate() {
                f.write_str(if n > 0 { "," } else { "" })?;
                // XLA's sign for a dimension that is merged with the next one.
                if d == i64::MIN { f.write_str("*")? } else { write!(f, "{d}")? }
            }
            f.write_str(")")?;
        }
        if layout.tail_padding_alignment_in_elements > 1 {
            write!(f, "{}L({})", separator(), layout.tail_padding_alignment_in_elements)?;
        }
        if layout.element_size_in_bits != 0 {
            write!(f, "{}E({})", separator(), layout.element_size_in_bits)?;
        }
        if layout.memory_space != 0 {
            write!(f, "{}S({})", separator(), layout.memory_space)?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use crate::proto::TileProto;

    #[test]
    fn layouts_are_printed_as_asked() {
        let row = Shape::array(PrimitiveType::F32, &[2, 3]);
        let mut column = row.clone();
        column.proto_mut().layout.get_or_insert_default().minor_to_major = vec![0, 1];
        let mut tiled = row.clone();
        let layout = tiled.proto_mut().layout.get_or_insert_default();
        layout.tiles =
            [[8, i64::MIN], [2, 1]].map(|d| TileProto { dimensions: d.to_vec(), ..Default::default() }).into();
        layout.memory_space = 1;
        let tuple = Shape::tuple(vec![row, column, tiled, Shape::scalar(PrimitiveType::PRED)]);
        let check = |layouts, expected: &str| {
            assert_eq!(ShapeText { shape: &tuple.0, layouts, indices: false }.to_string(), expected);
        };
        check(Layouts::None, "(f32[2,3], f32[2,3], f32[2,3], pred[])");
        check(Layouts::NotRowMajor, "(f32[2,3], f32[2,3]{0,1}, f32[2,3]{1,0:T(8,*)(2,1)S(1)}, pred[])");
        check(Layouts::All, "(f32[2,3]{1,0}, f32[2,3]{0,1}, f32[2,3]{1,0:T(8,*)(2,1)S(1)}, pred[])");
    }
}
