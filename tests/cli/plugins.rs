//! Where plugins are found, what is said of them, and what is not fetched.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::refusals::check;
use super::{Ran, listing, program, root, succeed, workplace};

/// The program with nothing but what the folder `at` has: no cache, no Python, no plugin.
fn alone(at: &Path) -> Command {
    let mut command = program(at);
    command.env("HOME", at).env("PATH", at);
    for variable in ["ENTROPIC_PLUGIN_DIR", "XDG_CACHE_HOME", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        command.env_remove(variable);
    }
    command
}

fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A virtual environment with the CPU plugin in it, and a foreign library in place of the CUDA plugin.
fn environment(at: &Path) -> PathBuf {
    let packages = at.join("venv/lib/python3.12/site-packages");
    script(&at.join("venv/bin/python3"), &format!("echo {}", packages.display()));
    for (below, library) in
        [("xla_plugins/xla_cpu_pjrt", "xla_cpu_pjrt.so"), ("jax_plugins/xla_cuda12", "xla_cuda_plugin.so")]
    {
        let folder = packages.join(below);
        fs::create_dir_all(&folder).unwrap();
        match library {
            "xla_cpu_pjrt.so" => std::os::unix::fs::symlink(cpu(), folder.join(library)).unwrap(),
            _ => fs::write(folder.join(library), "no library").unwrap(),
        }
    }
    packages
}

fn cpu() -> PathBuf {
    entropic::plugin::find("cpu").expect("the CPU plugin is missing: run `make plugin`")
}

/// Cells of the rows of a printed table; a cell that was broken into lines is put together again.
fn rows(printed: &str) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in printed.lines() {
        let cells: Vec<_> = line.split(['│', '┆']).map(str::trim).collect();
        let Some(cells) = cells.get(1..cells.len() - 1) else { continue };
        match rows.last_mut() {
            Some(last) if cells[0].is_empty() => last.iter_mut().zip(cells).for_each(|(cell, more)| *cell += more),
            _ => rows.push(cells.iter().map(|&cell| cell.to_owned()).collect()),
        }
    }
    rows
}

#[test]
fn the_list_says_where_what_and_whether_it_is_the_pinned_one() {
    let printed = succeed(&root(), "plugin list cpu");
    let rows = rows(&printed);
    assert_eq!(rows[1][0], "cpu", "{printed}");
    assert!(rows[1][2].contains("0.81") && rows[1][3].starts_with("pinned:"), "{printed}");
    assert_eq!(rows[1][4], cpu().display().to_string());
}

#[test]
fn a_python_environment_is_searched_last() {
    let at = workplace();
    let packages = environment(at.path());
    let list = |command: &mut Command| {
        let ran: Ran = command.args(["plugin", "list"]).output().unwrap().into();
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        rows(&ran.out)
            .into_iter()
            .skip(1)
            .map(|row| (row[0].clone(), row[1].clone(), row[4].clone()))
            .collect::<Vec<_>>()
    };
    let row =
        |name: &str, origin: &str, path: PathBuf| (name.to_owned(), origin.to_owned(), path.display().to_string());
    let in_python = row("cpu", "Python environment", packages.join("xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so"));
    let active = || {
        let mut command = alone(at.path());
        command.env("VIRTUAL_ENV", at.path().join("venv"));
        command
    };
    let found = list(&mut active());
    assert_eq!(found[0], in_python);
    assert_eq!(found[1], row("cuda", "Python environment", packages.join("jax_plugins/xla_cuda12/xla_cuda_plugin.so")));
    assert_eq!((found[2].0.as_str(), found[2].1.as_str()), ("tpu", "nowhere"));
    assert!(found[2].2.contains("entropic plugin fetch tpu"));

    // The same interpreter on PATH alone.
    let found = list(alone(at.path()).env("PATH", at.path().join("venv/bin")));
    assert_eq!(found[0], in_python);

    // A folder that was named, and the cache, come before it.
    let named = at.path().join("named");
    fs::create_dir(&named).unwrap();
    fs::copy(cpu(), named.join("xla_cpu_pjrt.so")).unwrap();
    let found = list(active().env("ENTROPIC_PLUGIN_DIR", &named));
    assert_eq!(found[..2], [row("cpu", "ENTROPIC_PLUGIN_DIR", named.join("xla_cpu_pjrt.so")), in_python.clone()]);
    let cached = at.path().join(".cache/entropic/plugins/xla-cpu-pjrt-0.0.1");
    fs::create_dir_all(cached.parent().unwrap()).unwrap();
    fs::rename(&named, &cached).unwrap();
    let found = list(&mut active());
    assert_eq!(found[..2], [row("cpu", "cache", cached.join("xla_cpu_pjrt.so")), in_python]);
}

#[test]
fn a_plugin_of_the_python_environment_trains() {
    let at = workplace();
    environment(at.path());
    let words = ["train", "mlp", "--data", "text", "--steps", "1", "--no-control", "--out", "run"];
    let ran: Ran = alone(at.path()).env("VIRTUAL_ENV", at.path().join("venv")).args(words).output().unwrap().into();
    assert_eq!(ran.code, Some(0), "{}", ran.err);
}

