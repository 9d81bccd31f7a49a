//! Everything that holds a module: HLO as protos or text, StableHLO as text or bytecode, `jax.export` files.
//!
//! What a file is, is read off its first bytes, never off its name. HLO is read as it is; everything else becomes HLO by
//! the front end of the CPU plugin, in a child process ([`Convert`]), whatever the module is for.

mod convert;
mod format;
pub mod jax_export;

use std::collections::BTreeMap;

use hlo::Module;
use thiserror::Error;

pub use convert::Convert;
pub use format::Format;
use jax_export::{ExportError, Exported};

use crate::isolate::{IsolateError, Worker};
use crate::plugin::{self, FindError};

/// The plugin that converts.
const CONVERTER: &str = "cpu";

/// What JAX calls the argument that says which platform a module for several runs on.
const PLATFORM_INDEX: &[u8] = b"_platform_index";

/// How to read modules.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    platform: Option<String>,
    preferred: Option<String>,
    worker: Option<Worker>,
}

/// A module and what its file said besides.
#[derive(Debug, Clone)]
pub struct Input {
    /// The module.
    pub module: Module,
    /// Where it comes from.
    pub origin: Origin,
}

/// What is known about a module that is not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The format it was read from.
    pub format: Format,
    /// Tree paths of its outputs; empty where nobody knows.
    pub output_names: Vec<String>,
    /// Of outputs the input whose next value they are, by number; empty where nobody knows.
    pub successors: BTreeMap<usize, usize>,
    /// The platforms that the file says it is for.
    pub platforms: Vec<String>,
    /// The platform whose code was chosen, where there was a choice.
    pub chosen: Option<String>,
}

impl Origin {
    /// For a person to read; nothing for plain HLO.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let choice = match (&self.chosen, self.platforms.as_slice()) {
            (Some(chosen), platforms) => format!("; of {} the code for {chosen} is taken", platforms.join(", ")),
            (None, []) => String::new(),
            (None, platforms) => format!(" for {}", platforms.join(", ")),
        };
        (!matches!(self.format, Format::Hlo | Format::HloText))
            .then(|| format!("converted from {}{choice}", self.format))
    }
}

/// Why a file gives no module.
#[derive(Debug, Error)]
pub enum InputError {
    /// No HLO.
    #[error(transparent)]
    Import(#[from] hlo::ImportError),
    /// No HLO text.
    #[error(transparent)]
    Text(#[from] hlo::text::ParseError),
    /// HLO text in another encoding.
    #[error("it is HLO text, but not UTF-8 from byte {valid} on; write it as UTF-8")]
    Encoding {
        /// How many bytes are UTF-8.
        valid: usize,
    },
    /// A `jax.export` file that is none, or none for us.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The plugin that converts is missing.
    #[error("{format} is converted to HLO by the CPU plugin: {source}")]
    Plugin {
        /// What was to be converted.
        format: Format,
        /// Where it was looked for.
        source: FindError,
    },
    /// Nothing came of the conversion.
    #[error("the conversion of {format} to HLO failed: {source}")]
    Convert {
        /// What was to be converted.
        format: Format,
        /// What happened to it.
        source: IsolateError,
    },
    /// There is a choice to be made.
    #[error("it was exported for {}; say which with --platform", platforms.join(", "))]
    Choose {
        /// The platforms.
        platforms: Vec<String>,
    },
    /// The choice is none.
    #[error("it was exported for {}, not for {asked}", platforms.join(", "))]
    NotExportedFor {
        /// The platform asked for.
        asked: String,
        /// Those there are.
        platforms: Vec<String>,
    },
    /// There is no choice to be made.
    #[error("--platform {asked} has nothing to choose from: {format} does not say which platforms it is for")]
    NoPlatforms {
        /// The platform asked for.
        asked: String,
        /// The format.
        format: Format,
    },
    /// The module of a `jax.export` file without the file.
    #[error(
        "it is the module of an export for several platforms, but which ones is not in it; give the file that \
         `exported.serialize()` makes"
    )]
    PlatformsUnknown,
    /// The module of a `jax.export` file has another signature than the file says.
    #[error("the jax.export file does not fit its module: {what}")]
    Signature {
        /// What differs.
        what: String,
    },
    /// The code of one platform cannot be taken out.
    #[error("the code for {platform} cannot be taken out of the module: {source}")]
    Specialize {
        /// The platform.
        platform: String,
        /// Why.
        source: hlo::edit::EditError,
    },
}

impl Reader {
    /// Takes the code for this platform from an export for several; others are refused.
    #[must_use]
    pub fn platform(mut self, platform: Option<impl Into<String>>) -> Self {
        self.platform = platform.map(Into::into);
        self
    }

    /// Takes the code for this platform where there is a choice and no [`Reader::platform`] was asked for.
    #[must_use]
    pub fn prefer(mut self, platform: impl Into<String>) -> Self {
        self.preferred = Some(platform.into());
        self
    }

    /// A reader for what belongs to a module: there need not be a choice of platforms.
    #[must_use]
    pub fn for_companions(&self) -> Self {
        Self { platform: None, preferred: self.platform.clone().or_else(|| self.preferred.clone()), ..self.clone() }
    }

    /// Converts in such a child process; by default it is one of this program.
    #[must_use]
    pub fn worker(mut self, worker: Worker) -> Self {
        self.worker = Some(worker);
        self
    }

