//! Compiled programs are kept, and a cache that cannot be used stops nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Ran, program, workplace};

const TRAIN: &[&str] = &["train", "mlp", "--no-control", "--data", "text", "--steps", "3"];

/// Runs the program with its cache in the folder `cache` of `at`.
fn with_cache(at: &Path, words: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = program(at);
    command.env("ENTROPIC_CACHE_DIR", at.join("cache")).envs(variables.iter().copied());
    let ran: Ran = command.args(words).output().unwrap().into();
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    ran
}

/// Trains; returns where its programs came from, by the table at the end, and its metrics but for the clock.
fn train(at: &Path, out: &str, more: &[&str], variables: &[(&str, &str)]) -> (String, String, Ran) {
    let ran = with_cache(at, &[TRAIN, &["--out", out], more].concat(), variables);
    let line = ran.out.lines().find(|line| line.contains("first step after")).unwrap();
    let origin = line.split(['(', ')']).nth(1).unwrap().to_owned();
    let metrics = fs::read_to_string(at.join(out).join("metrics.jsonl")).unwrap();
    let records = metrics.lines().map(|line| {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        record.as_object_mut().unwrap().remove("seconds");
        record.to_string() + "\n"
    });
    (origin, records.collect(), ran)
}

#[test]
fn a_second_run_compiles_nothing_and_computes_the_same() {
    let at = workplace();
    let (origin, compiled, _) = train(at.path(), "first", &[], &[]);
    assert_eq!(origin, "compiled");
    let (origin, cached, _) = train(at.path(), "second", &[], &[]);
    assert_eq!(origin, "from cache");
    assert_eq!(cached, compiled);
    let (origin, without, _) = train(at.path(), "third", &["--no-compile-cache"], &[]);
    assert_eq!((origin.as_str(), &without), ("compiled", &compiled));

    // A program that is gone is compiled; other flags share nothing.
    let entry = fs::read_dir(at.path().join("cache")).unwrap().next().unwrap().unwrap();
    fs::remove_file(entry.path()).unwrap();
    assert_eq!(train(at.path(), "fourth", &[], &[]).0, "partly from cache");
    let flags = [("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")];
    assert_eq!(train(at.path(), "fifth", &[], &flags).0, "compiled");

    let listed = with_cache(at.path(), &["cache", "list"], &[]).out;
    let count = fs::read_dir(at.path().join("cache")).unwrap().count();
    assert!(listed.contains(&format!("{count} compiled programs")) && listed.contains("s ago"), "{listed}");
    let cleared = with_cache(at.path(), &["cache", "clear"], &[]).out;
    assert!(cleared.contains(&format!("removed {count} compiled programs")), "{cleared}");
    assert_eq!(fs::read_dir(at.path().join("cache")).unwrap().count(), 0);
}

#[test]
fn a_damaged_program_is_compiled_again() {
    let at = workplace();
    let (_, compiled, _) = train(at.path(), "first", &[], &[]);
    for entry in fs::read_dir(at.path().join("cache")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(&path, bytes).unwrap();
    }
    let (origin, again, ran) = train(at.path(), "second", &[], &[]);
    assert_eq!((origin.as_str(), again), ("compiled", compiled));
    assert!(ran.err.contains("WARN") && ran.err.contains("is damaged"), "{}", ran.err);
    assert_eq!(train(at.path(), "third", &[], &[]).0, "from cache");
}

#[test]
fn without_a_usable_cache_programs_are_compiled() {
    let at = workplace();
    fs::create_dir(at.path().join("cache")).unwrap();
    fs::set_permissions(at.path().join("cache"), fs::Permissions::from_mode(0o777)).unwrap();
    for (variables, words) in [
        (&[][..], &["may be written to by other users", "chmod go-w"][..]),
        (&[("ENTROPIC_CACHE_SIZE", "much")], &["ENTROPIC_CACHE_SIZE", "2GiB"]),
        (&[("ENTROPIC_CACHE_DIR", "text/below")], &["text/below", "ENTROPIC_CACHE_DIR"]),
        // Turned off: nothing to say.
        (&[("ENTROPIC_CACHE_SIZE", "0")], &[]),
    ] {
        let out = format!("run{}", words.len() + variables.len());
        let _ = fs::remove_dir_all(at.path().join(&out));
        let (origin, _, ran) = train(at.path(), &out, &[], variables);
        assert_eq!(origin, "compiled");
        assert_eq!(ran.err.contains("warning: compiled programs are not kept"), !words.is_empty(), "{}", ran.err);
        assert!(words.iter().all(|word| ran.err.contains(word)), "{}", ran.err);
        assert_eq!(fs::read_dir(at.path().join("cache")).unwrap().count(), 0);
    }
}
