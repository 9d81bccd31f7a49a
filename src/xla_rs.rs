//! Injected modules for users of [xla-rs](https://docs.rs/xla): feature `xla-rs`.
//!
//! The crate `xla` links XLA's C++ library, which it needs a copy of (`XLA_EXTENSION_DIR`, see its documentation).
//! `DOCS_RS=1 cargo check --features xla-rs` checks types without one. `examples/xla_rs.rs` trains with it.

use hlo::{Module, PrimitiveType};
use thiserror::Error;
use xla::{ElementType, HloModuleProto, XlaComputation};

use crate::bundle::Dtype;

/// Why there is no computation.
#[derive(Debug, Error)]
pub enum XlaRsError {
    /// The module breaks a rule; XLA never saw it, since some broken modules abort it.
    #[error("the module is not given to XLA, it breaks the rules of HLO: {0}")]
    Verify(#[from] hlo::verify::VerifyErrors),
    /// XLA does not read it.
    #[error("XLA does not read the module: {0}")]
    Parse(xla::Error),
    /// xla-rs has no arrays of this type.
    #[error("xla-rs has no arrays of {}", dtype.name())]
    Dtype {
        /// The type.
        dtype: Dtype,
    },
}

/// The computation of a module, for `xla::PjRtClient::compile`.
///
/// # Errors
///
/// Where the module breaks the rules of HLO, or is newer than the C++ library behind xla-rs.
pub fn computation(module: &Module) -> Result<XlaComputation, XlaRsError> {
    hlo::verify::verify(module)?;
    let proto = HloModuleProto::parse_proto(&module.export(), true).map_err(XlaRsError::Parse)?;
    Ok(XlaComputation::from_proto(&proto))
}

/// What xla-rs calls a manifest's element type.
///
/// # Errors
///
/// Where it has none, as for 4-bit integers.
pub fn element_type(dtype: Dtype) -> Result<ElementType, XlaRsError> {
    Ok(match dtype.primitive() {
        PrimitiveType::PRED => ElementType::Pred,
        PrimitiveType::S8 => ElementType::S8,
        PrimitiveType::S16 => ElementType::S16,
        PrimitiveType::S32 => ElementType::S32,
        PrimitiveType::S64 => ElementType::S64,
        PrimitiveType::U8 => ElementType::U8,
        PrimitiveType::U16 => ElementType::U16,
        PrimitiveType::U32 => ElementType::U32,
        PrimitiveType::U64 => ElementType::U64,
        PrimitiveType::F16 => ElementType::F16,
        PrimitiveType::F32 => ElementType::F32,
        PrimitiveType::BF16 => ElementType::Bf16,
        PrimitiveType::F64 => ElementType::F64,
        PrimitiveType::C64 => ElementType::C64,
        PrimitiveType::C128 => ElementType::C128,
        PrimitiveType::F8E5M2 => ElementType::F8E5M2,
        PrimitiveType::F8E4M3FN => ElementType::F8E4M3FN,
        PrimitiveType::F8E8M0FNU => ElementType::F8E8M0FNU,
        _ => return Err(XlaRsError::Dtype { dtype }),
    })
}
