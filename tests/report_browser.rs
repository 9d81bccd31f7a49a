//! A page of a run in a real browser: it draws what it should, runs nothing, and has nothing to complain about.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

/// What would run if it were not text: it changes the page's title, which the browser then prints.
const EVIL: &str = "<script>document.title='RAN'</script><img src=x onerror=\"document.title='RAN'\">";

fn run(at: &Path) {
    fs::create_dir(at).unwrap();
    let tensors = [EVIL, "</text></svg><script>document.title='RAN'</script>", "\"><svg onload=alert(1)>"];
    let run = json!({
        "format_version": 1, "model": EVIL, "model_path": EVIL, "policy": passes::Policy::default(), "tensors": tensors,
        "seed": 0, "steps": 60, "corruption": null, "loss_unit": EVIL, "data": {"paths": [EVIL]}, "plugin": {"platform": EVIL},
    });
    fs::write(at.join("run.json"), run.to_string()).unwrap();
    let mut lines = String::new();
    for step in 0..60 {
        let share = f64::from(step) / 60.0;
        let gate = (step % 20 == 7).then_some("norm");
        let record = json!({
            "step": step, "loss": 5.0 - share, "seconds": share, "entropy": share, "smoothed": share, "target": 0.5,
            "norm": 1.0, "norm_threshold": null, "gate": gate, "rearmed": false, "calibrated": false, "stop": false,
            "accepted": 0, "non_finite": 0, "refused_norm": 0, "refused_low": 0, "refused_high": 0, "rearmings": 0,
            "ratio": null, "lr_scale": 1.0 - share / 2.0, "momentum_scale": 1.0, "tensor_entropy": [share, 0.5, null],
            "tensor_norm": [1.0, 1.0, 1.0], "tensor_scale": [1.0, 0.5, 1.0], "tensor_momentum": [],
        });
        lines += &format!("{record}\n");
    }
    fs::write(at.join("metrics.jsonl"), lines).unwrap();
}

fn entropic(at: &Path, line: &str) {
    let status = Command::new(env!("CARGO_BIN_EXE_entropic")).current_dir(at).args(line.split(' ')).output().unwrap();
    assert!(status.status.success(), "{line}: {}", String::from_utf8_lossy(&status.stderr));
}

/// What the browser makes of a page, and what it has to say about it.
fn browse(at: &Path, page: &str) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
        .args(["--enable-logging=stderr", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", at.join(page).display()))
        .output()
        .expect("Chromium is needed: apt install chromium");
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
#[ignore = "needs chromium; `make test-ops` runs it"]
fn a_browser_draws_pages_and_runs_nothing() {
    let at = tempfile::tempdir().unwrap();
    run(&at.path().join("a"));
    run(&at.path().join("b"));
    entropic(at.path(), "report a -o report.html");
    entropic(at.path(), "compare a b -o compare.html");
    for (page, pictures) in [("report.html", 10), ("compare.html", 2)] {
        let (page_as_drawn, log) = browse(at.path(), page);
        assert_eq!(page_as_drawn.matches("<svg").count(), pictures, "{page}: {page_as_drawn}");
        assert!(page_as_drawn.matches("<path").count() > pictures / 2, "{page}");
        // As the browser writes what it took for text.
        assert!(page_as_drawn.contains("&lt;script&gt;document.title="), "{page}");
        assert!(!page_as_drawn.contains("<script") && !page_as_drawn.contains("<img"), "{page}");
        assert!(!page_as_drawn.contains("<title>RAN") && !page_as_drawn.contains("<svg onload"), "{page}");
        let console: Vec<_> = log.lines().filter(|line| line.contains(":CONSOLE")).collect();
        assert!(console.is_empty(), "{page}: {console:?}");
    }
    // The policy holds even against a page that is changed: what asks for something else finds nothing.
    let page = fs::read_to_string(at.path().join("report.html")).unwrap();
    let changed = page.replace("</body>", "<script>document.title='RAN'</script></body>");
    assert_ne!(page, changed);
    fs::write(at.path().join("changed.html"), changed).unwrap();
    let (drawn, log) = browse(at.path(), "changed.html");
    assert!(!drawn.contains("<title>RAN") && log.contains("Content Security Policy"), "{log}");
}
