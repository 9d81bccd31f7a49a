//! Objects of the plugin that we own: destroyed once, on drop, and keeping their client alive until then.

use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{self, Args, Function, ObjectArgs};
use super::api::Api;

/// A client shared by everything that was made with it.
pub(crate) type ClientHandle = Arc<Owned<abi::Client>>;

/// A kind of object that we must destroy.
pub(crate) trait Object: Sized {
    /// The function that destroys it.
    type Destroy: Function<Args = ObjectArgs<Self>>;
}

macro_rules! objects {
    ($($object:ident by $destroy:ident;)*) => {$(
        impl Object for abi::$object {
            type Destroy = abi::$destroy;
        }
    )*};
}

objects! {
    Client by Client_Destroy;
    Event by Event_Destroy;
    Buffer by Buffer_Destroy;
    Executable by Executable_Destroy;
    LoadedExecutable by LoadedExecutable_Destroy;
    TopologyDescription by TopologyDescription_Destroy;
}

/// A live object of the plugin.
pub(crate) struct Owned<T: Object> {
    pointer: NonNull<T>,
    api: Api,
    /// `None` for what needs no client: the client itself, a topology, a program compiled for one. Dropped after the object has been destroyed.
    client: Option<ClientHandle>,
}

// SAFETY: PJRT documents its clients, buffers, executables and events as thread-safe, and all of their functions may be
// called from any thread.
unsafe impl<T: Object> Send for Owned<T> {}
// SAFETY: as above.
unsafe impl<T: Object> Sync for Owned<T> {}

impl<T: Object> Owned<T> {
    /// Takes ownership of `pointer`.
    ///
    /// # Safety
    ///
    /// The plugin behind `api` has just handed this object to us to destroy, and it belongs to `client`.
    pub(crate) unsafe fn new(api: Api, pointer: NonNull<T>, client: Option<ClientHandle>) -> Self {
        Self { pointer, api, client }
    }

    pub(crate) fn api(&self) -> Api {
        self.api
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.pointer.as_ptr()
    }

    /// Whether this object was made with that client.
    pub(crate) fn belongs_to(&self, client: &ClientHandle) -> bool {
        self.client.as_ref().is_some_and(|own| Arc::ptr_eq(own, client))
    }

    /// The client that this object was made with, for its siblings.
    pub(crate) fn client(&self) -> Option<ClientHandle> {
        self.client.clone()
    }
}

impl<T: Object> Drop for Owned<T> {
    fn drop(&mut self) {
        let mut args = ObjectArgs::<T>::new();
        args.object = self.pointer.as_ptr();
        // SAFETY: the object is live and ours, and this is the last use of it.
        if let Err(error) = unsafe { self.api.call::<T::Destroy>(&mut args) } {
            tracing::warn!(%error, "a PJRT object could not be destroyed; the plugin keeps its memory");
        }
    }
}
