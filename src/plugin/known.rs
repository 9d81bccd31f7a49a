//! The plugins that this program knows by name: their packages, pinned to one release, and what is taken out of them.
//!
//! A plugin's files lie in one folder, the library at its top. Sums are of the files as
//! the package index serves them: a fetch that brings anything else installs nothing.

use std::env;

/// A plugin that this program knows by name.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// What `--plugin` takes.
    pub name: &'static str,
    /// File name of the library.
    pub library: &'static str,
    /// The package that has the library, as its first member.
    pub package: Package,
    /// Packages with the programs and files that its compiler needs beside it.
    pub tools: &'static [Package],
    /// Where packages put the library below `site-packages`; the first that is there is taken.
    pub python: &'static [&'static str],
}

/// A release of a package on the Python package index.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The Python that its wheels are for.
    pub python: PythonTags,
    /// What is taken out of it.
    pub members: &'static [Member],
    /// Its wheel for each machine that has one.
    pub builds: &'static [Build],
}

/// The Python that a wheel is for, in the words of wheel tags. Nothing here is run by Python, so the user's own need not fit.
#[derive(Debug, Clone, Copy)]
pub struct PythonTags {
    /// `py` or `cp`.
    pub implementation: &'static str,
    /// `none` or that of one release.
    pub abi: &'static str,
}

/// A file inside a wheel.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Its path in the wheel.
    pub source: &'static str,
    /// Its path in the plugin's folder.
    pub target: &'static str,
    /// Whether it is a program.
    pub executable: bool,
}

/// A wheel for one kind of machine.
#[derive(Debug, Clone, Copy)]
pub struct Build {
    /// Processor, as Rust names it; the system is Linux.
    pub arch: &'static str,
    /// The platform tag that pip is asked for.
    pub platform: &'static str,
    /// SHA-256 of the wheel.
    pub sha256: &'static str,
    /// SHA-256 of each member of the package, in their order.
    pub members: &'static [&'static str],
}

/// Every plugin known by name.
pub const KNOWN: &[Known] = &[
    Known {
        name: "cpu",
        library: "xla_cpu_pjrt.so",
        package: Package {
            name: "xla-cpu-pjrt",
            version: "0.0.1",
            python: ANY_PYTHON,
            members: &[Member {
                source: "xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so",
                target: "xla_cpu_pjrt.so",
                executable: false,
            }],
            builds: &[
                Build {
                    arch: "x86_64",
                    platform: "manylinux_2_27_x86_64",
                    sha256: "55837b6b7b47daa717f2d9a5a03563ea0ceaa338d06a81a1e2d3f060d960decc",
                    members: &["88c3f28c5900f48ad4a82cab9e79bba9537809743395e341485f8794268820dc"],
                },
                Build {
                    arch: "aarch64",
                    platform: "manylinux_2_27_aarch64",
                    sha256: "8f613be6e891858f40d64f9799319502fff42689661944fc18a6ffd8210b30c9",
                    members: &["fcf411f3e8ff635c2b2cf87215aa7016f460e66d236c3db08309e7486583532d"],
                },
            ],
        },
        tools: &[],
        python: &["xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so"],
    },
    Known {
        name: "cuda",
        library: "xla_cuda_plugin.so",
        package: Package {
            name: "jax-cuda13-pjrt",
            version: "0.12.0.1",
            python: ANY_PYTHON,
            members: &[Member {
                source: "jax_plugins/xla_cuda13/xla_cuda_plugin.so",
                target: "xla_cuda_plugin.so",
                executable: false,
            }],
            builds: &[
                Build {
                    arch: "x86_64",
                    platform: "manylinux_2_27_x86_64",
                    sha256: "5899bb6177eda86ea532afb9a26794f2bdd04966f6a01f9028266b16c2b6cf90",
                    members: &["b6de513893c09af2c77e71afcef46d9706f8c259337cdef4cd5cae2353886f75"],
                },
                Build {
                    arch: "aarch64",
                    platform: "manylinux_2_27_aarch64",
                    sha256: "40758d042df8c06991b6a1a8016b56e9cefb1ed4c677c062125c3eb71c3dab97",
                    members: &["b63ecc0361e3f8a9da9aad3df39e93a96092fb4ee20a174ccba2688fda4cb53f"],
                },
            ],
        },
        tools: &[NVCC, NVVM],
        python: &["jax_plugins/xla_cuda13/xla_cuda_plugin.so", "jax_plugins/xla_cuda12/xla_cuda_plugin.so"],
    },
    Known {
        name: "tpu",
        library: "libtpu.so",
        package: Package {
            name: "libtpu",
            version: "0.0.52",
            python: PythonTags { implementation: "cp", abi: "cp311" },
            members: &[Member { source: "libtpu/libtpu.so", target: "libtpu.so", executable: false }],
            builds: &[Build {
                arch: "x86_64",
                platform: "manylinux_2_31_x86_64",
                sha256: "f5e2e596eaea9357fbb5a6755a7a9007c6ab75bfde4a55191b03eff402971140",
                members: &["f86de4d04a058e6b5101f73e0824b95f27e2cec996d2b9191d9cffda75c03077"],
            }],
        },
        tools: &[],
        python: &["libtpu/libtpu.so"],
    },
];

