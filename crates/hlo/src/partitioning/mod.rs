//! How a module is split over devices: by whom, over how many, and which part each of them has.
//!
//! A program for many devices is written as one for a single device that is as large as all of them; *shardings* say which
//! part of an array is where, and a partitioner makes the program of one device of it. There are two partitioners.
//! GSPMD reads the field `sharding` of instructions, [`Partitioner::Shardy`] reads attributes whose names begin with
//! `xla.sdy` and the meshes in the module's header; what is written for Shardy carries the older field as well, and must
//! not be given to GSPMD.

mod mesh;
mod tiles;

use std::fmt;

use thiserror::Error;

pub use mesh::{Mesh, MeshError};
pub use tiles::{Tiles, TilesError, iota};

use crate::ir::{Instruction, Module, Opcode};
use crate::proto::FrontendAttributes;
use crate::proto::OpSharding;
use crate::proto::op_sharding::Type;

/// The attribute of parameters and results that says for Shardy how they are split.
pub const SHARDY_SHARDING: &str = "xla.sdy.sharding";
/// The module's attribute with the meshes.
pub const SHARDY_MESHES: &str = "xla.sdy.meshes";
/// The custom call that splits a result of the entry as its attribute says.
pub const RESULT_SHARDING: &str = "xla.sdy.FuncResultSharding";
/// The custom call that splits a value by its field `sharding`.
pub const SHARDING: &str = "Sharding";
/// The computation that a `shard_map` calls, written for one device: what its name begins with.
pub const MANUAL_BODY: &str = "xla.sdy.manual_computation_body";
/// What names of Shardy begin with.
const SHARDY: &str = "xla.sdy.";

/// Who splits a module over devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Partitioner {
    /// The older one, which propagates the field `sharding`.
    Gspmd,
    /// Shardy.
    Shardy,
}

/// How a module is split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitioning {
    /// By whom.
    pub partitioner: Partitioner,
    /// Over how many devices.
    pub partitions: usize,
    /// For Shardy: the mesh of so many devices.
    pub mesh: Option<Mesh>,
}

impl fmt::Display for Partitioning {
    /// `8 devices by Shardy (mesh data=4, model=2)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.partitioner {
            Partitioner::Gspmd => "GSPMD",
            Partitioner::Shardy => "Shardy",
        };
        write!(f, "{} devices by {by}", self.partitions)?;
        let Some(mesh) = &self.mesh else { return Ok(()) };
        let axes: Vec<_> = mesh.axes().iter().map(|(name, size)| format!("{name}={size}")).collect();
        write!(f, " (mesh {})", axes.join(", "))
    }
}

/// Why it is not known how a module is split.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PartitioningError {
    /// Meshes that cannot be read.
    #[error("the module's meshes: {0}")]
    Mesh(#[from] MeshError),
    /// A sharding that cannot be read.
    #[error("{instruction}: {source}")]
    Sharding {
        /// The instruction that carries it.
        instruction: String,
        /// What is wrong.
        source: TilesError,
    },
    /// Shardings over different numbers of devices.
    #[error(
        "{first} is split over {first_count} devices and {second} over {second_count}; a module has one number of partitions"
    )]
    Disagree {
        /// An instruction.
        first: String,
        /// Its number.
        first_count: usize,
        /// Another one.
        second: String,
        /// Its number.
        second_count: usize,
    },
}

