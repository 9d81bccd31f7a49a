//! Events: completion of asynchronous work.

use std::ptr::NonNull;

use super::abi::{self, Args};
use super::api::Api;
use super::object::{ClientHandle, Owned};
use crate::error::Result;

impl Owned<abi::Event> {
    /// Blocks until the work is done and returns its error.
    pub(crate) fn wait(&self) -> Result<()> {
        let mut args = abi::ObjectArgs::new();
        args.object = self.as_ptr();
        // SAFETY: the event is live.
        unsafe { self.api().call::<abi::Event_Await>(&mut args) }
    }

    /// Whether the work is done, with or without success.
    pub(crate) fn is_ready(&self) -> Result<bool> {
        let mut args = abi::EventIsReadyArgs::new();
        args.event = self.as_ptr();
        // SAFETY: the event is live.
        unsafe { self.api().call::<abi::Event_IsReady>(&mut args) }?;
        Ok(args.is_ready != 0)
    }
}

/// Owns an event that the plugin may or may not have returned.
///
/// # Safety
///
/// Unless null, `event` has just been handed to us by the plugin, for work of `client`.
pub(super) unsafe fn adopt(
    api: Api,
    event: *mut abi::Event,
    client: Option<ClientHandle>,
) -> Option<Owned<abi::Event>> {
    // SAFETY: by the contract of this function.
    NonNull::new(event).map(|event| unsafe { Owned::new(api, event, client) })
}
