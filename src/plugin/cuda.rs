//! What a CUDA plugin needs beside its own library.
//!
//! It opens CUDA's libraries by their bare names when it makes a client, and runs CUDA's assembler when it
//! compiles. Where both come as Python packages (`nvidia-*`), no search path of the system leads there: the
//! libraries are loaded beforehand, so that the linker knows their names ([`libraries`]), and the compiler is
//! told the folder of its tools ([`data_dir`]). Without such packages a CUDA installation of the system serves.

use std::path::{Path, PathBuf};

use super::python;

/// Libraries of a CUDA release by folder below a `nvidia` package, each behind what it is linked with.
const CUDA_12: &[(&str, &str)] = &[
    ("cuda_runtime", "libcudart.so.12"),
    ("nvjitlink", "libnvJitLink.so.12"),
    ("cuda_nvrtc", "libnvrtc.so.12"),
    ("cublas", "libcublasLt.so.12"),
    ("cublas", "libcublas.so.12"),
    ("nccl", "libnccl.so.2"),
    ("cuda_cupti", "libcupti.so.12"),
    ("cusparse", "libcusparse.so.12"),
    ("cusolver", "libcusolver.so.11"),
    ("cufft", "libcufft.so.11"),
    ("nvshmem", "libnvshmem_host.so.3"),
    ("cudnn", "libcudnn.so.9"),
];

/// As [`CUDA_12`].
const CUDA_13: &[(&str, &str)] = &[
    ("cu13", "libcudart.so.13"),
    ("cu13", "libnvJitLink.so.13"),
    ("cu13", "libnvrtc.so.13"),
    ("cu13", "libcublasLt.so.13"),
    ("cu13", "libcublas.so.13"),
    ("nccl", "libnccl.so.2"),
    ("cu13", "libcupti.so.13"),
    ("cu13", "libcusparse.so.12"),
    ("cu13", "libcusolver.so.12"),
    ("cu13", "libcufft.so.12"),
    ("nvshmem", "libnvshmem_host.so.3"),
    ("cudnn", "libcudnn.so.9"),
];

/// Folders below `nvidia` that have the compiler's tools, by CUDA release.
const TOOLS_12: &[&str] = &["cuda_nvcc"];
const TOOLS_13: &[&str] = &["cu13"];

/// CUDA's libraries in the Python environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Libraries {
    /// Those that are there, each behind what it is linked with.
    pub present: Vec<PathBuf>,
    /// Names of those that are not. A system's own installation may have them.
    pub absent: Vec<&'static str>,
}

/// Whether this library looks like a CUDA plugin, by its name.
#[must_use]
pub fn is_plugin(library: &Path) -> bool {
    let name = library.file_name().unwrap_or_default().to_string_lossy();
    name.contains("cuda") || name.contains("gpu_plugin")
}

/// CUDA's libraries for this plugin, as the Python environment has them.
#[must_use]
pub fn libraries(plugin: &Path) -> Libraries {
    libraries_below(plugin, python::search_path())
}

/// The folder in which the compiler finds `bin/ptxas` and `nvvm/libdevice`, for its option `xla_gpu_cuda_data_dir`: that of a
/// fetched plugin itself, else that of the packages beside a plugin in the Python environment, else that of
/// the packages in the Python environment. `None` where none of them has both.
#[must_use]
pub fn data_dir(plugin: &Path) -> Option<PathBuf> {
    data_dir_below(plugin, python::search_path)
}

fn libraries_below(plugin: &Path, folders: &[PathBuf]) -> Libraries {
    let mut libraries = Libraries::default();
    for (package, name) in if is_cuda_12(plugin) { CUDA_12 } else { CUDA_13 } {
        let below = Path::new("nvidia").join(package).join("lib").join(name);
        match folders.iter().map(|folder| folder.join(&below)).find(|path| path.is_file()) {
            Some(path) => libraries.present.push(path),
            None => libraries.absent.push(name),
        }
    }
    libraries
}

