//! Metrics of a run for Prometheus, served over HTTP while it trains.
//!
//! | path | what |
//! |---|---|
//! | `/metrics` | the metrics: OpenMetrics where the scraper asks for it, else Prometheus's text format |
//! | `/healthz` | 200 while the process runs |
//! | `/readyz` | 200 once a step was read, 503 before |
//!
//! Units are base units, ratios are from 0 to 1, and what the host does not know (a target before it is calibrated, a loss
//! that is not finite) is NaN, which no comparison of an alert holds for. Series with the label `tensor` are bounded: the
//! tensors beyond a limit have none. Reading happens between steps and takes no lock that training waits for longer than one
//! assignment.

mod run_metrics;
mod server;

pub use run_metrics::{RunLabels, RunMetrics};
pub use server::{ServeError, Server};
