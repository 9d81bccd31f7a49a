//! Type-checking the feature `xla-rs` without XLA's C++ library.
//!
//! The crate `xla` does without the library where `DOCS_RS` is set, but still makes its bindings, for which it needs
//! libclang. A Python package has that; its headers for the compiler's own types come from the C compiler that links Rust.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{cargo_command, root, run};

/// The Python package with libclang.
const LIBCLANG: &str = "libclang==18.1.1";

/// Lints library and example with the feature on.
pub(crate) fn check() -> Result<()> {
    let mut command = cargo_command(&["clippy", "--package", "entropic", "--features", "xla-rs", "--lib"]);
    command.args(["--example", "xla_rs", "--", "-D", "warnings"]).env("DOCS_RS", "1");
    if std::env::var_os("LIBCLANG_PATH").is_none() {
        command.env("LIBCLANG_PATH", libclang()?);
        if std::env::var_os("BINDGEN_EXTRA_CLANG_ARGS").is_none() {
            command.env("BINDGEN_EXTRA_CLANG_ARGS", format!("-I{}", headers()?));
        }
    }
    run(&mut command)
}

/// The folder of libclang, fetched the first time.
fn libclang() -> Result<PathBuf> {
    let target = root().join("target").join("libclang");
    let folder = target.join("clang").join("native");
    if !folder.is_dir() {
        let install = ["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", LIBCLANG, "--target"];
        run(Command::new("python3").args(install).arg(&target))
            .context("libclang is needed to check the feature xla-rs; name a folder that has it in LIBCLANG_PATH")?;
    }
    folder.canonicalize().with_context(|| format!("{LIBCLANG} has no {}", folder.display()))
}

/// The C compiler's own headers (`stdbool.h`, `stddef.h`).
fn headers() -> Result<String> {
    let output = Command::new("cc").arg("-print-file-name=include").output().context("cannot run `cc`")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
