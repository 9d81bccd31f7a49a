//! A client for the PJRT C API: load a plugin, compile a program, move buffers, execute.
//!
//! A *plugin* is a shared library that exports `GetPjrtApi`; there are such libraries for CPU, GPU and TPU. This
//! crate opens one at run time and needs nothing at build time. It knows bytes, buffers and devices, and nothing of
//! what a program means.
//!
//! ```no_run
//! use pjrt::{Client, CompileOptions, ElementType, Plugin, Program};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let plugin = Plugin::load("xla_cpu_pjrt.so".as_ref())?;
//! let client = Client::create(&plugin, &[("cpu_device_count", 1.into())])?;
//! let module = std::fs::read("step.hlo.pb")?;
//! let step = client.compile(&Program::hlo(&module), &CompileOptions::default())?;
//!
//! let device = client.device(0)?;
//! let x = client.buffer_from_host(&[0; 16], ElementType::F32, &[4], device)?;
//! let outputs = step.execute_single(&[&x])?;
//! for output in &outputs {
//!     println!("{}{:?}: {} bytes", output.element_type()?, output.dims()?, output.to_vec()?.len());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//!
//! * Nothing here panics on what a plugin does or on what a caller passes. A program that makes the plugin itself
//!   abort takes the process along, so programs that nobody has verified belong in a process of their own.
//! * Every failure names the C function, the code, the plugin's own words and the version of the API that it speaks
//!   ([`Error`]).
//! * Objects keep alive what they depend on: a buffer its client, a client its plugin. A library is never unloaded.
//! * Everything is `Send` and `Sync`, as PJRT promises for its objects.
//! * A buffer that an execution consumed ([donation](Executable#donation)) stays a valid object; using it is an error.
//! * Plugins of API 0.81 to 0.117 are in use. A function that a plugin lacks is [`Code::Unimplemented`], another
//!   major version is refused.

#![deny(unsafe_op_in_unsafe_fn)]

mod buffer;
mod client;
mod compiled;
mod element_type;
mod error;
mod event;
mod executable;
mod inspect;
mod options;
mod plugin;
#[allow(unsafe_code)]
mod sys;
mod value;

#[cfg(test)]
mod fake_plugin_tests;

pub use buffer::{Buffer, HostCopy};
pub use client::{Client, Device, Program};
pub use compiled::{Compiled, CompiledMemoryStats, OptimizedProgram, Topology, TopologyDevice};
pub use element_type::{Element, ElementType};
pub use error::{Code, Error, LoadFailure, Result};
pub use event::Event;
pub use executable::{ArraySpec, Executable, ExecuteOptions, Execution};
pub use options::{CompileOptions, DeviceAssignment, OptionValue};
pub use plugin::{ApiVersion, Plugin, preload};
pub use value::NamedValue;
