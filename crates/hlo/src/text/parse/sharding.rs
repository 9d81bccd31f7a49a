//! Shardings, groups of devices, and tables of aliases.

use super::cursor::{Cursor, DEEPEST, Result};
use crate::proto::op_sharding::Type;
use crate::proto::{
    CollectiveDeviceListProto, HloInstructionProto, IotaReplicaGroupListProto, OpMetadata, OpSharding,
    OutputOperandAliasing, ReplicaGroup, SourceTarget,
};

/// `{replicated}`, `{devices=[4,2]<=[8]}`, `{{...}, {...}}`
pub(super) fn sharding(c: &mut Cursor<'_>) -> Result<OpSharding> {
    nested(c, 0)
}

fn nested(c: &mut Cursor<'_>, depth: usize) -> Result<OpSharding> {
    if depth == DEEPEST {
        return Err(c.refused(format!("shardings are nested more than {DEEPEST} deep")));
    }
    let mut inside = *c;
    inside.expect("{")?;
    if matches!(inside.peek(), Some(b'{' | b'}')) {
        let tuple_shardings = c.list("{", "}", |c| nested(c, depth + 1))?;
        return Ok(OpSharding { r#type: Type::TUPLE.into(), tuple_shardings, ..Default::default() });
    }
    *c = inside;
    let mut sharding = OpSharding::default();
    let start = *c;
    let kind = match c.word("a sharding")? {
        "replicated" => Type::REPLICATED,
        "manual" => Type::MANUAL,
        "unreduced" => Type::UNREDUCED,
        "unknown" => Type::UNKNOWN,
        "maximal" => {
            c.expect("device")?;
            c.expect("=")?;
            sharding.tile_assignment_devices = vec![c.integer()?];
            Type::MAXIMAL
        }
        "devices" => {
            c.expect("=")?;
            tiles(c, &mut sharding)?;
            Type::OTHER
        }
        _ => {
            return Err(
                start.expected("replicated, manual, unreduced, unknown, maximal or devices; others are not held here")
            );
        }
    };
    sharding.r#type = kind.into();
    while !c.eat("}") {
        property(c, &mut sharding)?;
    }
    Ok(sharding)
}

/// `[4,2]<=[8]T(1,0)` or `[2]0,1`
fn tiles(c: &mut Cursor<'_>, sharding: &mut OpSharding) -> Result<()> {
    sharding.tile_assignment_dimensions = c.list("[", "]", Cursor::integer)?;
    if c.peek() == Some(b'<') {
        (sharding.iota_reshape_dims, sharding.iota_transpose_perm) = iota(c)?;
        return Ok(());
    }
    loop {
        sharding.tile_assignment_devices.push(c.integer()?);
        if !c.eat(",") {
            return Ok(());
        }
    }
}

fn property(c: &mut Cursor<'_>, sharding: &mut OpSharding) -> Result<()> {
    let start = *c;
    match c.word("a property of a sharding or `}`")? {
        "last_tile_dim_replicate" => sharding.replicate_on_last_tile_dim = true,
        "last_tile_dims" => {
            c.expect("=")?;
            const KINDS: [(&str, Type); 4] = [
                ("replicated", Type::REPLICATED),
                ("manual", Type::MANUAL),
                ("unreduced", Type::UNREDUCED),
                ("unknown", Type::UNKNOWN),
            ];
            let kinds = c.list("{", "}", |c| {
                let at = *c;
                let word = c.word("a kind")?;
                let kind = KINDS.iter().find(|(name, _)| *name == word);
                kind.map(|(_, kind)| (*kind).into())
                    .ok_or_else(|| at.expected("replicated, manual, unreduced or unknown"))
            })?;
            sharding.last_tile_dims = kinds;
        }
        verb @ ("shard_as" | "shard_like") => {
            sharding.is_shard_group = true;
            sharding.shard_group_type = i32::from(verb == "shard_like");
            sharding.shard_group_id = c.integer()?;
        }
        "metadata" => {
            for part in ["=", "{", "op_name", "="] {
                c.expect(part)?;
            }
            sharding.metadata = vec![OpMetadata { op_name: c.text()?, ..Default::default() }];
            c.expect("}")?;
        }
        _ => {
            return Err(
                start.expected("last_tile_dim_replicate, last_tile_dims, shard_as, shard_like, metadata or `}`")
            );
        }
    }
    Ok(())
}

/// `<=[4,2]T(1,0)`: the reshaped dimensions and their order.
fn iota(c: &mut Cursor<'_>) -> Result<(Vec<i64>, Vec<i32>)> {
    c.expect("<=")?;
    let dims: Vec<i64> = c.list("[", "]", Cursor::integer)?;
    let order = if c.eat("T") { c.list("(", ")", Cursor::integer)? } else { (0i32..).take(dims.len()).collect() };
    Ok((dims, order))
}

/// `{{0,1},{2,3}}` or `[2,4]<=[8]`
pub(super) fn replica_groups(c: &mut Cursor<'_>, proto: &mut HloInstructionProto) -> Result<()> {
    if c.peek() != Some(b'[') {
        let group = |c: &mut Cursor<'_>| Ok(ReplicaGroup { replica_ids: c.integers()?, ..Default::default() });
        let replica_groups = c.list("{", "}", group)?;
        proto.collective_device_list = CollectiveDeviceListProto { replica_groups, ..Default::default() }.into();
        return Ok(());
    }
    let start = *c;
    let counts: Vec<i64> = c.list("[", "]", Cursor::integer)?;
    let [num_replica_groups, num_devices_per_group] = counts[..] else {
        return Err(start.expected("the number of groups and of devices per group"));
    };
    let (iota_reshape_dims, iota_transpose_perm) = iota(c)?;
    proto.iota_collective_device_list = IotaReplicaGroupListProto {
        num_replica_groups,
        num_devices_per_group,
        iota_reshape_dims,
        iota_transpose_perm,
        ..Default::default()
    }
    .into();
    Ok(())
}

/// `{{0,1},{1,0}}`
pub(super) fn source_target_pairs(c: &mut Cursor<'_>) -> Result<Vec<SourceTarget>> {
    c.list("{", "}", |c| {
        c.expect("{")?;
        let source = c.integer()?;
        c.expect(",")?;
        let target = c.integer()?;
        c.expect("}")?;
        Ok(SourceTarget { source, target, ..Default::default() })
    })
}

/// `{{0}: (0, {}), {1}: (1, {})}`
pub(super) fn output_operand_aliasing(c: &mut Cursor<'_>) -> Result<Vec<OutputOperandAliasing>> {
    c.list("{", "}", |c| {
        let output_shape_index = c.integers()?;
        c.expect(":")?;
        c.expect("(")?;
        let operand_index = c.integer()?;
        c.expect(",")?;
        let operand_shape_index = c.integers()?;
        c.expect(")")?;
        Ok(OutputOperandAliasing { output_shape_index, operand_index, operand_shape_index, ..Default::default() })
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::sharding::{Groups, ShardingText};
    use super::*;

    #[test]
    fn shardings_and_groups_print_as_they_were_written() {
        for text in [
            "{replicated}",
            "{manual}",
            "{unreduced}",
            "{unknown shard_as 3}",
            "{replicated shard_like 5}",
            "{maximal device=3}",
            "{devices=[2,1,4]<=[8] last_tile_dim_replicate}",
            "{devices=[2,1,2,2]<=[2,4]T(1,0) last_tile_dims={manual, replicated}}",
            "{devices=[2,1]0,1 metadata={op_name=\"n\"}}",
            "{{replicated}, {{devices=[2]0,1}}}",
            "{}",
        ] {
            let read = sharding(&mut Cursor::new(text)).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(ShardingText(&read).to_string(), text);
        }
        for text in ["{}", "{{0,1},{2,3}}", "[2,4]<=[8]", "[2,4]<=[4,2]T(1,0)"] {
            let mut proto = HloInstructionProto::default();
            replica_groups(&mut Cursor::new(text), &mut proto).unwrap();
            assert_eq!(Groups(&proto).to_string(), text);
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for (text, expected) in [
            ("{mesh['a'=2], [{'a'}]}", "others are not held here"),
            ("{?}", "a sharding"),
            ("{devices=[2,1]}", "a whole number"),
            ("{replicated color}", "found `color`"),
            ("{devices=[1]0 last_tile_dims={x}}", "found `x`"),
            (&"{".repeat(100_000), "nested more than 64 deep"),
        ] {
            let error = sharding(&mut Cursor::new(text)).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