    /// Reads a module from the contents of a file.
    ///
    /// # Errors
    ///
    /// Where they hold none; see [`InputError`].
    pub fn read_module(&self, bytes: &[u8]) -> Result<Input, InputError> {
        let format = Format::of(bytes);
        match format {
            Format::Hlo => {
                self.no_platforms(format)?;
                Ok(Input { module: Module::import(bytes)?, origin: Origin::default() })
            }
            Format::HloText => {
                self.no_platforms(format)?;
                let text = std::str::from_utf8(bytes).map_err(|e| InputError::Encoding { valid: e.valid_up_to() })?;
                Ok(Input { module: hlo::text::parse(text)?, origin: Origin { format, ..Origin::default() } })
            }
            Format::StableHloText | Format::StableHloBytecode => self.read_stablehlo(bytes, format),
            Format::JaxExport => self.read_export(bytes),
        }
    }

    fn read_stablehlo(&self, bytes: &[u8], format: Format) -> Result<Input, InputError> {
        self.no_platforms(format)?;
        if bytes.windows(PLATFORM_INDEX.len()).any(|w| w == PLATFORM_INDEX) {
            return Err(InputError::PlatformsUnknown);
        }
        Ok(Input { module: self.convert(bytes, format)?, origin: Origin { format, ..Origin::default() } })
    }

    fn read_export(&self, bytes: &[u8]) -> Result<Input, InputError> {
        let format = Format::JaxExport;
        let exported = Exported::read(bytes)?;
        let choice = self.choose(&exported.platforms)?;
        let mut module = self.convert(&exported.module, format)?;
        let takes_index = module.entry_computation().parameters().len() == exported.kept.len() + 1;
        let mut chosen = None;
        if let Some((index, platform)) = choice {
            if takes_index && exported.platforms.len() > 1 {
                let shardy = |callee: &str| callee.contains("xla.sdy");
                module
                    .specialize_parameter(0, index, shardy)
                    .map_err(|source| InputError::Specialize { platform: platform.to_owned(), source })?;
            }
            chosen = (exported.platforms.len() > 1).then(|| platform.to_owned());
        }
        fit(&mut module, &exported)?;
        let output_names = exported.outputs.into_iter().map(|o| o.path).collect();
        let platforms = exported.platforms;
        Ok(Input { module, origin: Origin { format, output_names, platforms, chosen, ..Origin::default() } })
    }

    fn no_platforms(&self, format: Format) -> Result<(), InputError> {
        let asked = self.platform.clone();
        asked.map_or(Ok(()), |asked| Err(InputError::NoPlatforms { asked, format }))
    }

    /// The platform whose code is taken, and its position.
    fn choose<'a>(&self, platforms: &'a [String]) -> Result<Option<(i32, &'a str)>, InputError> {
        let find = |name: &str| (0..).zip(platforms).find(|(_, p)| *p == name).map(|(i, p)| (i, p.as_str()));
        let listed = || platforms.to_vec();
        match (&self.platform, platforms) {
            (Some(asked), _) => {
                let refused = || InputError::NotExportedFor { asked: asked.clone(), platforms: listed() };
                find(asked).map(Some).ok_or_else(refused)
            }
            (None, []) => Ok(None),
            (None, [only]) => Ok(Some((0, only))),
            (None, _) => {
                let preferred = self.preferred.as_deref().and_then(find);
                preferred.map(Some).ok_or_else(|| InputError::Choose { platforms: listed() })
            }
        }
    }

    fn convert(&self, program: &[u8], format: Format) -> Result<Module, InputError> {
        let plugin = plugin::find(CONVERTER).map_err(|source| InputError::Plugin { format, source })?;
        let failed = |source| InputError::Convert { format, source };
        let worker = self.worker.clone().map_or_else(Worker::this_program, Ok).map_err(failed)?;
        let job = worker.job().map_err(failed)?;
        job.write(Convert::PROGRAM, program).map_err(failed)?;
        job.run(&Convert { plugin }).map_err(failed)?;
        Ok(Module::import(&job.read(Convert::MODULE).map_err(failed)?)?)
    }
}

/// Compares a module with what its file says of it, and gives parameters without a name their tree path.
fn fit(module: &mut Module, exported: &Exported) -> Result<(), InputError> {
    let refuse = |what: String| Err(InputError::Signature { what });
    let parameters = module.entry_computation().parameters();
    if parameters.len() != exported.kept.len() {
        return refuse(format!("it takes {} arrays, not {}", parameters.len(), exported.kept.len()));
    }
    let outputs = crate::bundle::check::output_shapes(module);
    if outputs.len() != exported.outputs.len() {
        return refuse(format!("it returns {} arrays, not {}", outputs.len(), exported.outputs.len()));
    }
    for (leaf, shape) in exported.outputs.iter().zip(&outputs) {
        if !leaf.shape.same_array(shape) {
            return refuse(format!("{} is {shape}, not {}", leaf.path, leaf.shape));
        }
    }
    let entry = module.entry_computation_mut();
    for (leaf, id) in exported.kept_inputs().zip(parameters) {
        let Some(parameter) = entry.get_mut(id) else { continue };
        if !leaf.shape.same_array(&parameter.shape) {
            return refuse(format!("{} is {}, not {}", leaf.path, parameter.shape, leaf.shape));
        }
        if parameter.op_name().is_empty() {
            parameter.attributes_mut().metadata.get_or_insert_default().op_name.clone_from(&leaf.path);
        }
    }
    Ok(())
}
