//! Compiles `proto/hlo.proto` to Rust without a system `protoc`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let descriptors = out.join("hlo.descriptors.pb");
    std::fs::write(
        &descriptors,
        protox::Compiler::new(["proto"])?.open_file("hlo.proto")?.encode_file_descriptor_set(),
    )?;
    // buffa tells cargo to watch the descriptors, which are younger than this run: as old as their source, they do not
    // make every build another one.
    let schema = std::fs::metadata("proto/hlo.proto")?.modified()?;
    std::fs::File::options().write(true).open(&descriptors)?.set_modified(schema)?;
    println!("cargo:rerun-if-changed=proto/hlo.proto");
    buffa_build::Config::new()
        .files(&["hlo.proto"])
        .includes(&["proto"])
        .descriptor_set(&descriptors)
        .generate_views(false)
        .box_type(buffa_build::PointerRepr::Box)
        .compile()?;
    Ok(())
}
