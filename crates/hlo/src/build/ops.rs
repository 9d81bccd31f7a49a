//! One method for each operation that passes emit.

use super::{BuildError, Builder, Built};
use crate::ir::{ComputationId, InstructionId, Module, Opcode, Shape};
use crate::proto::hlo_instruction_proto::SliceDimensions;
use crate::proto::{HloInstructionProto, LiteralProto, PrimitiveType};

/// Direction of a `compare`, named as XLA names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ComparisonDirection {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Greater or equal.
    Ge,
    /// Greater.
    Gt,
    /// Less or equal.
    Le,
    /// Less.
    Lt,
}

impl ComparisonDirection {
    /// The name in HLO.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Eq => "EQ",
            Self::Ne => "NE",
            Self::Ge => "GE",
            Self::Gt => "GT",
            Self::Le => "LE",
            Self::Lt => "LT",
        }
    }
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident $opcode:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        ///
        /// Where the operand does not fit the operation.
        pub fn $name(&mut self, x: InstructionId) -> Built { self.emit(Opcode::$opcode, &[x]) }
    )*};
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident $opcode:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        ///
        /// Where element types or dimensions of the operands differ.
        pub fn $name(&mut self, x: InstructionId, y: InstructionId) -> Built { self.emit(Opcode::$opcode, &[x, y]) }
    )*};
}

