//! Programs that no compiler takes: every command ends with one clear error, and nobody dies.

use std::fs;
use std::path::Path;

use super::broken_programs::{Broken, FoundBy, all, step};
use super::refusals::refused;
use super::{listing, run, tiny, workplace};

/// Puts a program into the bundle `tiny`.
fn install(at: &Path, code: &[u8]) {
    fs::write(at.join("tiny").join("module.hlo.pb"), code).unwrap();
}

fn programs(found_by: FoundBy) -> impl Iterator<Item = Broken> {
    all().into_iter().filter(move |b| b.found_by == found_by)
}

const TRAIN: &str = "train tiny --data text --steps 1 --out run";

#[test]
fn the_program_that_the_others_are_made_from_is_trained() {
    let at = workplace();
    tiny::write(&at.path().join("tiny"), 0.5);
    install(at.path(), &step().export());
    let ran = run(at.path(), &TRAIN.split_whitespace().collect::<Vec<_>>());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
}

#[test]
fn what_breaks_the_rules_is_refused_by_every_command() {
    let at = workplace();
    tiny::write(&at.path().join("tiny"), 0.5);
    for Broken { name, code, says, .. } in programs(FoundBy::Rules) {
        println!("{name}");
        install(at.path(), &code);
        refused(at.path(), "inspect tiny/module.hlo.pb", says);
        for line in ["inspect tiny", "inject tiny -o out", "inject tiny/module.hlo.pb -o out.hlo.pb"] {
            refused(at.path(), line, &["tiny"]);
        }
        // What the rules refuse never reaches a compiler.
        for line in [TRAIN, &format!("{TRAIN} --no-control")] {
            refused(at.path(), line, &[]);
        }
    }
}

/// Trains a program that passes the rules; returns nothing where that was refused as it must be. Looking into the program
/// may succeed, but does not kill anybody.
fn only_the_compiler_refuses(at: &Path, name: &str, code: &[u8], says: &[&str]) {
    println!("{name}");
    install(at, code);
    let before = listing(at);
    for line in ["inspect tiny", "inspect tiny/module.hlo.pb", "show tiny"] {
        let ran = run(at, &line.split_whitespace().collect::<Vec<_>>());
        assert!(matches!(ran.code, Some(0 | 1)), "{name}: `{line}`: {}", ran.err);
    }
    assert_eq!(listing(at), before);
    refused(at, &format!("{TRAIN} --no-control"), says);
    refused(at, TRAIN, &[]);
    refused(at, "inject tiny -o out --verify", &[]);
}

#[test]
fn what_a_compiler_refuses_is_said_in_its_words() {
    let at = workplace();
    tiny::write(&at.path().join("tiny"), 0.5);
    for Broken { name, code, says, .. } in programs(FoundBy::Compiler) {
        only_the_compiler_refuses(at.path(), name, &code, says);
    }
}

#[test]
fn what_a_compiler_dies_of_is_an_error_and_not_our_end() {
    let at = workplace();
    tiny::write(&at.path().join("tiny"), 0.5);
    for Broken { name, code, says, .. } in programs(FoundBy::Death) {
        let said = [&["the train step does not compile", "SIGABRT", "Check failed"], says].concat();
        only_the_compiler_refuses(at.path(), name, &code, &said);
    }
}
