//! Prints a serialized module as HLO text: `cargo run --example show FILE`.

use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args_os().skip(1) {
        let module = hlo::Module::import(&std::fs::read(path)?)?;
        std::io::stdout().write_all(hlo::text::print(&module, hlo::text::Preset::Canonical).as_bytes())?;
    }
    Ok(())
}
