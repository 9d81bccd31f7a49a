//! How many elements a literal holds.

use crate::proto::{LiteralProto, PrimitiveType};

/// The field that holds the elements of a type of at most eight bits.
macro_rules! bytes_field {
    ($literal:ident, $element_type:ident, $($borrow:tt)+) => {{
        use PrimitiveType as T;
        Some(match $element_type {
            T::S1 => $($borrow)+ $literal.s1s,
            T::U1 => $($borrow)+ $literal.u1s,
            T::S2 => $($borrow)+ $literal.s2s,
            T::U2 => $($borrow)+ $literal.u2s,
            T::S4 => $($borrow)+ $literal.s4s,
            T::U4 => $($borrow)+ $literal.u4s,
            T::S8 => $($borrow)+ $literal.s8s,
            T::U8 => $($borrow)+ $literal.u8s,
            T::F4E2M1FN => $($borrow)+ $literal.f4e2m1fns,
            T::F8E3M4 => $($borrow)+ $literal.f8e3m4s,
            T::F8E4M3 => $($borrow)+ $literal.f8e4m3s,
            T::F8E4M3B11FNUZ => $($borrow)+ $literal.f8e4m3b11fnuzs,
            T::F8E4M3FN => $($borrow)+ $literal.f8e4m3fns,
            T::F8E4M3FNUZ => $($borrow)+ $literal.f8e4m3fnuzs,
            T::F8E5M2 => $($borrow)+ $literal.f8e5m2s,
            T::F8E5M2FNUZ => $($borrow)+ $literal.f8e5m2fnuzs,
            T::F8E8M0FNU => $($borrow)+ $literal.f8e8m0fnus,
            _ => return None,
        })
    }};
}

impl LiteralProto {
    /// Number of elements of `element_type` that the field for that type holds.
    ///
    /// `None` for types without elements, and where the field ends in the middle of a number.
    #[must_use]
    pub fn element_count(&self, element_type: PrimitiveType) -> Option<u64> {
        use PrimitiveType as T;
        let (length, per_element) = match element_type {
            T::PRED => (self.preds.len(), 1),
            T::S16 => (self.s16s.len(), 2),
            T::S32 => (self.s32s.len(), 1),
            T::S64 => (self.s64s.len(), 1),
            T::U16 => (self.u16s.len(), 2),
            T::U32 => (self.u32s.len(), 1),
            T::U64 => (self.u64s.len(), 1),
            T::F16 => (self.f16s.len(), 2),
            T::BF16 => (self.bf16s.len(), 2),
            T::F32 => (self.f32s.len(), 1),
            T::F64 => (self.f64s.len(), 1),
            T::C64 => (self.c64s.len(), 2),
            T::C128 => (self.c128s.len(), 2),
            other => (self.bytes_of(other)?.len(), 1),
        };
        if length % per_element == 0 { u64::try_from(length / per_element).ok() } else { None }
    }

    /// The elements of a type of at most eight bits: one byte each, however narrow the type.
    #[must_use]
    pub fn bytes_of(&self, element_type: PrimitiveType) -> Option<&[u8]> {
        bytes_field!(self, element_type, &)
    }

    /// Mutable access, see [`LiteralProto::bytes_of`].
    pub fn bytes_of_mut(&mut self, element_type: PrimitiveType) -> Option<&mut Vec<u8>> {
        bytes_field!(self, element_type, &mut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_counted_by_type() {
        let literal = LiteralProto { s4s: vec![0; 2], bf16s: vec![0; 6], c64s: vec![0.0; 5], ..Default::default() };
        let check = |element_type, count| assert_eq!(literal.element_count(element_type), count, "{element_type}");
        check(PrimitiveType::S4, Some(2));
        check(PrimitiveType::BF16, Some(3));
        check(PrimitiveType::F32, Some(0));
        check(PrimitiveType::C64, None);
        check(PrimitiveType::TOKEN, None);
    }
}
