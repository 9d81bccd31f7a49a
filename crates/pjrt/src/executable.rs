//! Programs loaded on devices.

use std::fmt;

use crate::buffer::Buffer;
use crate::compiled::Compiled;
use crate::element_type::ElementType;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::sys::{self, Loaded};

/// A program compiled and loaded on its devices.
///
/// # Donation
///
/// Where the program says that an output takes over an input's memory, executing it *donates* that input: the buffer is
/// [deleted](Buffer::is_deleted) as soon as the call returns, and using it again is an error. List an input in
/// [`ExecuteOptions::non_donatable_inputs`] to keep it, at the price of a copy.
pub struct Executable {
    raw: Loaded,
    compiled: Compiled,
    name: String,
    parameters: Option<Vec<ArraySpec>>,
}

/// Type and dimensions of an array. It prints as `f32[8,16]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ArraySpec {
    /// The type of one element.
    pub element_type: ElementType,
    /// The dimensions, outermost first.
    pub dims: Vec<i64>,
}

impl fmt::Display for ArraySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_array(f, self.element_type, &self.dims)
    }
}

/// How one execution deviates from the plain one.
#[derive(Debug, Clone, Default)]
pub struct ExecuteOptions {
    /// Positions of arguments that must not be donated, although the program would allow it. A plugin may then keep
    /// others as well (the CPU plugin of API 0.81 donates nothing behind the first argument that is declined).
    pub non_donatable_inputs: Vec<usize>,
    /// If not zero, the same number on every host of a multi-host launch, so that the runtime can notice when they
    /// disagree about the order.
    pub launch_id: i32,
}

/// What an execution gives back, one entry per device. The work may still be under way.
#[derive(Debug)]
pub struct Execution {
    /// For each device, the outputs in the program's order.
    pub outputs: Vec<Vec<Buffer>>,
    /// For each device, the end of the execution on it.
    pub events: Vec<Event>,
}

impl Executable {
    pub(crate) fn new((raw, compiled): (Loaded, sys::Compiled)) -> Result<Self> {
        let name = compiled.name()?;
        Ok(Self { raw, compiled: Compiled::new(compiled), name, parameters: None })
    }

    /// Declares what the program takes, per device, so that every execution checks count, types and dimensions of
    /// its arguments.
    ///
    /// The C API does not tell the parameters of a program, and a plugin compares sizes in bytes only: without
    /// this, an `s32[4]` passes for an `f32[4]`.
    #[must_use]
    pub fn with_parameters(mut self, parameters: Vec<ArraySpec>) -> Self {
        self.parameters = Some(parameters);
        self
    }

    /// The name of the program.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Outputs per device.
    #[must_use]
    pub fn num_outputs(&self) -> usize {
        self.raw.num_outputs()
    }

    /// Devices of this process that an execution runs on: as many argument lists must be given.
    #[must_use]
    pub fn num_devices(&self) -> usize {
        self.raw.devices().len()
    }

    /// Launches an execution: one list of arguments per device, all of the same length. Returns before the work is
    /// done.
    ///
    /// # Errors
    ///
    /// Refused here, before the plugin is called: a wrong number of lists, lists of different lengths, a buffer of
    /// another client, a `non_donatable_inputs` beyond the arguments, and, after [`Executable::with_parameters`],
    /// arguments that do not fit. Else the plugin's, such as a deleted buffer or one on another device. What goes
    /// wrong during the work is reported by the events and the outputs.
    pub fn execute<'a, L>(&self, arguments: &[L], options: &ExecuteOptions) -> Result<Execution>
    where
        L: AsRef<[&'a Buffer]>,
    {
        for (device, list) in arguments.iter().enumerate() {
            self.check(device, list.as_ref(), options)?;
        }
        let non_donatable = options
            .non_donatable_inputs
            .iter()
            .map(|&index| i64::try_from(index).map_err(|_| Error::Argument(format!("{index} is no argument position"))))
            .collect::<Result<Vec<_>>>()?;
        let lists: Vec<Vec<_>> =
            arguments.iter().map(|list| list.as_ref().iter().map(|buffer| buffer.raw()).collect()).collect();
        let launched = self.raw.execute(&lists, &non_donatable, options.launch_id)?;
        Ok(Execution {
            outputs: launched.outputs.into_iter().map(|list| list.into_iter().map(Buffer::new).collect()).collect(),
            events: launched.events.into_iter().map(Event::new).collect(),
        })
    }

    /// Launches an execution on the one device of this program and returns its outputs. Returns before the work is
    /// done.
    ///
    /// # Errors
    ///
    /// As [`Executable::execute`].
    pub fn execute_single(&self, arguments: &[&Buffer]) -> Result<Vec<Buffer>> {
        let mut execution = self.execute(&[arguments], &ExecuteOptions::default())?;
        // `execute` has made sure that there is one list per device.
        Ok(execution.outputs.pop().unwrap_or_default())
    }

    /// The program apart from its devices, to analyse or serialise it.
    #[must_use]
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    fn check(&self, device: usize, list: &[&Buffer], options: &ExecuteOptions) -> Result<()> {
        let refuse =
            |what: String| Err(Error::Argument(format!("cannot execute `{}` on device {device}: {what}", self.name)));
        if let Some(index) = options.non_donatable_inputs.iter().find(|&&index| index >= list.len()) {
            return refuse(format!("non-donatable input {index} is beyond its {} argument(s)", list.len()));
        }
        let Some(parameters) = &self.parameters else { return Ok(()) };
        if parameters.len() != list.len() {
            return refuse(format!("it takes {} argument(s), but {} were given", parameters.len(), list.len()));
        }
        for (index, (parameter, buffer)) in parameters.iter().zip(list).enumerate() {
            let (element_type, dims) = (buffer.element_type()?, buffer.dims()?);
            if element_type != parameter.element_type || dims != parameter.dims {
                let given = ArraySpec { element_type, dims: dims.to_vec() };
                return refuse(format!("argument {index} must be {parameter}, but {given} was given"));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executable")
            .field("name", &self.name)
            .field("num_devices", &self.num_devices())
            .field("num_outputs", &self.num_outputs())
            .finish_non_exhaustive()
    }
}

fn write_array(f: &mut fmt::Formatter<'_>, element_type: ElementType, dims: &[i64]) -> fmt::Result {
    write!(f, "{element_type}[")?;
    for (position, dim) in dims.iter().enumerate() {
        let comma = if position == 0 { "" } else { "," };
        write!(f, "{comma}{dim}")?;
    }
    f.write_str("]")
}
