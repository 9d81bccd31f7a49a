//! Shapes: arrays with an element type, dimensions and a layout, and tuples of shapes.

use std::fmt;
use std::sync::{Arc, LazyLock};

use buffa::Enumeration;

use crate::proto::{LayoutProto, PrimitiveType, ShapeProto};

impl PrimitiveType {
    /// The name in HLO text (`f32`, `bf16`, `pred`); `invalid` where there is none.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PRIMITIVE_TYPE_INVALID => "invalid",
            Self::PRED => "pred",
            Self::S1 => "s1",
            Self::S2 => "s2",
            Self::S4 => "s4",
            Self::S8 => "s8",
            Self::S16 => "s16",
            Self::S32 => "s32",
            Self::S64 => "s64",
            Self::U1 => "u1",
            Self::U2 => "u2",
            Self::U4 => "u4",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::BF16 => "bf16",
            Self::C64 => "c64",
            Self::C128 => "c128",
            Self::F8E5M2 => "f8e5m2",
            Self::F8E4M3 => "f8e4m3",
            Self::F8E4M3FN => "f8e4m3fn",
            Self::F8E4M3B11FNUZ => "f8e4m3b11fnuz",
            Self::F8E3M4 => "f8e3m4",
            Self::F8E5M2FNUZ => "f8e5m2fnuz",
            Self::F8E4M3FNUZ => "f8e4m3fnuz",
            Self::F4E2M1FN => "f4e2m1fn",
            Self::F8E8M0FNU => "f8e8m0fnu",
            Self::TUPLE => "tuple",
            Self::OPAQUE_TYPE => "opaque",
            Self::TOKEN => "token",
            Self::BUFFER => "b",
        }
    }

    /// The type of arrays, tokens or opaque values that has this name in HLO text.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let known = Self::values().iter().copied();
        known.filter(|t| t.bits() > 0 || matches!(t, Self::OPAQUE_TYPE | Self::TOKEN)).find(|t| t.name() == name)
    }

    /// Whether elements are real floating-point numbers of any width.
    #[must_use]
    pub fn is_floating(self) -> bool {
        matches!(
            self,
            Self::F16
                | Self::F32
                | Self::F64
                | Self::BF16
                | Self::F8E5M2
                | Self::F8E4M3
                | Self::F8E4M3FN
                | Self::F8E4M3B11FNUZ
                | Self::F8E3M4
                | Self::F8E5M2FNUZ
                | Self::F8E4M3FNUZ
                | Self::F4E2M1FN
                | Self::F8E8M0FNU
        )
    }

    /// Whether elements are signed or unsigned integers (not predicates).
    #[must_use]
    pub fn is_integral(self) -> bool {
        matches!(
            self,
            Self::S1
                | Self::S2
                | Self::S4
                | Self::S8
                | Self::S16
                | Self::S32
                | Self::S64
                | Self::U1
                | Self::U2
                | Self::U4
                | Self::U8
                | Self::U16
                | Self::U32
                | Self::U64
        )
    }

    /// Size of one element in bits as stored in a dense buffer; 0 for types without elements.
    #[must_use]
    pub fn bits(self) -> u64 {
        match self {
            Self::PRED | Self::S8 | Self::U8 => 8,
            Self::S1 | Self::U1 => 1,
            Self::S2 | Self::U2 => 2,
            Self::S4 | Self::U4 | Self::F4E2M1FN => 4,
            Self::S16 | Self::U16 | Self::F16 | Self::BF16 => 16,
            Self::S32 | Self::U32 | Self::F32 => 32,
            Self::S64 | Self::U64 | Self::F64 | Self::C64 => 64,
            Self::C128 => 128,
            other if other.is_floating() => 8,
            _ => 0,
        }
    }
}

impl fmt::Display for PrimitiveType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The shape of a value: an array, a tuple of shapes, a token or an opaque handle.
///
/// Wraps the wire message, so that layouts with tiles, dynamic dimensions and
/// fields of newer releases survive. Equality compares all of it;
/// [`Shape::same_array`] compares element type and dimensions only.
///
/// Clones share the message until one is changed: a module has thousands of values and dozens of shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape(pub Arc<ShapeProto>);

/// No shape.
static NONE: LazyLock<Arc<ShapeProto>> = LazyLock::new(Arc::default);

impl Default for Shape {
    fn default() -> Self {
        Self(Arc::clone(&NONE))
    }
}

impl From<ShapeProto> for Shape {
    fn from(proto: ShapeProto) -> Self {
        Self(Arc::new(proto))
    }
}