impl Builder<'_> {
    /// A scalar `f32` constant.
    ///
    /// # Errors
    ///
    /// Where the computation does not exist.
    pub fn constant_f32(&mut self, value: f32) -> Built {
        self.constant(PrimitiveType::F32, f64::from(value))
    }

    /// A scalar constant of type pred, s32, u32, f32 or f64, rounded to it.
    ///
    /// # Errors
    ///
    /// For other element types.
    pub fn constant(&mut self, element_type: PrimitiveType, value: f64) -> Built {
        let shape = Shape::scalar(element_type);
        let mut literal = LiteralProto { shape: shape.to_proto().into(), ..Default::default() };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the caller asks for this type")]
        match element_type {
            PrimitiveType::PRED => literal.preds.push(value != 0.0),
            PrimitiveType::S32 => literal.s32s.push(value as i32),
            PrimitiveType::U32 => literal.u32s.push(value as u32),
            PrimitiveType::F32 => literal.f32s.push(value as f32),
            PrimitiveType::F64 => literal.f64s.push(value),
            _ => return Err(BuildError::Constant { element_type }),
        }
        let attributes = HloInstructionProto { literal: literal.into(), ..Default::default() };
        self.emit_with(Opcode::Constant, &[], shape, attributes, Vec::new())
    }

    /// A one-dimensional `f32` constant.
    ///
    /// # Errors
    ///
    /// Where the computation does not exist.
    pub fn constant_f32_vector(&mut self, values: &[f32]) -> Built {
        let shape = Shape::array(PrimitiveType::F32, &[values.len() as i64]);
        let literal = LiteralProto { shape: shape.to_proto().into(), f32s: values.to_vec(), ..Default::default() };
        let attributes = HloInstructionProto { literal: literal.into(), ..Default::default() };
        self.emit_with(Opcode::Constant, &[], shape, attributes, Vec::new())
    }

    unary! {
        /// |x|.
        abs Abs;
        /// Natural logarithm.
        log Log;
        /// e^x.
        exp Exp;
        /// Square root.
        sqrt Sqrt;
        /// -x.
        negate Negate;
        /// Whether each element is neither infinite nor NaN.
        is_finite IsFinite;
        /// Logical or bitwise complement.
        not Not;
    }

    binary! {
        /// x + y.
        add Add;
        /// x - y.
        subtract Subtract;
        /// x · y.
        multiply Multiply;
        /// x / y.
        divide Divide;
        /// The larger of both; NaN where either is.
        maximum Maximum;
        /// The smaller of both; NaN where either is.
        minimum Minimum;
        /// x^y.
        power Power;
        /// Logical or bitwise and.
        and And;
        /// Logical or bitwise or.
        or Or;
        /// Logical or bitwise exclusive or.
        xor Xor;
    }

    /// Elementwise comparison; floats compare as IEEE 754 says.
    ///
    /// # Errors
    ///
    /// Where element types or dimensions differ.
    pub fn compare(&mut self, x: InstructionId, y: InstructionId, direction: ComparisonDirection) -> Built {
        let element_type = self.instruction(x)?.shape.element_type();
        let kind = match element_type {
            t if t.is_floating() => "FLOAT",
            PrimitiveType::S8 | PrimitiveType::S16 | PrimitiveType::S32 | PrimitiveType::S64 => "SIGNED",
            _ => "UNSIGNED",
        };
        let attributes = HloInstructionProto {
            comparison_direction: direction.name().into(),
            comparison_type: kind.into(),
            ..Default::default()
        };
        self.emit_with(Opcode::Compare, &[x, y], Shape::default(), attributes, Vec::new())
    }

    /// `predicate ? x : y`; a scalar predicate is broadcast to the arms' dimensions.
    ///
    /// # Errors
    ///
    /// Where the arms differ or the predicate does not fit.
    pub fn select(&mut self, predicate: InstructionId, x: InstructionId, y: InstructionId) -> Built {
        let wide = self.instruction(x)?.shape.rank() > 0 && self.instruction(predicate)?.shape.rank() == 0;
        // The name that was asked for is the choice's.
        let name = self.next_name.take();
        let predicate = if wide { self.broadcast_scalar_like(predicate, x)? } else { predicate };
        self.next_name = name;
        self.emit(Opcode::Select, &[predicate, x, y])
    }

    /// Converts elements to another type; returns `x` itself where it has that type.
    ///
    /// # Errors
    ///
    /// Where `x` is no array.
    pub fn convert(&mut self, x: InstructionId, element_type: PrimitiveType) -> Built {
        let shape = self.shape(x)?;
        if shape.element_type() == element_type {
            return Ok(x);
        }
        let stated = shape.with_element_type(element_type);
        self.emit_plain(Opcode::Convert, &[x], stated)
    }

    /// A scalar spread over the dimensions and the layout of `like`; the element type stays the scalar's.
    ///
    /// # Errors
    ///
    /// Where `x` is no scalar.
    pub fn broadcast_scalar_like(&mut self, x: InstructionId, like: InstructionId) -> Built {
        let scalar = self.shape(x)?;
        let stated = self.shape(like)?.with_element_type(scalar.element_type());
        if stated.rank() == 0 {
            return Ok(x);
        }
        self.emit_plain(Opcode::Broadcast, &[x], stated)
    }

    /// A scalar spread over a vector of `length` elements.
    ///
    /// # Errors
    ///
    /// Where `x` is no scalar.
    pub fn broadcast_to_vector(&mut self, x: InstructionId, length: i64) -> Built {
        let stated = Shape::array(self.shape(x)?.element_type(), &[length]);
        self.emit_plain(Opcode::Broadcast, &[x], stated)
    }

    /// The same elements in other dimensions.
    ///
    /// # Errors
    ///
    /// Where the number of elements changes.
    pub fn reshape(&mut self, x: InstructionId, dims: &[i64]) -> Built {
        let stated = Shape::array(self.shape(x)?.element_type(), dims);
        self.emit_plain(Opcode::Reshape, &[x], stated)
    }

    /// Elements `start..limit` of a vector.
    ///
    /// # Errors
    ///
    /// Where the range does not lie in it.
    pub fn slice_vector(&mut self, x: InstructionId, start: i64, limit: i64) -> Built {
        self.slice(x, &[(start, limit)])
    }

    /// Elements `start..limit` of each dimension.
    ///
    /// # Errors
    ///
    /// Where a range does not lie in its dimension, or there is not one for each.
    pub fn slice(&mut self, x: InstructionId, ranges: &[(i64, i64)]) -> Built {
        let range = |&(start, limit)| SliceDimensions { start, limit, stride: 1, ..Default::default() };
        let slice_dimensions = ranges.iter().map(range).collect();
        let attributes = HloInstructionProto { slice_dimensions, ..Default::default() };
        self.emit_with(Opcode::Slice, &[x], Shape::default(), attributes, Vec::new())
    }

    /// Elements `start..limit` of the first dimension, with all of the others; `x` itself where that is all of it.
    ///
    /// # Errors
    ///
    /// As [`Builder::emit`].
    pub fn slice_first(&mut self, x: InstructionId, start: i64, limit: i64) -> Built {
        let shape = self.shape(x)?;
        let mut ranges: Vec<(i64, i64)> = shape.dims().iter().map(|&extent| (0, extent)).collect();
        match ranges.first_mut() {
            Some(first) if *first != (start, limit) => *first = (start, limit),
            _ => return Ok(x),
        }
        self.slice(x, &ranges)
    }

    /// `sizes` elements of each dimension from `starts` on, which the device moves inward where they would reach beyond the
    /// end.
    ///
    /// # Errors
    ///
    /// Where there is not an integer scalar and a size for each dimension, or a size is larger than its dimension.
    pub fn dynamic_slice(&mut self, x: InstructionId, starts: &[InstructionId], sizes: &[i64]) -> Built {
        let attributes = HloInstructionProto { dynamic_slice_sizes: sizes.to_vec(), ..Default::default() };
        let operands = [&[x], starts].concat();
        self.emit_with(Opcode::DynamicSlice, &operands, Shape::default(), attributes, Vec::new())
    }

    /// `x` with `update` in place of its elements from `starts` on, which the device moves inward where it would reach
    /// beyond the end.
    ///
    /// # Errors
    ///
    /// Where there is not an integer scalar for each dimension, or the update does not fit into `x`.
    pub fn dynamic_update_slice(&mut self, x: InstructionId, update: InstructionId, starts: &[InstructionId]) -> Built {
        self.emit(Opcode::DynamicUpdateSlice, &[&[x, update], starts].concat())
    }

    /// Element `index` of a vector, as a scalar.
    ///
    /// # Errors
    ///
    /// Where the vector has no such element.
    pub fn element(&mut self, x: InstructionId, index: i64) -> Built {
        let slice = self.slice_vector(x, index, index.saturating_add(1))?;
        self.reshape(slice, &[])
    }

    /// Arrays one after another along `dimension`.
    ///
    /// # Errors
    ///
    /// Where they differ elsewhere.
    pub fn concatenate(&mut self, xs: &[InstructionId], dimension: i64) -> Built {
        let attributes = HloInstructionProto { dimensions: vec![dimension], ..Default::default() };
        self.emit_with(Opcode::Concatenate, xs, Shape::default(), attributes, Vec::new())
    }

    /// Scalars as one vector, in order.
    ///
    /// # Errors
    ///
    /// Where their element types differ, or there are none.
    pub fn pack(&mut self, scalars: &[InstructionId]) -> Built {
        let ones = scalars.iter().map(|&x| self.reshape(x, &[1])).collect::<Result<Vec<_>, _>>()?;
        match ones.as_slice() {
            [single] => Ok(*single),
            several => self.concatenate(several, 0),
        }
    }

    /// A vector and one more element.
    ///
    /// # Errors
    ///
    /// Where their element types differ.
    pub fn append(&mut self, vector: InstructionId, scalar: InstructionId) -> Built {
        let last = self.reshape(scalar, &[1])?;
        self.concatenate(&[vector, last], 0)
    }

    /// Folds all dimensions of `x` with `reducer`, a computation of two scalars.
    ///
    /// # Errors
    ///
    /// Where `init` is no scalar of `x`'s element type.
    pub fn reduce_all(&mut self, x: InstructionId, init: InstructionId, reducer: ComputationId) -> Built {
        let rank = self.shape(x)?.rank();
        let attributes = HloInstructionProto { dimensions: (0..rank as i64).collect(), ..Default::default() };
        self.emit_with(Opcode::Reduce, &[x, init], Shape::default(), attributes, vec![reducer])
    }

    /// The fold of `x` by `reducer`, a computation of two scalars, over all replicas: the same array on each of them.
    ///
    /// # Errors
    ///
    /// Where `x` is no array.
    pub fn all_reduce(&mut self, x: InstructionId, reducer: ComputationId) -> Built {
        self.emit_with(Opcode::AllReduce, &[x], Shape::default(), HloInstructionProto::default(), vec![reducer])
    }

    /// The number of the replica that computes it, u32\[\].
    ///
    /// # Errors
    ///
    /// Where the computation does not exist.
    pub fn replica_id(&mut self) -> Built {
        let shape = Shape::scalar(PrimitiveType::U32);
        self.emit_with(Opcode::ReplicaId, &[], shape, HloInstructionProto::default(), Vec::new())
    }

    /// Element `index` of a tuple.
    ///
    /// # Errors
    ///
    /// Where the tuple has no such element.
    pub fn get_tuple_element(&mut self, x: InstructionId, index: usize) -> Built {
        let attributes = HloInstructionProto { tuple_index: index as i64, ..Default::default() };
        self.emit_with(Opcode::GetTupleElement, &[x], Shape::default(), attributes, Vec::new())
    }

    /// A computation `(x, y) -> x op y` over scalars, to be called by a reduce.
    ///
    /// # Errors
    ///
    /// Where `opcode` does not take two scalars of that type.
    pub fn reducer(
        module: &mut Module,
        name: &str,
        opcode: Opcode,
        element_type: PrimitiveType,
    ) -> Result<ComputationId, BuildError> {
        let id = module.add_computation(name);
        let mut b = Builder::new(module, id);
        b.set_scope(name, "");
        let x = b.parameter(&format!("{name}.lhs"), Shape::scalar(element_type))?;
        let y = b.parameter(&format!("{name}.rhs"), Shape::scalar(element_type))?;
        let root = b.emit(opcode, &[x, y])?;
        b.set_root(root)?;
        Ok(id)
    }
}
