//! Everything that holds a module: HLO protos, StableHLO, `jax.export` files.

mod convert;

pub use convert::Convert;