impl Shape {
    /// A dense array in row-major layout, as JAX writes it.
    #[must_use]
    pub fn array(element_type: PrimitiveType, dims: &[i64]) -> Self {
        Self::from(ShapeProto {
            element_type: element_type.into(),
            dimensions: dims.to_vec(),
            is_dynamic_dimension: vec![false; dims.len()],
            layout: LayoutProto {
                minor_to_major: (0..dims.len() as i64).rev().collect(),
                tail_padding_alignment_in_elements: 1,
                ..Default::default()
            }
            .into(),
            ..Default::default()
        })
    }

    /// A scalar.
    #[must_use]
    pub fn scalar(element_type: PrimitiveType) -> Self {
        Self::array(element_type, &[])
    }

    /// A tuple.
    #[must_use]
    pub fn tuple(elements: Vec<Self>) -> Self {
        Self::from(ShapeProto {
            element_type: PrimitiveType::TUPLE.into(),
            tuple_shapes: elements.into_iter().map(|s| Arc::unwrap_or_clone(s.0)).collect(),
            ..Default::default()
        })
    }

    /// A copy of the wire message.
    #[must_use]
    pub fn to_proto(&self) -> ShapeProto {
        (*self.0).clone()
    }

    /// Mutable access to the wire message, which is this shape's own from then on.
    pub fn proto_mut(&mut self) -> &mut ShapeProto {
        Arc::make_mut(&mut self.0)
    }

    /// The element type; `PRIMITIVE_TYPE_INVALID` for one this crate does not know.
    #[must_use]
    pub fn element_type(&self) -> PrimitiveType {
        self.0.element_type.as_known().unwrap_or(PrimitiveType::PRIMITIVE_TYPE_INVALID)
    }

    /// The sizes of an array's dimensions; empty for scalars and non-arrays.
    #[must_use]
    pub fn dims(&self) -> &[i64] {
        &self.0.dimensions
    }

    /// Number of dimensions.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.0.dimensions.len()
    }

    /// The minor-to-major order of dimensions; `None` where no layout is given.
    #[must_use]
    pub fn minor_to_major(&self) -> Option<&[i64]> {
        self.0.layout.as_option().map(|l| l.minor_to_major.as_slice())
    }

    /// Number of elements, saturating; 1 for scalars, 0 for non-arrays.
    #[must_use]
    pub fn num_elements(&self) -> u64 {
        if !self.is_array() {
            return 0;
        }
        self.dims().iter().fold(1u64, |n, &d| n.saturating_mul(u64::try_from(d).unwrap_or(0)))
    }

    /// Size in bytes of a dense array of this shape, or of all leaves of a tuple.
    #[must_use]
    pub fn byte_size(&self) -> u64 {
        let bytes = |s: Self| s.num_elements().saturating_mul(s.element_type().bits()).div_ceil(8);
        self.leaves().map(bytes).fold(0, u64::saturating_add)
    }

    /// Whether this is an array of a known element type (scalars included).
    #[must_use]
    pub fn is_array(&self) -> bool {
        !matches!(
            self.element_type(),
            PrimitiveType::TUPLE
                | PrimitiveType::TOKEN
                | PrimitiveType::OPAQUE_TYPE
                | PrimitiveType::BUFFER
                | PrimitiveType::PRIMITIVE_TYPE_INVALID
        )
    }

    /// Whether this is an array without dimensions.
    #[must_use]
    pub fn is_scalar(&self) -> bool {
        self.is_array() && self.rank() == 0
    }

    /// Whether this is a tuple.
    #[must_use]
    pub fn is_tuple(&self) -> bool {
        self.element_type() == PrimitiveType::TUPLE
    }

    /// The elements of a tuple; none for other shapes.
    pub fn tuple_elements(&self) -> impl ExactSizeIterator<Item = Self> + '_ {
        self.0.tuple_shapes.iter().map(|s| Self::from(s.clone()))
    }

    /// The non-tuple shapes inside, depth first; the shape itself where it is no tuple.
    #[must_use]
    pub fn leaves(&self) -> ShapeLeaves<'_> {
        ShapeLeaves { stack: vec![&self.0] }
    }

    /// Number of leaves, see [`Shape::leaves`].
    #[must_use]
    pub fn num_leaves(&self) -> usize {
        self.leaves().count()
    }

    /// Whether both are arrays of the same element type and dimensions, whatever their layouts.
    #[must_use]
    pub fn same_array(&self, other: &Self) -> bool {
        self.is_array()
            && other.is_array()
            && self.element_type() == other.element_type()
            && self.dims() == other.dims()
    }

    /// Whether both have the same element types, dimensions and tuple structure, whatever their layouts.
    #[must_use]
    pub fn is_compatible(&self, other: &Self) -> bool {
        compatible(&self.0, &other.0)
    }

    /// The same shape with another element type (dimensions and layout stay).
    #[must_use]
    pub fn with_element_type(&self, element_type: PrimitiveType) -> Self {
        let whole = self.0.layout.as_option().is_none_or(|l| l.element_size_in_bits == 0);
        if whole && self.0.element_type.as_known() == Some(element_type) {
            return self.clone();
        }
        let mut proto = self.to_proto();
        proto.element_type = element_type.into();
        if let Some(layout) = proto.layout.as_option_mut() {
            layout.element_size_in_bits = 0;
        }
        Self::from(proto)
    }
}

