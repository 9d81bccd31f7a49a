//! HLO as a typed intermediate representation.
//!
//! [`Module::import`] reads an `HloModuleProto`, [`Module::export`] writes it
//! back: losslessly (fields that this crate does not know ride along) and
//! deterministically (same module, same bytes). In between, [`build`] emits
//! instructions with inferred shapes, [`edit`] changes a computation and keeps
//! everything that must agree with it in step, [`verify`] states the rules a
//! module must obey before a compiler sees it, [`partitioning`] tells how it is split over
//! devices, and [`text`] prints it as XLA does and reads what XLA prints.
//!
//! The crate knows no gradients, no compiler and no files: bytes in, bytes out.
//! It never panics on any input; what it cannot represent it refuses by name.
//!
//! ```
//! use hlo::{Module, PrimitiveType, Shape, build::Builder};
//!
//! let mut module = Module::new("scale");
//! let entry = module.entry();
//! let mut b = Builder::new(&mut module, entry);
//! let x = b.parameter("x", Shape::array(PrimitiveType::F32, &[4]))?;
//! let two = b.constant_f32(2.0)?;
//! let two = b.broadcast_scalar_like(two, x)?;
//! let y = b.multiply(x, two)?;
//! module.set_outputs(&[y])?;
//! hlo::verify::verify(&module)?;
//! assert_eq!(Module::import(&module.export())?.export(), module.export());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod ir;

pub mod import;

mod export;

mod wire;

pub mod flops;

pub mod infer;

pub mod build;

pub mod edit;

pub mod verify;

pub mod partitioning;

pub mod text;

pub mod testing;

/// The wire types that `proto/hlo.proto` generates.
///
/// [`ir`] is what a pass works with; these appear where an instruction's
/// remaining attributes are read or written.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::restriction)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/hlo.rs"));
}

pub use import::ImportError;
pub use ir::{AliasKind, Computation, ComputationId, Instruction, InstructionId, Module, Opcode, Shape};
pub use proto::PrimitiveType;
