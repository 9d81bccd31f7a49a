//! What compiler flags and client options of the CPU plugin are worth: the plain step compiled with each, and JAX.
//!
//! Flags that change results, such as fast-math, are left out. A flag that this build does not know, or that changes a
//! result after all, is noted and not timed.

use anyhow::{Context, Result};
use entropic::bundle::Bundle;
use entropic::engine::Engine;
use entropic::plugin;
use hlo::Module;
use pjrt::{Client, CompileOptions, Executable, NamedValue, OptionValue, Plugin, Program};

use crate::bare::{Bare, Initial};
use crate::child::Child;
use crate::rounds::{Contender, Samples, Schedule};
use crate::{Options, text};

/// Always set: see `src/engine.rs`.
const ALWAYS: (&str, &str) = ("xla_cpu_use_xnnpack", "false");

/// Settings, each tried alone.
const SETTINGS: &[(&str, &str)] = &[
    ("xla_cpu_use_thunk_runtime", "false"),
    ("xla_cpu_multi_thread_eigen", "false"),
    ("xla_cpu_use_fusion_emitters", "true"),
    ("xla_cpu_use_fusion_emitters", "false"),
    ("xla_cpu_prefer_vector_width", "128"),
    ("xla_cpu_prefer_vector_width", "512"),
    ("xla_cpu_parallel_codegen_split_count", "1"),
    ("xla_cpu_parallel_codegen_split_count", "4"),
    ("xla_cpu_enable_concurrency_optimized_scheduler", "false"),
    ("xla_cpu_enable_concurrency_optimized_scheduler", "true"),
    ("xla_cpu_use_onednn", "true"),
    ("xla_cpu_copy_insertion_use_region_analysis", "true"),
    ("xla_cpu_enable_fast_min_max", "false"),
    ("xla_backend_optimization_level", "2"),
    ("xla_llvm_disable_expensive_passes", "true"),
];

/// Devices of the client; the plugin's own default is 4.
const DEVICE_COUNTS: [i64; 2] = [1, 2];

pub(crate) fn compare(options: &Options, schedule: Schedule) -> Result<Samples> {
    let bundle = Bundle::open(&options.model)?;
    let engine = Engine::open(&options.plugin)?;
    let initial = Initial::new(&engine, &bundle, &text())?;
    let library = Plugin::load(&plugin::find(&options.plugin)?)?;
    let client = Client::create(&library, &[])?;
    let jax = Child::start(options, "jax")?;
    let mut contenders = vec![jax.contender("jax")];
    let mut notes = Vec::new();
    let mut reference = Vec::new();
    let none: &[_] = &[];
    let flags = SETTINGS.iter().map(|setting| (format!("{}={}", setting.0, setting.1), std::slice::from_ref(setting)));
    for (name, setting) in std::iter::once(("as it is".to_owned(), none)).chain(flags) {
        match compiled(&client, &bundle.module, &initial, setting) {
            Ok((step, result)) if reference.is_empty() || result == reference => {
                reference = result;
                contenders.push(contender(&name, step));
            }
            Ok((step, _)) => {
                notes.push(format!("`{name}` changes bits of the result"));
                contenders.push(contender(&name, step));
            }
            Err(error) => notes.push(format!("`{name}`: {error:#}")),
        }
    }
    for count in DEVICE_COUNTS {
        let client = Client::create(&library, &[("cpu_device_count", NamedValue::Int64(count))])?;
        let (step, _) = compiled(&client, &bundle.module, &initial, &[])?;
        contenders.push(contender(&format!("cpu_device_count={count}"), step));
    }
    let mut samples = schedule.run(contenders, vec![crate::plugin(&engine), jax.versions()])?;
    samples.notes = notes;
    Ok(samples)
}

/// A step with its loop.
type Step = (Executable, Bare);

fn contender(name: &str, (executable, mut bare): Step) -> Contender {
    Contender::new(name, move |steps| bare.run(&executable, steps))
}

/// The step under these flags, and some of its state after one step.
fn compiled(client: &Client, module: &Module, initial: &Initial, setting: &[(&str, &str)]) -> Result<(Step, Vec<u8>)> {
    let mut options = CompileOptions::default();
    for (name, value) in [ALWAYS].iter().chain(setting) {
        // The plugin takes no text for a truth value.
        let value = match (value.parse(), value.parse()) {
            (Ok(truth), _) => OptionValue::Bool(truth),
            (_, Ok(number)) => OptionValue::Int(number),
            _ => OptionValue::String((*value).to_owned()),
        };
        options.env_option_overrides.insert((*name).to_owned(), value);
    }
    let code = module.export();
    let executable = client.compile(&Program::hlo(&code), &options).context("it does not compile")?;
    let device = client.device(0)?;
    let mut bare = Bare::new(initial, |bytes, dtype, shape| {
        Ok(client.buffer_from_host(bytes, dtype.element_type()?, shape, device)?)
    })?;
    bare.run(&executable, 1)?;
    let result = bare.state()?;
    Ok(((executable, bare), result))
}
