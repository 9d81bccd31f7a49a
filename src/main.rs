//! The `entropic` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(entropic::cli::main(std::env::args_os()))
}
