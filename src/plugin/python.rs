//! The Python environment, where plugins and CUDA's libraries may lie.
//!
//! It is that of the interpreter that the user would start: `bin/python3` of the active virtual
//! environment (`VIRTUAL_ENV`), of the active conda environment (`CONDA_PREFIX`), else `python3` on `PATH`. The
//! interpreter is asked once for its module search path, since only it knows all the rules (`.pth` files,
//! `dist-packages`, the user's own folder). It imports nothing; plugins and libraries are files below that path.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::environment::variable;

/// The first entry is the current folder, where code is not looked for.
const PRINT_PATH: &str = "import sys; print('\\n'.join(sys.path[1:]))";

/// The folders in which the Python environment looks for packages, in its order; none where there is no Python.
pub fn search_path() -> &'static [PathBuf] {
    static FOLDERS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    FOLDERS.get_or_init(|| ask(&interpreter(variable)))
}

/// The file `name`, relative to a folder of the search path, in the first of them that has it.
#[must_use]
pub fn file(name: &str) -> Option<PathBuf> {
    search_path().iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The interpreter of the active environment.
fn interpreter(variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(variable)
        .map(|environment| environment.join("bin").join("python3"))
        .find(|python| python.is_file())
        .unwrap_or_else(|| PathBuf::from("python3"))
}

fn ask(interpreter: &Path) -> Vec<PathBuf> {
    let output = Command::new(interpreter).args(["-c", PRINT_PATH]).stdin(Stdio::null()).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else { return Vec::new() };
    // Start-up hooks of an environment may print as well; what they say is no folder.
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(PathBuf::from)
        .filter(|path| path.is_absolute() && path.is_dir())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_active_environment_comes_before_the_path() {
        let at = tempfile::tempdir().unwrap();
        for name in ["venv", "conda"] {
            std::fs::create_dir_all(at.path().join(name).join("bin")).unwrap();
            std::fs::write(at.path().join(name).join("bin/python3"), "").unwrap();
        }
        let (venv, conda) = (at.path().join("venv"), at.path().join("conda"));
        for (set, expected) in [
            (vec![("VIRTUAL_ENV", &venv), ("CONDA_PREFIX", &conda)], venv.join("bin/python3")),
            (vec![("CONDA_PREFIX", &conda)], conda.join("bin/python3")),
            (vec![("VIRTUAL_ENV", &at.path().join("removed")), ("CONDA_PREFIX", &conda)], conda.join("bin/python3")),
            (vec![], PathBuf::from("python3")),
        ] {
            let variable = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).clone());
            assert_eq!(interpreter(variable), expected);
        }
    }

    #[test]
    fn an_interpreter_that_does_not_run_has_no_packages() {
        assert_eq!(ask(Path::new("/no/such/python3")), Vec::<PathBuf>::new());
        assert_eq!(ask(Path::new("false")), Vec::<PathBuf>::new());
    }

    #[cfg(unix)]
    #[test]
    fn only_folders_that_exist_are_believed() {
        use std::os::unix::fs::PermissionsExt;
        let at = tempfile::tempdir().unwrap();
        let python = at.path().join("python3");
        let script = format!("#!/bin/sh\necho welcome\necho .\necho {0}\necho {0}/none\n", at.path().display());
        std::fs::write(&python, script).unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(ask(&python), [at.path()]);
    }
}