/// Wheels without compiled Python modules.
const ANY_PYTHON: PythonTags = PythonTags { implementation: "py", abi: "none" };

/// The assembler and the linker that XLA runs to make machine code for NVIDIA GPUs.
const NVCC: Package = Package {
    name: "nvidia-cuda-nvcc",
    version: "13.5.37",
    python: ANY_PYTHON,
    members: &[
        Member { source: "nvidia/cu13/bin/ptxas", target: "bin/ptxas", executable: true },
        Member { source: "nvidia/cu13/bin/nvlink", target: "bin/nvlink", executable: true },
    ],
    builds: &[
        Build {
            arch: "x86_64",
            platform: "manylinux2014_x86_64",
            sha256: "f5c4f7ead5d964fb4af42bbf1e6d3ec3c1e6e9d83b53749f691d387e7fcaa3a7",
            members: &[
                "b3e295413e9628ee261a63ea3f70ec5af20988c9809214c064661662206574a3",
                "69eb06f88f05440ce11324e771d5598f4e50cc79fc9a19779a0a78c57b5da69a",
            ],
        },
        Build {
            arch: "aarch64",
            platform: "manylinux2014_aarch64",
            sha256: "588eda18eb5076ae859fe272844b526459228af22df0b117f54eec3aa82bc9c8",
            members: &[
                "525154a59c576d707da68be72657404a43773f89f33f5de831eae383373e92d4",
                "61d3ae0dbd9d766ee45a35122e018c3073f3ee16f09a3319e5a9e3b224f7820c",
            ],
        },
    ],
};

/// The library of mathematical functions that XLA links into kernels.
const NVVM: Package = Package {
    name: "nvidia-nvvm",
    version: "13.5.37",
    python: ANY_PYTHON,
    members: &[Member {
        source: "nvidia/cu13/nvvm/libdevice/libdevice.10.bc",
        target: "nvvm/libdevice/libdevice.10.bc",
        executable: false,
    }],
    builds: &[
        Build {
            arch: "x86_64",
            platform: "manylinux2010_x86_64",
            sha256: "c41bfa362e407405163f103c2229f0765f8cc2ed7d148b754dc77f228bf7e070",
            members: &["7e46db290976f7d8988b85c8820a135595ede636faa1ca7de63e67f8c775456f"],
        },
        Build {
            arch: "aarch64",
            platform: "manylinux2014_aarch64",
            sha256: "b659bd3115b7ac7ec8931e67d0e2c0dd09cd35b08a6a7372df6f8f22c67da80a",
            members: &["7e46db290976f7d8988b85c8820a135595ede636faa1ca7de63e67f8c775456f"],
        },
    ],
};

impl Known {
    /// The known plugin of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        KNOWN.iter().find(|k| k.name == name)
    }

    /// Names of all of them, for a person to read.
    #[must_use]
    pub fn names() -> String {
        KNOWN.iter().map(|k| k.name).collect::<Vec<_>>().join(", ")
    }

    /// Its packages: first the one with the library.
    pub fn packages(&self) -> impl Iterator<Item = &Package> {
        std::iter::once(&self.package).chain(self.tools)
    }

    /// Every file of a fetched plugin with its pinned sum on this machine, the library first. Empty where there is no build
    /// for this machine.
    pub fn files(&self) -> impl Iterator<Item = (&'static Member, &'static str)> {
        self.packages().flat_map(Package::files)
    }
}

impl Package {
    /// The build for this machine.
    #[must_use]
    pub fn build(&self) -> Option<&'static Build> {
        self.builds.iter().find(|b| env::consts::OS == "linux" && b.arch == env::consts::ARCH)
    }

    /// What is taken out of it on this machine, with the pinned sums.
    pub fn files(&self) -> impl Iterator<Item = (&'static Member, &'static str)> + use<> {
        let sums = self.build().map(|build| build.members).unwrap_or_default();
        self.members.iter().zip(sums.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_sum_and_a_place_in_the_folder() {
        for known in KNOWN {
            assert_eq!(known.package.members[0].target, known.library);
            let mut targets: Vec<_> = known.packages().flat_map(|p| p.members).map(|m| m.target).collect();
            assert!(
                targets.iter().all(|t| !t.starts_with('/') && !t.split('/').any(|part| part == "..")),
                "{targets:?}"
            );
            let count = targets.len();
            targets.sort_unstable();
            targets.dedup();
            assert_eq!(targets.len(), count, "two files of {} in one place", known.name);
            for build in
                known.packages().flat_map(|p| p.builds.iter().inspect(|b| assert_eq!(b.members.len(), p.members.len())))
            {
                for sum in std::iter::once(&build.sha256).chain(build.members) {
                    assert!(sum.len() == 64 && sum.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{sum}");
                }
                assert!(build.platform.ends_with(build.arch));
            }
        }
    }

    #[test]
    fn tools_exist_for_every_machine_that_the_library_has_a_build_for() {
        for known in KNOWN {
            for build in known.package.builds {
                assert!(known.packages().all(|p| p.builds.iter().any(|b| b.arch == build.arch)), "{}", known.name);
            }
        }
    }
}
