use super::*;
use crate::build::Builder;
use crate::{Module, PrimitiveType, Shape};

fn tiled(dimensions: &[i64], reshape: &[i64], permutation: &[i32], replicated: bool) -> OpSharding {
    OpSharding {
        r#type: Type::OTHER.into(),
        tile_assignment_dimensions: dimensions.to_vec(),
        iota_reshape_dims: reshape.to_vec(),
        iota_transpose_perm: permutation.to_vec(),
        replicate_on_last_tile_dim: replicated,
        ..Default::default()
    }
}

/// A module with one parameter per sharding.
fn module(shardings: &[OpSharding]) -> Module {
    let mut module = Module::new("split");
    let mut b = Builder::at_entry(&mut module);
    let shape = Shape::array(PrimitiveType::F32, &[8, 8]);
    let ids: Vec<_> = shardings.iter().map(|_| b.parameter("x", shape.clone()).unwrap()).collect();
    module.set_outputs(&ids).unwrap();
    for (id, sharding) in ids.into_iter().zip(shardings) {
        module.entry_computation_mut().get_mut(id).unwrap().attributes_mut().sharding = sharding.clone().into();
    }
    module
}

#[test]
fn each_device_has_the_tile_that_xla_gives_it() {
    // {devices=[1,2,4]<=[4,2]T(1,0) last_tile_dim_replicate}: even devices have the left half.
    let tiles = Tiles::of(&tiled(&[1, 2, 4], &[4, 2], &[1, 0], true), 2, 8).unwrap();
    for device in 0..8 {
        assert_eq!(tiles.tile_of(device), Some(vec![0, device % 2]));
    }
    // {devices=[4,2]<=[8]}: row-major.
    let tiles = Tiles::of(&tiled(&[4, 2], &[8], &[], false), 2, 8).unwrap();
    assert_eq!(tiles.tile_of(5), Some(vec![2, 1]));
    assert_eq!(tiles.tile_of(8), None);
    // {devices=[2,2]3,1,2,0}
    let mut listed = tiled(&[2, 2], &[], &[], false);
    listed.tile_assignment_devices = vec![3, 1, 2, 0];
    assert_eq!(Tiles::of(&listed, 2, 4).unwrap().tile_of(2), Some(vec![1, 0]));
    let whole = Tiles::of(&OpSharding::default(), 2, 4).unwrap();
    assert_eq!((whole.counts(), whole.tile_of(3)), (&[1, 1][..], Some(vec![0, 0])));
}

#[test]
fn shardings_that_contradict_themselves_are_refused() {
    let refused = |sharding: OpSharding, part: &str| {
        let error = Tiles::of(&sharding, 2, 8).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(tiled(&[2, 2], &[8], &[], false), "[2, 2]");
    refused(tiled(&[2, 4], &[2, 4], &[0], false), "[2, 4]");
    refused(tiled(&[2, 4], &[2, 4], &[0, 9], false), "[2, 4]");
    refused(tiled(&[2, 4], &[2, 4], &[0, 0], false), "[2, 4]");
    refused(tiled(&[i64::MAX, i64::MAX], &[8], &[], false), "devices");
    refused(tiled(&[8], &[8], &[], false), "1 dimensions is on an array of 2");
    refused(OpSharding { r#type: Type::MANUAL.into(), ..Default::default() }, "MANUAL");
    let named = OpSharding { named_sharding: Some(Vec::new()), ..Default::default() };
    refused(named, "named axes");
}

#[test]
fn the_older_partitioner_is_told_by_shardings_that_split() {
    let whole = OpSharding::default();
    assert_eq!(Partitioning::of(&module(std::slice::from_ref(&whole))).unwrap(), None);
    let split = tiled(&[2, 1, 4], &[8], &[], true);
    let found = Partitioning::of(&module(&[whole.clone(), split.clone()])).unwrap().unwrap();
    assert_eq!((found.partitioner, found.partitions), (Partitioner::Gspmd, 8));
    let mut short = split.clone();
    short.tile_assignment_devices = vec![0, 1];
    let error = Partitioning::of(&module(&[short])).unwrap_err().to_string();
    assert!(error.contains("%x") && error.contains("as many devices"), "{error}");
    let error = Partitioning::of(&module(&[split, tiled(&[2, 2], &[4], &[], false)])).unwrap_err().to_string();
    assert!(error.contains("over 8 devices") && error.contains("over 4"), "{error}");
}

#[test]
fn meshes_are_read_as_shardy_writes_them() {
    let mesh = |text| Mesh::largest(text).unwrap().unwrap();
    let two = mesh(r#"{mesh = #sdy.mesh<["data"=4, "model"=2]>}"#);
    assert_eq!((two.size(), two.replicated(2).as_str()), (8, "<@mesh, [{}, {}]>"));
    assert_eq!(
        [0, 1, 5].map(|d| (two.along("data", d), two.along("model", d))),
        [(Some(0), Some(0)), (Some(0), Some(1)), (Some(2), Some(1))]
    );
    assert_eq!(two.axes(), [("data".to_owned(), 4), ("model".to_owned(), 2)]);
    let several = mesh(r#"{empty = #sdy.mesh<[]>, "my-mesh" = #sdy.mesh<["x"=16], device_ids=[1,0]>}"#);
    assert_eq!((several.size(), several.reference().as_str()), (16, "@\"my-mesh\""));
    assert_eq!(several.along("x", 0), None);
    assert_eq!(Mesh::largest("{}").unwrap(), None);
    for broken in
        ["", "{mesh}", "{m = #sdy.mesh<>}", r#"{m = #sdy.mesh<["x"=0]>}"#, r#"{m = #sdy.mesh<["x"=9999999]>}"#]
    {
        assert!(Mesh::largest(broken).unwrap_err().to_string().contains("was expected"), "{broken}");
    }
}
