//! The one error of this crate: a failed plugin call, a plugin that does not load, or an argument refused
//! before the plugin saw it.

use std::fmt;
use std::path::PathBuf;

use crate::ApiVersion;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, where, and in which words the plugin said so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A function of the plugin failed, is absent, or broke the contract of the C API.
    #[error("{function} failed with {code}: {message} (plugin speaks PJRT API {version})")]
    Call {
        /// The plugin's code; [`Code::Unimplemented`] for an absent function,
        /// [`Code::Internal`] for a broken contract.
        code: Code,
        /// The C function, as in `PJRT_Client_Compile`.
        function: &'static str,
        /// The plugin's message. Bytes that are not UTF-8 are replaced.
        message: String,
        /// The version of the PJRT C API that the plugin declares.
        version: ApiVersion,
    },

    /// The file cannot be used as a PJRT plugin.
    #[error("cannot load the PJRT plugin {}: {reason}", path.display())]
    Load {
        /// The file, as it was given.
        path: PathBuf,
        /// Why not, and what to do.
        reason: LoadFailure,
    },

    /// An argument was refused by this crate; the plugin was not called.
    #[error("{0}")]
    Argument(String),
}

impl Error {
    /// The code: the plugin's own for a failed call, the nearest one for the other kinds.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Call { code, .. } => *code,
            Self::Load { reason: LoadFailure::Missing, .. } => Code::NotFound,
            Self::Load { .. } => Code::FailedPrecondition,
            Self::Argument(_) => Code::InvalidArgument,
        }
    }

    /// The C function that failed, where the plugin was called at all.
    #[must_use]
    pub fn function(&self) -> Option<&'static str> {
        match self {
            Self::Call { function, .. } => Some(function),
            Self::Load { .. } | Self::Argument(_) => None,
        }
    }
}

/// Why a file is no usable PJRT plugin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadFailure {
    /// There is no such file.
    #[error("there is no such file; check the path, or fetch the plugin first")]
    Missing,

    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(String),

    /// The file is something other than a shared library.
    #[error("this is not a shared library but {what}; {hint}")]
    NotALibrary {
        /// What it looks like.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },

    /// The library was built for another processor.
    #[error("it was built for {found}, and this machine is {needed}; fetch the plugin built for {needed}")]
    WrongArchitecture {
        /// The processor in the file's header.
        found: String,
        /// The processor that this program was built for.
        needed: String,
    },

    /// The dynamic linker refused the library.
    #[error("the dynamic linker refuses it: {0}")]
    Linker(String),

    /// The library exports no `GetPjrtApi`.
    #[error("it is a shared library but no PJRT plugin: it exports no `GetPjrtApi`")]
    NoEntryPoint,

    /// `GetPjrtApi` returned null.
    #[error("its `GetPjrtApi` returned null")]
    NullTable,

    /// The function table is too short to hold a version.
    #[error("its function table has {size} bytes, fewer than its version field needs")]
    TruncatedTable {
        /// The size that the table declares, in bytes.
        size: usize,
    },

    /// The plugin speaks another major version of the API.
    #[error(
        "it speaks PJRT API {found}, and this program speaks major version {needed}; use a plugin of that major version"
    )]
    MajorVersion {
        /// The plugin's version.
        found: ApiVersion,
        /// The major version understood here.
        needed: i32,
    },
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// The canonical status codes, as PJRT uses them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* $name = $value,)* }

        impl Code {
            /// The code with this number; a number unknown here, and zero (which a failure cannot have), is
            /// [`Code::Unknown`].
            pub(crate) fn from_raw(raw: i32) -> Self {
                match raw { $($value => Self::$name,)* _ => Self::Unknown }
            }

            fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// The operation was cancelled.
    Cancelled = 1, "CANCELLED";
    /// An error without a better code.
    Unknown = 2, "UNKNOWN";
    /// An argument is wrong whatever the state.
    InvalidArgument = 3, "INVALID_ARGUMENT";
    /// The time was up.
    DeadlineExceeded = 4, "DEADLINE_EXCEEDED";
    /// Something named does not exist.
    NotFound = 5, "NOT_FOUND";
    /// Something to be created exists.
    AlreadyExists = 6, "ALREADY_EXISTS";
    /// The caller may not do this.
    PermissionDenied = 7, "PERMISSION_DENIED";
    /// Memory or another resource is used up.
    ResourceExhausted = 8, "RESOURCE_EXHAUSTED";
    /// The state does not allow the operation.
    FailedPrecondition = 9, "FAILED_PRECONDITION";
    /// The operation was aborted.
    Aborted = 10, "ABORTED";
    /// A value lies beyond the valid range.
    OutOfRange = 11, "OUT_OF_RANGE";
    /// The plugin does not offer this.
    Unimplemented = 12, "UNIMPLEMENTED";
    /// The plugin broke one of its own invariants.
    Internal = 13, "INTERNAL";
    /// The service is not available now.
    Unavailable = 14, "UNAVAILABLE";
    /// Data was lost beyond recovery.
    DataLoss = 15, "DATA_LOSS";
    /// The caller is not authenticated.
    Unauthenticated = 16, "UNAUTHENTICATED";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