fn data_dir_below<'a>(plugin: &Path, folders: impl FnOnce() -> &'a [PathBuf]) -> Option<PathBuf> {
    let complete = |folder: &PathBuf| {
        folder.join("bin/ptxas").is_file() && folder.join("nvvm/libdevice/libdevice.10.bc").is_file()
    };
    let own = plugin.parent().map(Path::to_owned).filter(complete);
    own.or_else(|| {
        // A plugin lies at jax_plugins/xla_cuda13/xla_cuda_plugin.so below the folder of its packages.
        let beside = plugin.ancestors().nth(3);
        let tools = if is_cuda_12(plugin) { TOOLS_12 } else { TOOLS_13 };
        let folders = beside.into_iter().chain(folders().iter().map(PathBuf::as_path));
        folders.flat_map(|folder| tools.iter().map(move |t| folder.join("nvidia").join(t))).find(complete)
    })
}

/// A plugin's package is named after the CUDA release that it is for; the pinned one is for CUDA 13.
fn is_cuda_12(plugin: &Path) -> bool {
    plugin.components().any(|part| part.as_os_str().to_string_lossy().contains("cuda12"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn touch(at: &Path, name: &str) -> PathBuf {
        let path = at.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        path
    }

    #[test]
    fn libraries_come_in_the_order_of_their_links_from_any_folder() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cublas = touch(one.path(), "nvidia/cu13/lib/libcublas.so.13");
        let cudnn = touch(two.path(), "nvidia/cudnn/lib/libcudnn.so.9");
        let lt = touch(two.path(), "nvidia/cu13/lib/libcublasLt.so.13");
        touch(two.path(), "nvidia/cu13/lib/libcublas.so.13");
        touch(two.path(), "nvidia/cublas/lib/libcublas.so.12");
        let folders = [one.path().to_owned(), two.path().to_owned()];
        let found = libraries_below(Path::new("/p/xla_cuda_plugin.so"), &folders);
        assert_eq!(found.present, [lt, cublas, cudnn.clone()]);
        assert!(found.absent.contains(&"libcudart.so.13") && !found.absent.contains(&"libcudnn.so.9"));
        let found = libraries_below(Path::new("/s/jax_plugins/xla_cuda12/xla_cuda_plugin.so"), &folders);
        assert_eq!(found.present, [two.path().join("nvidia/cublas/lib/libcublas.so.12"), cudnn]);
    }

    #[test]
    fn the_tools_beside_a_plugin_come_before_those_of_the_environment() {
        let at = tempfile::tempdir().unwrap();
        let tools = |folder: &str| {
            touch(at.path(), &format!("{folder}/bin/ptxas"));
            touch(at.path(), &format!("{folder}/nvvm/libdevice/libdevice.10.bc"));
            at.path().join(folder)
        };
        let (fetched, beside, environment) =
            (tools("fetched"), tools("site/nvidia/cu13"), tools("environment/nvidia/cu13"));
        let old = tools("environment/nvidia/cuda_nvcc");
        let folders = [at.path().join("environment")];
        let dir = |plugin: &str| data_dir_below(&at.path().join(plugin), || &folders);
        assert_eq!(dir("fetched/xla_cuda_plugin.so"), Some(fetched));
        assert_eq!(dir("site/jax_plugins/xla_cuda13/xla_cuda_plugin.so"), Some(beside));
        assert_eq!(dir("elsewhere/xla_cuda_plugin.so"), Some(environment.clone()));
        assert_eq!(dir("elsewhere/jax_plugins/xla_cuda12/xla_cuda_plugin.so"), Some(old));
        // Half of the tools are none.
        fs::remove_file(environment.join("bin/ptxas")).unwrap();
        assert_eq!(dir("elsewhere/xla_cuda_plugin.so"), None);
    }

    #[test]
    fn cuda_plugins_are_told_by_name() {
        for (name, expected) in
            [("a/xla_cuda_plugin.so", true), ("pjrt_c_api_gpu_plugin.so", true), ("cuda/xla_cpu_pjrt.so", false)]
        {
            assert_eq!(is_plugin(Path::new(name)), expected, "{name}");
        }
    }
}
