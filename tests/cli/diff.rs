//! `entropic diff`: bundles, protos and text in, tables, JSON and a page out.

use std::fs;

use serde_json::Value;

use super::{root, run, succeed, workplace};

#[test]
fn equal_modules_are_said_to_be_equal() {
    let at = workplace();
    fs::write(at.path().join("step.txt"), succeed(at.path(), "show mlp")).unwrap();
    for line in ["diff mlp mlp/module.hlo.pb", "diff mlp step.txt --exit-code"] {
        let said = succeed(at.path(), line);
        assert!(said.contains("are the same program") && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn an_injected_bundle_differs_by_what_was_injected() {
    let at = workplace();
    succeed(at.path(), "inject mlp -o injected");
    let said = succeed(at.path(), "diff mlp injected --html page.html");
    // The root, and on CPU twelve operations of the optimizer that read its states after the gate.
    for part in
        ["13 changed", " 0 removed", "entropic/measure-entropy", "entropic/gate", "+ output 17 may alias parameter 18"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    let page = fs::read_to_string(at.path().join("page.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("entropic/measure-entropy"));
    let full = succeed(at.path(), "diff mlp injected --full");
    let added = full.lines().filter(|l| l.starts_with("+ %") || l.starts_with("+ ROOT %")).count();
    let document: Value = serde_json::from_str(&succeed(at.path(), "diff mlp injected --json")).unwrap();
    assert_eq!(document["counts"]["added"].as_u64().unwrap(), u64::try_from(added).unwrap());
    assert!(full.contains("\n< ROOT %") && full.contains("\n> ROOT %") && full.contains("(operands, shape)"), "{full}");
    // The other way round the same is removed.
    assert!(succeed(at.path(), "diff injected mlp").contains(&format!("0 added, {added} removed")));
}

#[test]
fn the_exit_code_says_what_it_is_asked_to_say() {
    let at = workplace();
    succeed(at.path(), "inject mlp -o injected");
    assert_eq!(run(at.path(), &["diff", "mlp", "injected"]).code, Some(0));
    let ran = run(at.path(), &["diff", "mlp", "injected", "--exit-code"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""));
    assert!(ran.out.contains("added"));
    let missing = run(at.path(), &["diff", "mlp", "none"]);
    assert!(missing.code == Some(1) && missing.err.contains("none"), "{}", missing.err);
    assert_eq!(run(&root(), &["diff", "models/mlp"]).code, Some(2));
}
