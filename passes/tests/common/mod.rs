//! Running modules on the CPU plugin, for tests.
//!
//! The plugin is `xla_cpu_pjrt.so` in the folder `ENTROPIC_PLUGIN_DIR`, else in the per-user cache. A missing
//! plugin fails the test that needs it.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of this module")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod devices;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use hlo::Module;
use pjrt::{Buffer, Client, CompileOptions, ElementType, Executable, ExecuteOptions, OptionValue, Plugin, Program};

/// The CPU client of this process, with one device.
pub fn client() -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        let plugin = Plugin::load(&plugin_file())
            .unwrap_or_else(|error| panic!("{error}\nrun `make plugin`, or set ENTROPIC_PLUGIN_DIR"));
        Client::create(&plugin, &[("cpu_device_count", 1_i64.into())]).unwrap()
    })
}

fn plugin_file() -> PathBuf {
    const NAME: &str = "xla_cpu_pjrt.so";
    if let Some(folder) = std::env::var_os("ENTROPIC_PLUGIN_DIR") {
        return Path::new(&folder).join(NAME);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .unwrap_or_default();
    cache.join("entropic/plugins/xla-cpu-pjrt-0.0.1").join(NAME)
}

/// An array on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub element_type: ElementType,
    pub dims: Vec<i64>,
    pub bytes: Vec<u8>,
}

impl Array {
    pub fn f32(dims: &[i64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        Self { element_type: ElementType::F32, dims: dims.to_vec(), bytes }
    }

    pub fn vector(values: &[f32]) -> Self {
        Self::f32(&[values.len() as i64], values)
    }

    pub fn s32(dims: &[i64], values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        Self { element_type: ElementType::S32, dims: dims.to_vec(), bytes }
    }

    pub fn floats(&self) -> Vec<f32> {
        assert_eq!(self.element_type, ElementType::F32);
        self.bytes.chunks_exact(4).map(|four| f32::from_ne_bytes(four.try_into().unwrap())).collect()
    }

    pub fn ints(&self) -> Vec<i32> {
        assert_eq!(self.element_type, ElementType::S32);
        self.bytes.chunks_exact(4).map(|four| i32::from_ne_bytes(four.try_into().unwrap())).collect()
    }
}

/// A module compiled for the CPU.
pub struct Compiled {
    executable: Executable,
}

/// What the compiler may do with a multiplication and an addition that follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contraction {
    /// Make them one instruction that rounds once, where it sees fit; so values depend on what is fused with what.
    Allowed,
    /// Keep them apart, by an instruction set that has no such instruction. LLVM then optimizes nothing either: what it
    /// may do without contraction changes no bit, and is most of the time that compilation takes.
    Impossible,
    /// Whatever: results are compared with numbers, or with those of a program compiled alike. LLVM optimizes nothing, as
    /// under [`Contraction::Impossible`], which halves the time that compilation takes.
    Indifferent,
}

impl Contraction {
    /// The compiler's flags.
    fn flags(self) -> Vec<(String, OptionValue)> {
        // As the program's own engine does; see there.
        let hoists = OptionValue::String("while-loop-invariant-code-motion".to_owned());
        let mut flags = vec![
            ("xla_cpu_use_xnnpack".to_owned(), OptionValue::Bool(false)),
            ("xla_disable_hlo_passes".to_owned(), hoists),
        ];
        if self == Self::Impossible {
            flags.push(("xla_cpu_max_isa".to_owned(), OptionValue::String("AVX".to_owned())));
        }
        if self != Self::Allowed {
            flags.push(("xla_backend_optimization_level".to_owned(), OptionValue::Int(0)));
        }
        flags
    }
}

impl Compiled {
    /// Compiled for its numbers, see [`Contraction::Indifferent`].
    pub fn new(module: &Module) -> Self {
        Self::with(module, Contraction::Indifferent)
    }

    pub fn with(module: &Module, contraction: Contraction) -> Self {
        hlo::verify::verify(module).unwrap();
        let mut options = CompileOptions::default();
        options.env_option_overrides.extend(contraction.flags());
        let executable = client().compile(&Program::hlo(&module.export()), &options).unwrap();
        Self { executable }
    }

    /// The same program for the same module, compiled once in this process.
    pub fn shared(module: &Module) -> &'static Self {
        static PROGRAMS: Mutex<BTreeMap<Vec<u8>, &'static Compiled>> = Mutex::new(BTreeMap::new());
        let code = module.export();
        if let Some(program) = PROGRAMS.lock().unwrap().get(&code) {
            return program;
        }
        let program: &'static Self = Box::leak(Box::new(Self::new(module)));
        PROGRAMS.lock().unwrap().insert(code, program);
        program
    }

    /// What the compiler made of it, as an `HloModuleProtoWithConfig`.
    pub fn optimized(&self) -> Vec<u8> {
        self.executable.compiled().optimized_program().unwrap().code
    }

    /// Runs it on copies of `inputs`.
    pub fn run(&self, inputs: &[Array]) -> Vec<Array> {
        let device = client().device(0).unwrap();
        let buffers: Vec<Buffer> = inputs
            .iter()
            .map(|a| client().buffer_from_host(&a.bytes, a.element_type, &a.dims, device).unwrap())
            .collect();
        let list: Vec<&Buffer> = buffers.iter().collect();
        let outputs = self.executable.execute(&[list.as_slice()], &ExecuteOptions::default()).unwrap().outputs;
        outputs[0]
            .iter()
            .map(|b| Array {
                element_type: b.element_type().unwrap(),
                dims: b.dims().unwrap().to_vec(),
                bytes: b.to_vec().unwrap(),
            })
            .collect()
    }
}

/// A small deterministic generator: the same numbers on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}
