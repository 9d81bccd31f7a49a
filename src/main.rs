//! The `entropic` program.

mod cli;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Says what is logged, as in `debug` or `entropic=debug,pjrt=info`; warnings if it is not set.
const LOG: &str = "RUST_LOG";

fn main() -> ExitCode {
    let started = Instant::now();
    log();
    match cli::Cli::parse().run(started) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            eprintln!("error: {}", entropic::isolate::paragraph(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Sends the log to standard error.
fn log() {
    let asked = std::env::var(LOG).ok().filter(|value| !value.is_empty());
    let filter = asked.as_deref().map(str::parse::<Targets>);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time().with_ansi(false);
    let by_default = || Targets::new().with_default(LevelFilter::WARN);
    let subscriber = tracing_subscriber::registry().with(layer);
    subscriber.with(filter.as_ref().and_then(|f| f.as_ref().ok()).cloned().unwrap_or_else(by_default)).init();
    if let Some(Err(error)) = filter {
        tracing::warn!("{LOG} cannot be read ({error}); give a level, or targets with levels as in `entropic=debug`");
    }
}
