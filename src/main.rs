//! The `entropic` program.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            eprintln!("error: {}", entropic::isolate::paragraph(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