/// See [`Shape::is_compatible`]; the cost is bounded by the smaller of both.
pub(crate) fn compatible(x: &ShapeProto, y: &ShapeProto) -> bool {
    let same = || {
        x.element_type == y.element_type
            && x.dimensions == y.dimensions
            && x.tuple_shapes.len() == y.tuple_shapes.len()
            && x.tuple_shapes.iter().zip(&y.tuple_shapes).all(|(x, y)| compatible(x, y))
    };
    std::ptr::eq(x, y) || same()
}

/// Depth-first iterator over the leaves of a shape.
#[derive(Debug, Clone)]
pub struct ShapeLeaves<'a> {
    stack: Vec<&'a ShapeProto>,
}

impl Iterator for ShapeLeaves<'_> {
    type Item = Shape;

    fn next(&mut self) -> Option<Shape> {
        while let Some(shape) = self.stack.pop() {
            if shape.element_type.as_known() == Some(PrimitiveType::TUPLE) {
                self.stack.extend(shape.tuple_shapes.iter().rev());
            } else {
                return Some(Shape::from(shape.clone()));
            }
        }
        None
    }
}

impl fmt::Display for Shape {
    /// Prints without the layout: `f32[2,3]`, `(f32[], s32[4])`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_tuple() {
            f.write_str("(")?;
            for (i, element) in self.tuple_elements().enumerate() {
                if i > 0 {
                    f.write_str(", ")?;
                }
                write!(f, "{element}")?;
            }
            return f.write_str(")");
        }
        write!(f, "{}[", self.element_type())?;
        for (i, d) in self.dims().iter().enumerate() {
            let dynamic = self.0.is_dynamic_dimension.get(i).copied().unwrap_or(false);
            write!(f, "{}{}{d}", if i > 0 { "," } else { "" }, if dynamic { "<=" } else { "" })?;
        }
        f.write_str("]")
    }
}

/// A shape in an error message: of a long tuple only the beginning.
pub(crate) struct Brief<'a>(pub(crate) &'a ShapeProto);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SPELLED: usize = 8;
        let count = self.0.tuple_shapes.len();
        if count <= SPELLED && self.0.tuple_shapes.iter().all(|s| s.tuple_shapes.is_empty()) {
            return write!(f, "{}", Shape::from(self.0.clone()));
        }
        f.write_str("(")?;
        for (i, element) in self.0.tuple_shapes.iter().take(SPELLED).enumerate() {
            f.write_str(if i > 0 { ", " } else { "" })?;
            match element.tuple_shapes.len() {
                0 => write!(f, "{}", Shape::from(element.clone()))?,
                n => write!(f, "a tuple of {n}")?,
            }
        }
        if count > SPELLED { write!(f, ", and {} more)", count - SPELLED) } else { f.write_str(")") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_come_depth_first() {
        let f = |d| Shape::array(PrimitiveType::F32, &[d]);
        let shape = Shape::tuple(vec![f(1), Shape::tuple(vec![f(2), f(3)]), f(4)]);
        assert_eq!(shape.leaves().map(|s| s.num_elements()).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(shape.to_string(), "(f32[1], (f32[2], f32[3]), f32[4])");
        assert_eq!(shape.byte_size(), 40);
    }

    #[test]
    fn compatible_shapes_differ_in_layout_only() {
        let shape = Shape::tuple(vec![Shape::array(PrimitiveType::F32, &[2, 3]), Shape::scalar(PrimitiveType::PRED)]);
        let mut other = shape.clone();
        other.proto_mut().tuple_shapes[0].layout.get_or_insert_default().minor_to_major = vec![0, 1];
        assert!(shape.is_compatible(&other) && shape != other);
        other.proto_mut().tuple_shapes[0].dimensions = vec![3, 2];
        assert!(!shape.is_compatible(&other));
        other.proto_mut().tuple_shapes.pop();
        assert!(!shape.is_compatible(&other));
    }

    #[test]
    fn element_counts_saturate_on_absurd_dimensions() {
        assert_eq!(Shape::array(PrimitiveType::F32, &[i64::MAX, i64::MAX]).num_elements(), u64::MAX);
        assert_eq!(Shape::array(PrimitiveType::F32, &[-1]).num_elements(), 0);
    }
}
