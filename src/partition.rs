//! Compilation of modules that are split over devices: the partitioner and its options, chosen from the module.

use hlo::Module;
use hlo::partitioning::{Partitioner, Partitioning, PartitioningError};
use pjrt::{CompileOptions, DeviceAssignment};
use thiserror::Error;

/// Why there are no options.
#[derive(Debug, Error)]
pub enum PartitionError {
    /// The module does not say how it is split.
    #[error("how the module is split over devices cannot be told: {0}")]
    Unknown(#[from] PartitioningError),
    /// There are not as many devices.
    #[error("it is split over {wanted} devices, and {what} has {present}; {hint}")]
    Devices {
        /// Devices that the module is for.
        wanted: usize,
        /// What has the devices.
        what: String,
        /// Devices that there are.
        present: usize,
        /// What to do.
        hint: &'static str,
    },
    /// There are not as many devices for all replicas.
    #[error(
        "{replicas} replicas on {partitions} device(s) each are asked for, and {what} has {present} device(s); name a larger \
         topology, as in tpu-v5e:4x4, or ask for fewer replicas"
    )]
    Replicas {
        /// Replicas that are asked for.
        replicas: usize,
        /// Devices of each.
        partitions: usize,
        /// What has the devices.
        what: String,
        /// Devices that there are.
        present: usize,
    },
    /// They cannot be assigned.
    #[error(transparent)]
    Assignment(#[from] pjrt::Error),
}

/// Adds to `options` how `module` is to be partitioned, if it is split; returns over how many devices.
///
/// As JAX does, results and arguments whose sharding the module leaves open are split as the partitioner likes.
///
/// # Errors
///
/// Where the module contradicts itself.
pub fn partition(options: &mut CompileOptions, module: &Module) -> Result<usize, PartitionError> {
    let Some(found) = Partitioning::of(module)? else { return Ok(1) };
    options.num_partitions = found.partitions;
    options.use_spmd_partitioning = true;
    options.use_shardy_partitioner = found.partitioner == Partitioner::Shardy;
    options.allow_spmd_sharding_propagation_to_output = found.open_outputs(module);
    options.allow_spmd_sharding_propagation_to_parameters = found.open_parameters(module);
    Ok(found.partitions)
}

/// Has replicas and partitions run on the first of the devices with these ids. `what` names the devices in errors.
///
/// # Errors
///
/// Where there are fewer devices.
pub fn assign(options: &mut CompileOptions, devices: &[i32], what: &str) -> Result<(), PartitionError> {
    let (replicas, partitions) = (options.num_replicas, options.num_partitions);
    let wanted = replicas.saturating_mul(partitions);
    let (what, present) = (what.to_owned(), devices.len());
    let ids = match devices.get(..wanted) {
        Some(ids) => ids,
        None if replicas > 1 => return Err(PartitionError::Replicas { replicas, partitions, what, present }),
        None => {
            let hint = "name a larger topology, as in tpu-v5e:4x4, or export the step for a smaller mesh";
            return Err(PartitionError::Devices { wanted, what, present, hint });
        }
    };
    options.device_assignment = Some(DeviceAssignment::new(replicas, partitions, ids.to_vec())?);
    Ok(())
}
