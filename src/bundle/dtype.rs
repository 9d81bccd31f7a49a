//! The element types of a manifest: numpy's names, XLA's types and PJRT's.

use hlo::PrimitiveType;
use pjrt::ElementType;
use safetensors::Dtype as Safe;
use serde::{Deserialize, Serialize};

/// An element type as a manifest names it (`float32`, `bool`, `float8_e4m3fn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dtype(PrimitiveType);

/// numpy's (or ml_dtypes') name and XLA's type.
const NAMES: &[(&str, PrimitiveType)] = &[
    ("bool", PrimitiveType::PRED),
    ("int2", PrimitiveType::S2),
    ("int4", PrimitiveType::S4),
    ("int8", PrimitiveType::S8),
    ("int16", PrimitiveType::S16),
    ("int32", PrimitiveType::S32),
    ("int64", PrimitiveType::S64),
    ("uint2", PrimitiveType::U2),
    ("uint4", PrimitiveType::U4),
    ("uint8", PrimitiveType::U8),
    ("uint16", PrimitiveType::U16),
    ("uint32", PrimitiveType::U32),
    ("uint64", PrimitiveType::U64),
    ("float16", PrimitiveType::F16),
    ("bfloat16", PrimitiveType::BF16),
    ("float32", PrimitiveType::F32),
    ("float64", PrimitiveType::F64),
    ("complex64", PrimitiveType::C64),
    ("complex128", PrimitiveType::C128),
    ("float8_e3m4", PrimitiveType::F8E3M4),
    ("float8_e4m3", PrimitiveType::F8E4M3),
    ("float8_e4m3fn", PrimitiveType::F8E4M3FN),
    ("float8_e4m3b11fnuz", PrimitiveType::F8E4M3B11FNUZ),
    ("float8_e4m3fnuz", PrimitiveType::F8E4M3FNUZ),
    ("float8_e5m2", PrimitiveType::F8E5M2),
    ("float8_e5m2fnuz", PrimitiveType::F8E5M2FNUZ),
    ("float8_e8m0fnu", PrimitiveType::F8E8M0FNU),
    ("float4_e2m1fn", PrimitiveType::F4E2M1FN),
];

/// The type in a safetensors file and XLA's. What is missing there has no name in that format.
const SAFETENSORS: &[(Safe, PrimitiveType)] = &[
    (Safe::BOOL, PrimitiveType::PRED),
    (Safe::U8, PrimitiveType::U8),
    (Safe::I8, PrimitiveType::S8),
    (Safe::U16, PrimitiveType::U16),
    (Safe::I16, PrimitiveType::S16),
    (Safe::U32, PrimitiveType::U32),
    (Safe::I32, PrimitiveType::S32),
    (Safe::U64, PrimitiveType::U64),
    (Safe::I64, PrimitiveType::S64),
    (Safe::F16, PrimitiveType::F16),
    (Safe::BF16, PrimitiveType::BF16),
    (Safe::F32, PrimitiveType::F32),
    (Safe::F64, PrimitiveType::F64),
    (Safe::C64, PrimitiveType::C64),
    (Safe::F8_E4M3, PrimitiveType::F8E4M3FN),
    (Safe::F8_E4M3FNUZ, PrimitiveType::F8E4M3FNUZ),
    (Safe::F8_E5M2, PrimitiveType::F8E5M2),
    (Safe::F8_E5M2FNUZ, PrimitiveType::F8E5M2FNUZ),
    (Safe::F8_E8M0, PrimitiveType::F8E8M0FNU),
];

impl Dtype {
    /// The dtype of an array in a safetensors file; `None` for what no array in a manifest can have.
    #[must_use]
    pub fn from_safetensors(dtype: Safe) -> Option<Self> {
        SAFETENSORS.iter().find(|&&(s, _)| s == dtype).map(|&(_, p)| Self(p))
    }

    /// Its name in a safetensors file; `None` where the format has none.
    #[must_use]
    pub fn safetensors(self) -> Option<Safe> {
        SAFETENSORS.iter().find(|&&(_, p)| p == self.0).map(|&(s, _)| s)
    }

    /// Bytes of one element on the host.
    #[must_use]
    pub fn width(self) -> usize {
        usize::try_from(self.0.bits().div_ceil(8)).unwrap_or(0)
    }

    /// The dtype of an XLA element type; `None` for what no array in a manifest can have.
    #[must_use]
    pub fn from_primitive(primitive: PrimitiveType) -> Option<Self> {
        NAMES.iter().any(|&(_, p)| p == primitive).then_some(Self(primitive))
    }

    /// The dtype of a device's element type; `None` for what no array in a manifest can have.
    #[must_use]
    pub fn from_element_type(element_type: ElementType) -> Option<Self> {
        let name = element_type.to_string();
        NAMES.iter().find(|(_, p)| p.name() == name).map(|&(_, p)| Self(p))
    }

    /// XLA's type.
    #[must_use]
    pub fn primitive(self) -> PrimitiveType {
        self.0
    }

    /// numpy's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|&&(_, p)| p == self.0).map_or("unknown", |&(name, _)| name)
    }

    /// The type of a buffer on a device.
    ///
    /// # Errors
    ///
    /// Where PJRT has no such type.
    pub fn element_type(self) -> Result<ElementType, pjrt::Error> {
        self.0.name().parse()
    }
}

impl Serialize for Dtype {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Dtype {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        NAMES.iter().find(|&&(n, _)| n == name).map(|&(_, p)| Self(p)).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{name:?} is no dtype; numpy's names are expected, such as float32 or int32"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_survives_json_and_has_a_device_type() {
        for &(name, primitive) in NAMES {
            let dtype = Dtype::from_primitive(primitive).unwrap();
            let json = serde_json::to_string(&dtype).unwrap();
            assert_eq!(json, format!("{name:?}"));
            assert_eq!(serde_json::from_str::<Dtype>(&json).unwrap(), dtype);
            assert_eq!(dtype.element_type().unwrap().to_string(), primitive.name());
            assert_eq!(Dtype::from_element_type(dtype.element_type().unwrap()), Some(dtype));
        }
    }

    #[test]
    fn names_of_other_worlds_are_refused() {
        for name in ["f32", "float", "torch.float32", ""] {
            assert!(serde_json::from_str::<Dtype>(&format!("{name:?}")).unwrap_err().to_string().contains("no dtype"));
        }
        assert!(Dtype::from_primitive(PrimitiveType::TUPLE).is_none());
    }
}
