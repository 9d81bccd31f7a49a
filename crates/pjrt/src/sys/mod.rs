//! The unsafe layer. Everything above it is safe Rust: the crate root denies `unsafe_code` and allows it here.
//!
//! What makes the functions of this layer sound, so that they need no `unsafe` in their signatures:
//!
//! * the function table is valid for the life of the process, for a library is never unloaded;
//! * an [`Owned`] object is a non-null pointer that the plugin handed to us, and is destroyed once, on drop;
//! * an owned object keeps its client alive, and a [`DeviceRef`] too;
//! * argument structs are built here and never leave this layer;
//! * what a plugin returns is checked for null and for absurd lengths before it is read.

pub(crate) mod abi;
mod api;
mod buffer;
mod client;
mod event;
mod executable;
mod library;
mod object;
mod program;
mod value;

#[cfg(test)]
mod abi_tests;
#[cfg(test)]
pub(crate) mod fake;

pub(crate) use api::Api;
pub(crate) use buffer::{HostCopy, buffer_from_host};
pub(crate) use client::{DeviceRef, addressable_devices, devices};
pub(crate) use executable::{Loaded, compile, deserialize};
pub(crate) use library::{open, preload};
pub(crate) use object::{ClientHandle, Owned};
pub(crate) use program::{Compiled, Topology};
