//! Completion of asynchronous work.

use crate::error::Result;
use crate::sys::{Owned, abi};

/// Something that will have happened: an execution has ended, a buffer holds its value.
///
/// An event may be dropped at any time; the work goes on.
pub struct Event {
    raw: Owned<abi::Event>,
}

impl Event {
    pub(crate) fn new(raw: Owned<abi::Event>) -> Self {
        Self { raw }
    }

    /// Blocks until the work is done.
    ///
    /// # Errors
    ///
    /// The error with which the work ended. Asking again gives it again.
    pub fn wait(&self) -> Result<()> {
        self.raw.wait()
    }

    /// Whether the work is done, with or without success. Does not block.
    ///
    /// # Errors
    ///
    /// The plugin's, where it cannot tell.
    pub fn is_ready(&self) -> Result<bool> {
        self.raw.is_ready()
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Event").finish_non_exhaustive()
    }
}