impl Partitioning {
    /// How `module` is split; `None` for one that is not: without shardings, or with none that splits.
    ///
    /// # Errors
    ///
    /// Where a sharding or a mesh cannot be read, or they are for different numbers of devices.
    pub fn of(module: &Module) -> Result<Option<Self>, PartitioningError> {
        let header = module.header().frontend_attributes.as_option();
        if let Some(meshes) = attribute(header, SHARDY_MESHES) {
            let mesh = Mesh::largest(meshes)?;
            let partitions = mesh.as_ref().map_or(1, Mesh::size);
            return Ok(Some(Self { partitioner: Partitioner::Shardy, partitions, mesh }));
        }
        if instructions(module).any(is_shardy) {
            return Ok(Some(Self { partitioner: Partitioner::Shardy, partitions: 1, mesh: None }));
        }
        let mut known: Option<(String, usize)> = None;
        for instruction in instructions(module) {
            let Some(sharding) = instruction.attributes.sharding.as_option() else { continue };
            let unread = |source| PartitioningError::Sharding { instruction: instruction.to_string(), source };
            let Some(count) = devices_of(sharding).map_err(unread)? else { continue };
            match &known {
                Some((_, first)) if *first == count => {}
                Some((first, first_count)) => {
                    return Err(PartitioningError::Disagree {
                        first: first.clone(),
                        first_count: *first_count,
                        second: instruction.to_string(),
                        second_count: count,
                    });
                }
                None => known = Some((instruction.to_string(), count)),
            }
        }
        Ok(known.map(|(_, partitions)| Self { partitioner: Partitioner::Gspmd, partitions, mesh: None }))
    }

    /// For each parameter of the entry, whether the module leaves open how it is split.
    #[must_use]
    pub fn open_parameters(&self, module: &Module) -> Vec<bool> {
        let entry = module.entry_computation();
        let said = |i: &Instruction| match self.partitioner {
            Partitioner::Gspmd => i.attributes.sharding.as_option().is_some_and(is_known),
            Partitioner::Shardy => attribute(i.attributes.frontend_attributes.as_option(), SHARDY_SHARDING).is_some(),
        };
        entry.parameters().into_iter().map(|id| !entry.get(id).is_some_and(said)).collect()
    }

    /// For each output of the entry, whether the module leaves open how it is split.
    #[must_use]
    pub fn open_outputs(&self, module: &Module) -> Vec<bool> {
        let entry = module.entry_computation();
        let root = entry.root_instruction().and_then(|root| root.attributes.sharding.as_option());
        let by_root = |index: usize| root.map(|s| s.tuple_shardings.get(index).unwrap_or(s)).is_some_and(is_known);
        let said = |index: usize, i: &Instruction| {
            let called = |target| i.opcode == Opcode::CustomCall && i.attributes.custom_call_target == target;
            match self.partitioner {
                Partitioner::Gspmd => by_root(index) || called(SHARDING),
                Partitioner::Shardy => called(RESULT_SHARDING),
            }
        };
        let outputs = entry.outputs().into_iter().enumerate();
        outputs.map(|(index, id)| !entry.get(id).is_some_and(|i| said(index, i))).collect()
    }
}

fn instructions(module: &Module) -> impl Iterator<Item = &Instruction> {
    module.computations().flat_map(|(_, computation)| computation.instructions().map(|(_, i)| i))
}

fn is_shardy(instruction: &Instruction) -> bool {
    let attributes = instruction.attributes.frontend_attributes.as_option();
    instruction.attributes.custom_call_target.starts_with(SHARDY)
        || attributes.is_some_and(|a| a.map.iter().any(|entry| entry.key.starts_with(SHARDY)))
}

/// Whether a sharding says something.
fn is_known(sharding: &OpSharding) -> bool {
    sharding.r#type.as_known() != Some(Type::UNKNOWN)
}

/// How many devices a sharding, or the first of a tuple that splits, is over; `None` where nothing is split.
fn devices_of(sharding: &OpSharding) -> Result<Option<usize>, TilesError> {
    if sharding.r#type.as_known() == Some(Type::TUPLE) {
        for element in &sharding.tuple_shardings {
            if let Some(count) = devices_of(element)? {
                return Ok(Some(count));
            }
        }
        return Ok(None);
    }
    Tiles::devices_of(sharding)
}

/// The value of an attribute that the front end gave.
#[must_use]
pub fn attribute<'a>(attributes: Option<&'a FrontendAttributes>, key: &str) -> Option<&'a str> {
    attributes?.map.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
}

#[cfg(test)]
mod tests;
