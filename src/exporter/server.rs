//! The HTTP server, on a thread of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::RunMetrics;

/// Content types, see the [exposition formats](https://prometheus.io/docs/instrumenting/exposition_formats/).
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why metrics are not served.
#[derive(Debug, Error)]
#[error(
    "cannot serve metrics at {address}: {source}; choose another address or port, as in --metrics-addr 127.0.0.1:9464"
)]
pub struct ServeError {
    /// Where they were to be served.
    address: SocketAddr,
    /// What the system says.
    source: io::Error,
}

/// Serves metrics until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves at that address; port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// Where the address cannot be listened at.
    pub fn start(address: SocketAddr, metrics: Arc<RunMetrics>) -> Result<Self, ServeError> {
        let failed = |source| ServeError { address, source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let router = Router::new()
            .route("/metrics", get(metrics_page))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .with_state(metrics);
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    served = axum::serve(listener, router).into_future() => {
                        if let Err(error) = served {
                            tracing::error!("metrics are no longer served: {error}");
                        }
                    }
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either may have ended already.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn metrics_page(State(metrics): State<Arc<RunMetrics>>, headers: HeaderMap) -> Response {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let open_metrics = wants_open_metrics(accept);
    let content_type = if open_metrics { OPEN_METRICS } else { TEXT };
    match metrics.encode(open_metrics) {
        Ok(text) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(metrics): State<Arc<RunMetrics>>) -> Response {
    if metrics.is_ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no step has been read yet\n").into_response()
    }
}

/// Whether a scraper likes OpenMetrics at least as much as plain text.
fn wants_open_metrics<'a>(accept: impl Iterator<Item = &'a str>) -> bool {
    let mut best = (None, None);
    for choice in accept.flat_map(|line| line.split(',')) {
        let mut parts = choice.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let quality = parts.filter_map(|p| p.strip_prefix("q=")?.parse::<f32>().ok()).next().unwrap_or(1.0);
        let slot = match kind {
            "application/openmetrics-text" => &mut best.0,
            "text/plain" | "text/*" | "*/*" => &mut best.1,
            _ => continue,
        };
        *slot = Some(slot.unwrap_or(0.0_f32).max(quality));
    }
    best.0.is_some_and(|open| open > 0.0 && open >= best.1.unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_scraper_s_choice() {
        let wants = |accept: &str| wants_open_metrics(std::iter::once(accept));
        // What Prometheus 2.42 and 3.5 send.
        assert!(wants(
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        ));
        assert!(wants("application/openmetrics-text; version=1.0.0; q=0.5, text/plain; q=0.4"));
        assert!(!wants("text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5"));
        assert!(!wants("*/*"));
        assert!(!wants("application/openmetrics-text;q=0"));
        assert!(!wants_open_metrics(std::iter::empty()));
    }
}
