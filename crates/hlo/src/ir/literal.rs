//! How many elements a literal holds.

use crate::proto::{LiteralProto, PrimitiveType};

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
        use PrimitiveType as T;
        Some(match element_type {
            T::S1 => &self.s1s,
            T::U1 => &self.u1s,
            T::S2 => &self.s2s,
            T::U2 => &self.u2s,
            T::S4 => &self.s4s,
            T::U4 => &self.u4s,
            T::S8 => &self.s8s,
            T::U8 => &self.u8s,
            T::F4E2M1FN => &self.f4e2m1fns,
            T::F8E3M4 => &self.f8e3m4s,
            T::F8E4M3 => &self.f8e4m3s,
            T::F8E4M3B11FNUZ => &self.f8e4m3b11fnuzs,
            T::F8E4M3FN => &self.f8e4m3fns,
            T::F8E4M3FNUZ => &self.f8e4m3fnuzs,
            T::F8E5M2 => &self.f8e5m2s,
            T::F8E5M2FNUZ => &self.f8e5m2fnuzs,
            T::F8E8M0FNU => &self.f8e8m0fnus,
            _ => return None,
        })
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
