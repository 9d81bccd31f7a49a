//! Prints a serialized module, or one in HLO text, as HLO text: `cargo run --example show FILE`.

use std::io::Write;

use hlo::text::{Preset, parse, print};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args_os().skip(1) {
        let bytes = std::fs::read(path)?;
        let module = match std::str::from_utf8(&bytes) {
            Ok(text) if text.starts_with("HloModule") => parse(text)?,
            _ => hlo::Module::import(&bytes)?,
        };
        std::io::stdout().write_all(print(&module, Preset::Canonical).as_bytes())?;
    }
    Ok(())
}
