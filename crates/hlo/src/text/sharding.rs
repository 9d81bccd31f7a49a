//! Shardings and groups of devices.

use std::fmt;

use super::quote::{Braces, Joined, Quoted};
use crate::proto::op_sharding::Type;
use crate::proto::{CollectiveDeviceListProto, HloInstructionProto, OpSharding, ReplicaGroup};

/// `{replicated}`, `{devices=[4,2]<=[8]}`, `{{...}, {...}}`
pub(super) struct ShardingText<'a>(pub(super) &'a OpSharding);

impl fmt::Display for ShardingText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sharding = self.0;
        let kind = sharding.r#type.as_known();
        if sharding.named_sharding.is_some() {
            // Over a mesh with names: not modelled here, and no other form says the same.
            return f.write_str("{?}");
        }
        if kind == Some(Type::TUPLE) {
            let elements: Vec<_> = sharding.tuple_shardings.iter().map(ShardingText).collect();
            return write!(f, "{{{}}}", Joined(&elements, ", "));
        }
        f.write_str("{")?;
        match kind {
            Some(Type::REPLICATED) => f.write_str("replicated")?,
            Some(Type::MANUAL) => f.write_str("manual")?,
            Some(Type::UNREDUCED) => f.write_str("unreduced")?,
            Some(Type::MAXIMAL) => {
                write!(f, "maximal device={}", sharding.tile_assignment_devices.first().unwrap_or(&0))?;
            }
            Some(Type::OTHER) => self.tiles(f)?,
            _ => f.write_str("unknown")?,
        }
        if sharding.is_shard_group {
            let verb = if sharding.shard_group_type == 0 { "shard_as" } else { "shard_like" };
            write!(f, " {verb} {}", sharding.shard_group_id)?;
        }
        if let Some(metadata) = sharding.metadata.first().filter(|m| !m.op_name.is_empty()) {
            write!(f, " metadata={{op_name={}}}", Quoted(metadata.op_name.as_bytes()))?;
        }
        f.write_str("}")
    }
}

impl ShardingText<'_> {
    fn tiles(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sharding = self.0;
        write!(f, "devices=[{}]", Joined(&sharding.tile_assignment_dimensions, ","))?;
        if sharding.tile_assignment_devices.is_empty() {
            write_iota(f, &sharding.iota_reshape_dims, &sharding.iota_transpose_perm)?;
        } else {
            write!(f, "{}", Joined(&sharding.tile_assignment_devices, ","))?;
        }
        if sharding.replicate_on_last_tile_dim {
            f.write_str(" last_tile_dim_replicate")?;
        }
        if !sharding.last_tile_dims.is_empty() {
            let kinds: Vec<_> = sharding
                .last_tile_dims
                .iter()
                .map(|kind| match kind.as_known() {
                    Some(Type::REPLICATED) => "replicated",
                    Some(Type::MANUAL) => "manual",
                    Some(Type::UNREDUCED) => "unreduced",
                    _ => "unknown",
                })
                .collect();
            write!(f, " last_tile_dims={{{}}}", Joined(&kinds, ", "))?;
        }
        Ok(())
    }
}

/// `<=[4,2]T(1,0)`
fn write_iota(f: &mut fmt::Formatter<'_>, dims: &[i64], permutation: &[i32]) -> fmt::Result {
    write!(f, "<=[{}]", Joined(dims, ","))?;
    let identity = permutation.iter().zip(0i32..).all(|(&p, n)| p == n);
    if identity { Ok(()) } else { write!(f, "T({})", Joined(permutation, ",")) }
}

/// The replica groups of a collective: `{{0,1},{2,3}}` or `[2,4]<=[8]`.
pub(super) struct Groups<'a>(pub(super) &'a HloInstructionProto);

impl fmt::Display for Groups<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = self.0.collective_device_list.as_option();
        let iota = self.0.iota_collective_device_list.as_option();
        if let Some(iota) = iota.or_else(|| list?.iota_replica_group_list.as_option()) {
            write!(f, "[{},{}]", iota.num_replica_groups, iota.num_devices_per_group)?;
            return write_iota(f, &iota.iota_reshape_dims, &iota.iota_transpose_perm);
        }
        let listed = list.map(|l: &CollectiveDeviceListProto| l.replica_groups.as_slice()).unwrap_or_default();
        let groups: &[ReplicaGroup] = if listed.is_empty() { &self.0.replica_groups } else { listed };
        let groups: Vec<_> = groups.iter().map(|g| Braces(&g.replica_ids)).collect();
        write!(f, "{}", Braces(&groups))
    }
}
