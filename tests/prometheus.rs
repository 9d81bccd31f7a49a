//! A run, watched by a real Prometheus server: it scrapes, rules and dashboard find what they ask for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Starts a run without end; returns it with the address of its metrics.
fn train(at: &Path) -> (Running, String) {
    let text: String = (0..4000).map(|i| format!("{i} squared is {}.\n", i * i)).collect();
    fs::write(at.join("text"), text).unwrap();
    // Gates that arm at once and refuse now and then; laws that move scales; updates that have a spectral entropy.
    let policy = "[gate.norm]\nmultiple = 1.02\ndeviations = 0\nwarmup = 5\n[target]\nfirst = 10\n[laws]\nwarmup = 5\n[laws.micro]\nenabled = true\n[spectral]\nenabled = true\n";
    fs::write(at.join("policy.toml"), policy).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_entropic"));
    command.current_dir(at).env("ENTROPIC_CACHE_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("executables"));
    command.arg("train").arg(root().join("models/mlp")).args(["--data", "text", "--policy", "policy.toml"]);
    command.args([
        "--steps",
        "100000000",
        "--checkpoint-every",
        "200",
        "--metrics-addr",
        "127.0.0.1:0",
        "--out",
        "run",
    ]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let running = Running(child);
    let mut lines = lines.map(Result::unwrap);
    let line =
        lines.find(|line| line.starts_with("metrics at ")).expect("if the CPU plugin is missing, run `make plugin`");
    let address = line.trim_start_matches("metrics at http://").trim_end_matches("/metrics").to_owned();
    // What else it says must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    (running, address)
}

/// Starts Prometheus on the files of `ops`, scraping `target` every second; returns it with its address.
fn prometheus(at: &Path, target: &str) -> (Running, String) {
    let config = fs::read_to_string(root().join("ops/prometheus.yml")).unwrap();
    let config = config.replace("127.0.0.1:9464", target).replace("5s", "1s");
    fs::write(at.join("prometheus.yml"), config).unwrap();
    fs::copy(root().join("ops/entropic.rules.yml"), at.join("entropic.rules.yml")).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut command = Command::new("prometheus");
    command.current_dir(at).args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
    command.arg(format!("--web.listen-address={address}")).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("Prometheus is needed: apt install prometheus");
    (Running(child), address)
}

fn get(url: &str) -> Option<String> {
    ureq::get(url).call().ok()?.body_mut().read_to_string().ok()
}

/// What the server answers, without what is around it.
fn asked(server: &str, path: &str, query: Option<&str>) -> Option<Value> {
    let mut request = ureq::get(format!("http://{server}/api/v1/{path}"));
    if let Some(query) = query {
        request = request.query("query", query);
    }
    let answer: Value = serde_json::from_str(&request.call().ok()?.body_mut().read_to_string().ok()?).unwrap();
    assert_eq!(answer["status"], "success", "{path} {query:?}: {answer}");
    Some(answer["data"].clone())
}

fn promtool(arguments: &[&str], input: &str) {
    let mut child =
        Command::new("promtool").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
}

/// Every query of the dashboard, for all runs.
fn queries() -> Vec<String> {
    let dashboard = fs::read_to_string(root().join("ops/grafana/dashboards/entropic.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.map(|target| target["expr"].as_str().unwrap().replace("$instance", ".*")).collect()
}

fn wait_until<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = holds() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "waited a minute until {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
#[ignore = "needs Prometheus (apt install prometheus); `make test-ops` runs it"]
fn a_real_server_scrapes_a_run_and_its_dashboard_and_rules_find_what_they_ask_for() {
    let at = tempfile::tempdir().unwrap();
    let (_run, run) = train(at.path());
    wait_until("a step was read", || get(&format!("http://{run}/readyz")));
    assert_eq!(get(&format!("http://{run}/healthz")).as_deref(), Some("ok\n"));
    promtool(&["check", "metrics"], &get(&format!("http://{run}/metrics")).unwrap());
    promtool(&["check", "rules", &root().join("ops/entropic.rules.yml").display().to_string()], "");

    let (_server, server) = prometheus(at.path(), &run);
    let found = |query: &str| {
        let data = asked(&server, "query", Some(query))?;
        Some(data["result"].as_array().unwrap().clone()).filter(|result| !result.is_empty())
    };
    wait_until("the run is scraped", || found("up{job=\"entropic\"} == 1"));
    let queries = queries();
    assert!(queries.len() > 20, "{queries:?}");
    for query in &queries {
        wait_until(&format!("there is data for {query}"), || found(query));
    }
    // The format that was negotiated keeps the units.
    let told = ureq::get(format!("http://{server}/api/v1/targets/metadata")).query("metric", "entropic_loss").call();
    assert_eq!(told.unwrap().status(), 200);
    let rules = wait_until("all rules were evaluated", || {
        let data = asked(&server, "rules", None)?;
        let rules: Vec<Value> = data["groups"][0]["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] == "ok").then_some(rules)
    });
    assert_eq!(rules.len(), 8);
    let firing = |name: &str| {
        let data = asked(&server, "alerts", None)?;
        data["alerts"].as_array()?.iter().any(|alert| alert["labels"]["alertname"] == name).then_some(())
    };
    // Under these gates a storm is pending, and nothing is wrong with the process.
    wait_until("the storm is seen", || firing("EntropicGateStorm"));
    for quiet in ["EntropicDown", "EntropicTrainingStalled", "EntropicCheckpointFailed", "EntropicReplicasDiffer"] {
        assert!(firing(quiet).is_none(), "{quiet}");
    }
}