#[test]
fn files_that_are_not_the_pinned_ones_are_pointed_out() {
    let at = workplace();
    fs::write(at.path().join("xla_cuda_plugin.so"), "no library").unwrap();
    let list = |command: &mut Command| -> Ran { command.output().unwrap().into() };
    let ran = list(alone(at.path()).env("ENTROPIC_PLUGIN_DIR", at.path()).args(["plugin", "list", "cuda"]));
    let row = rows(&ran.out).remove(1);
    assert!(row[2].contains("does not load"), "{}", ran.out);
    for file in ["NOT", "xla_cuda_plugin.so", "bin/ptxas", "nvvm/libdevice/libdevice.10.bc"] {
        assert!(row[3].replace(' ', "").contains(file), "{}", ran.out);
    }
    let ran = list(alone(at.path()).args(["plugin", "list", "xla_cuda_plugin.so"]));
    let row = rows(&ran.out).remove(1);
    assert_eq!((row[1].as_str(), row[3].replace(' ', "").as_str()), ("given", "notthepinnedrelease"), "{}", ran.out);
    let ran = list(alone(at.path()).args(["plugin", "list", "gpuu"]));
    check(&ran, "plugin list gpuu", &["gpuu", "cpu, cuda, tpu"]);
}

#[test]
fn a_plugin_that_another_user_could_have_put_into_the_cache_is_not_loaded() {
    let at = workplace();
    let cached = at.path().join(".cache/entropic/plugins/xla-cpu-pjrt-0.0.1");
    fs::create_dir_all(&cached).unwrap();
    let library = cached.join("xla_cpu_pjrt.so");
    fs::copy(cpu(), &library).unwrap();
    let ran = |line: &str| -> Ran { alone(at.path()).args(line.split_whitespace()).output().unwrap().into() };
    const TRAIN: &str = "train mlp --data text --steps 1 --no-control --out run";
    fs::set_permissions(&cached, fs::Permissions::from_mode(0o775)).unwrap();
    check(&ran(TRAIN), TRAIN, &["plugins/xla-cpu-pjrt-0.0.1", "other users", "chmod go-w"]);
    let listed = ran("plugin list cpu");
    let row = rows(&listed.out).remove(1);
    assert!(row[2].starts_with("not loaded") && row[3].starts_with("pinned:"), "{}", listed.out);

    fs::set_permissions(&cached, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(rows(&ran("plugin list cpu").out)[1][2].contains("0.81"));
    fs::OpenOptions::new().append(true).open(&library).unwrap().write_all(b"\0").unwrap();
    check(&ran(TRAIN), TRAIN, &["not the pinned ones: xla_cpu_pjrt.so", "plugin fetch cpu", "--plugin"]);
    // Its path is an order.
    let ran = ran(&format!("{TRAIN} --plugin {}", library.display()));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
}

#[test]
fn a_plugin_may_be_given_by_path() {
    let at = workplace();
    let path = cpu();
    succeed(at.path(), &format!("train mlp --data text --steps 1 --no-control --out run --plugin {}", path.display()));
}

#[test]
fn a_missing_plugin_says_how_to_get_it() {
    let at = workplace();
    for line in ["train mlp --data text --steps 1 --out run", "inject mlp -o out --verify"] {
        let before = listing(at.path());
        let words: Vec<_> = line.split_whitespace().collect();
        let ran: Ran =
            alone(at.path()).env("ENTROPIC_PLUGIN_DIR", at.path().join("none")).args(words).output().unwrap().into();
        check(&ran, line, &["xla_cpu_pjrt.so", "entropic plugin fetch cpu", "make plugin"]);
        assert_eq!(listing(at.path()), before);
    }
}

#[test]
fn fetching_without_pip_says_so() {
    let at = workplace();
    let target = at.path().join("plugins");
    let ran: Ran = program(at.path())
        .env("ENTROPIC_PLUGIN_DIR", &target)
        .env("PATH", at.path())
        .args(["plugin", "fetch", "cpu"])
        .output()
        .unwrap()
        .into();
    check(&ran, "plugin fetch cpu", &["pip is needed", "no `python3`", "install python3"]);
    assert!(!target.join("xla_cpu_pjrt.so").exists());
}

#[test]
fn a_download_that_is_not_the_pinned_one_is_not_installed() {
    let at = workplace();
    // A python that "downloads" something else.
    let download = "while [ $# -gt 0 ]; do [ \"$1\" = --dest ] && echo fake > \"$2/a.whl\"; shift; done";
    script(&at.path().join("python3"), download);
    let target = at.path().join("plugins");
    let ran: Ran = program(at.path())
        .env("ENTROPIC_PLUGIN_DIR", &target)
        .env("PATH", at.path())
        .args(["plugin", "fetch", "cpu"])
        .output()
        .unwrap()
        .into();
    check(&ran, "plugin fetch cpu", &["SHA-256", "pinned", "Nothing was installed"]);
    assert_eq!(listing(&target), []);
}
