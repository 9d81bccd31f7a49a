//! The tiles of an array under a sharding, and the devices that have them.

use thiserror::Error;

use crate::proto::OpSharding;
use crate::proto::op_sharding::Type;

/// As many devices are believed at most.
const MOST_DEVICES: usize = 1 << 20;

/// How an array is cut into equal tiles, the last of a dimension perhaps smaller, and which devices have each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiles {
    /// Tiles along each dimension of the array.
    counts: Vec<usize>,
    /// Devices, those of one tile together, tiles in row-major order.
    devices: Vec<usize>,
}

/// Why a sharding says nothing about tiles.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TilesError {
    /// A kind of sharding that is none of an array by tiles.
    #[error("a sharding of the kind {kind} says nothing about parts of an array")]
    Kind {
        /// The kind.
        kind: String,
    },
    /// Dimensions and devices that do not belong together.
    #[error("a sharding with tiles {dimensions:?} does not list as many devices, each once")]
    Devices {
        /// Tiles along each dimension, and copies of each tile.
        dimensions: Vec<i64>,
    },
    /// Not as many dimensions as the array.
    #[error("a sharding of {sharding} dimensions is on an array of {array}")]
    Rank {
        /// Dimensions of the sharding.
        sharding: usize,
        /// Dimensions of the array.
        array: usize,
    },
}

impl Tiles {
    /// The tiles of an array of `rank` dimensions, on `partitions` devices.
    ///
    /// # Errors
    ///
    /// Where the sharding is not of one array, is not by tiles, or contradicts itself.
    pub fn of(sharding: &OpSharding, rank: usize, partitions: usize) -> Result<Self, TilesError> {
        let dimensions = &sharding.tile_assignment_dimensions;
        let kind = sharding.r#type.as_known();
        if kind == Some(Type::REPLICATED) && sharding.named_sharding.is_none() {
            return Ok(Self { counts: vec![1; rank], devices: (0..partitions).collect() });
        }
        let copies = sharding.last_tile_dims.len() + usize::from(sharding.replicate_on_last_tile_dim);
        let manual = sharding.last_tile_dims.iter().any(|k| k.as_known() != Some(Type::REPLICATED));
        if kind != Some(Type::OTHER) || manual || sharding.named_sharding.is_some() {
            let kind =
                if sharding.named_sharding.is_some() { "over named axes".to_owned() } else { format!("{kind:?}") };
            return Err(TilesError::Kind { kind });
        }
        if dimensions.len() != rank + copies {
            return Err(TilesError::Rank { sharding: dimensions.len().saturating_sub(copies), array: rank });
        }
        let wrong = || TilesError::Devices { dimensions: dimensions.clone() };
        let counts: Vec<usize> =
            dimensions.iter().take(rank).map(|&d| usize::try_from(d)).collect::<Result<_, _>>().map_err(|_| wrong())?;
        let devices = devices(sharding).ok_or_else(wrong)?;
        let mut seen = vec![false; devices.len()];
        for &device in &devices {
            match seen.get_mut(device) {
                Some(slot) if !*slot => *slot = true,
                _ => return Err(wrong()),
            }
        }
        Ok(Self { counts, devices })
    }

    /// Over how many devices a sharding is; `None` where it splits nothing.
    ///
    /// # Errors
    ///
    /// Where it contradicts itself, or is over named axes, whose sizes it does not say.
    pub fn devices_of(sharding: &OpSharding) -> Result<Option<usize>, TilesError> {
        if sharding.named_sharding.is_some() {
            return Err(TilesError::Kind { kind: "over named axes".to_owned() });
        }
        if sharding.r#type.as_known() != Some(Type::OTHER) {
            return Ok(None);
        }
        let dimensions = &sharding.tile_assignment_dimensions;
        let listed = &sharding.tile_assignment_devices;
        let listed = if listed.is_empty() { product(&sharding.iota_reshape_dims) } else { Some(listed.len()) };
        let count = product(dimensions).filter(|&count| listed == Some(count));
        count.map(Some).ok_or_else(|| TilesError::Devices { dimensions: dimensions.clone() })
    }

    /// Tiles along each dimension.
    #[must_use]
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// Which tile a device has, as a position along each dimension; `None` for a device that has none.
    #[must_use]
    pub fn tile_of(&self, device: usize) -> Option<Vec<usize>> {
        let tiles: usize = self.counts.iter().product();
        let copies = self.devices.len().checked_div(tiles)?;
        let position = self.devices.iter().position(|&d| d == device)?;
        let mut tile = position.checked_div(copies)?;
        let mut along = vec![0; self.counts.len()];
        for (slot, &count) in along.iter_mut().zip(&self.counts).rev() {
            *slot = tile % count;
            tile /= count;
        }
        Some(along)
    }
}

/// The listed devices, or the numbers from 0 on, taken as an array whose dimensions are permuted.
fn devices(sharding: &OpSharding) -> Option<Vec<usize>> {
    let count = product(&sharding.tile_assignment_dimensions)?;
    if !sharding.tile_assignment_devices.is_empty() {
        let listed: Option<Vec<usize>> =
            sharding.tile_assignment_devices.iter().map(|&d| usize::try_from(d).ok()).collect();
        return listed.filter(|l| l.len() == count);
    }
    iota(&sharding.iota_reshape_dims, &sharding.iota_transpose_perm).filter(|listed| listed.len() == count)
}

/// The numbers from 0 on as an array of these dimensions, permuted, row by row; `None` where that is no array, or one too
/// large for devices.
#[must_use]
pub fn iota(reshape: &[i64], permutation: &[i32]) -> Option<Vec<usize>> {
    let count = product(reshape)?;
    let dims: Vec<usize> = reshape.iter().filter_map(|&d| usize::try_from(d).ok()).collect();
    let permutation: Option<Vec<usize>> =
        permutation.iter().map(|&p| usize::try_from(p).ok().filter(|&p| p < dims.len())).collect();
    let mut permutation = permutation?;
    if permutation.is_empty() {
        permutation = (0..dims.len()).collect();
    }
    if permutation.len() != dims.len() {
        return None;
    }
    // Row-major strides of the array before the permutation.
    let mut strides = vec![1; dims.len()];
    let mut stride = 1;
    for (slot, &dim) in strides.iter_mut().zip(&dims).rev() {
        *slot = stride;
        stride *= dim;
    }
    let axes: Vec<(usize, usize)> =
        permutation.iter().filter_map(|&p| Some((*dims.get(p)?, *strides.get(p)?))).collect();
    let number = |mut position: usize| {
        axes.iter().rev().fold(0, |device, &(dim, stride)| {
            let along = position % dim;
            position /= dim;
            device + along * stride
        })
    };
    Some((0..count).map(number).collect())
}

/// The product of positive numbers, if it is a believable number of devices.
fn product(dims: &[i64]) -> Option<usize> {
    dims.iter().try_fold(1usize, |product, &dim| {
        let dim = usize::try_from(dim).ok().filter(|&d| d > 0)?;
        product.checked_mul(dim).filter(|&p| p <= MOST_DEVICES)
    })
}
