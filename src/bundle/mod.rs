//! Model bundles: a train step with everything needed to run it, in one folder.
//!
//! A [`Bundle`] that was opened is consistent: its manifest describes its
//! modules, see [`check`]. Nothing outside the folder is ever read.

pub mod check;
mod derive;
mod dtype;
mod fuse;
pub mod manifest;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hlo::Module;
use thiserror::Error;

pub use check::CheckError;
pub use derive::derive;
pub use dtype::Dtype;
pub use fuse::FuseBundleError;
pub use manifest::{Manifest, ManifestError};

use crate::files::{StagedFolder, WriteError};
use crate::input::{Input, InputError, Origin, Reader};

/// File name of the manifest.
pub const MANIFEST: &str = "manifest.json";

/// A bundle whose step has been read.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Its folder.
    pub folder: PathBuf,
    /// What the manifest says.
    pub manifest: Manifest,
    /// The step.
    pub module: Module,
    /// What the step was read from.
    pub origin: Origin,
    /// How modules are read.
    pub reader: Reader,
}

/// Why a bundle cannot be read.
#[derive(Debug, Error)]
pub enum BundleError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A folder without a manifest.
    #[error(
        "{} is no model bundle: it has no {MANIFEST}; give a bundle's folder (models/README.md says how to export one) or \
         a file with a module", folder.display()
    )]
    NoManifest {
        /// The folder.
        folder: PathBuf,
    },
    /// The manifest is not what it should be.
    #[error("{}: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ManifestError,
    },
    /// A module is damaged.
    #[error("{}: {source}", path.display())]
    Module {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<InputError>,
    },
    /// Manifest and module contradict each other.
    #[error("{} does not fit its modules: {source}", path.display())]
    Check {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        source: CheckError,
    },
}

impl Bundle {
    /// Reads manifest and step from a bundle's folder, and checks that they agree.
    ///
    /// # Errors
    ///
    /// See [`BundleError`].
    pub fn open(folder: &Path) -> Result<Self, BundleError> {
        Self::open_with(folder, &Reader::default())
    }

    /// The same, with a choice of how modules are read.
    ///
    /// # Errors
    ///
    /// See [`BundleError`].
    pub fn open_with(folder: &Path, reader: &Reader) -> Result<Self, BundleError> {
        let path = folder.join(MANIFEST);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound && folder.is_dir() => {
                return Err(BundleError::NoManifest { folder: folder.to_owned() });
            }
            Err(source) => return Err(BundleError::Read { path, source }),
        };
        let manifest = Manifest::from_json(&String::from_utf8_lossy(&bytes))
            .map_err(|source| BundleError::Manifest { path: path.clone(), source })?;
        let Input { module, origin } = read_module(&folder.join(&manifest.module), reader)?;
        check::check(&manifest, &module).map_err(|source| BundleError::Check { path, source })?;
        Ok(Self { folder: folder.to_owned(), manifest, module, origin, reader: reader.for_companions() })
    }

    /// Reads the computation of the initial state, where the bundle has one.
    ///
    /// # Errors
    ///
    /// Where it cannot be read or does not fit the manifest.
    pub fn init_module(&self) -> Result<Option<Module>, BundleError> {
        let Some(init) = &self.manifest.init else { return Ok(None) };
        let module = read_module(&self.folder.join(&init.file), &self.reader)?.module;
        self.checked(check::check_init_module(&self.manifest, init, &module))?;
        Ok(Some(module))
    }

    /// Reads the computation of the held-out loss, where the bundle has one.
    ///
    /// # Errors
    ///
    /// Where it cannot be read or does not fit the manifest.
    pub fn eval_module(&self) -> Result<Option<Module>, BundleError> {
        let Some(eval) = &self.manifest.eval else { return Ok(None) };
        let module = read_module(&self.folder.join(&eval.file), &self.reader)?.module;
        self.checked(check::check_eval_module(&self.manifest, eval, &module))?;
        Ok(Some(module))
    }

    /// Writes the bundle to `target`: manifest, step, and the other modules as they are in [`Bundle::folder`].
    ///
    /// The step is written as a proto, whatever it was read from.
    ///
    /// The folder appears when it is complete. An existing bundle of that name is replaced.
    ///
    /// # Errors
    ///
    /// Where something else is there, or a file cannot be read or written.
    pub fn save(&self, target: &Path) -> Result<(), SaveError> {
        let staged = StagedFolder::new(target, |folder| folder.join(MANIFEST).is_file())?;
        staged.write(MANIFEST, self.manifest.to_json()?.as_bytes())?;
        staged.write(&self.manifest.module, &self.module.export())?;
        let init = self.manifest.init.as_ref().map(|i| &i.file);
        let eval = self.manifest.eval.as_ref().map(|e| &e.file);
        for file in init.into_iter().chain(eval) {
            staged.write(file, &read(&self.folder.join(file))?)?;
        }
        Ok(staged.commit()?)
    }

    fn checked(&self, result: Result<(), CheckError>) -> Result<(), BundleError> {
        result.map_err(|source| BundleError::Check { path: self.folder.join(MANIFEST), source })
    }
}

/// Why a bundle cannot be written.
#[derive(Debug, Error)]
pub enum SaveError {
    /// A file that goes along cannot be read.
    #[error(transparent)]
    Read(#[from] BundleError),
    /// The target cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The manifest cannot be JSON.
    #[error("the manifest cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads a module from a file. The content says in which format it is, not the name.
///
/// # Errors
///
/// Where there is no such file, or it holds no module.
pub fn read_module(path: &Path, reader: &Reader) -> Result<Input, BundleError> {
    let failed = |source| BundleError::Module { path: path.to_owned(), source: Box::new(source) };
    reader.read_module(&read(path)?).map_err(failed)
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    fs::read(path).map_err(|source| BundleError::Read { path: path.to_owned(), source })
}
