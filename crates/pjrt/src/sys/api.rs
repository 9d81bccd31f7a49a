//! The choke point: the only place that reads a slot, calls it, and turns a `PJRT_Error` into [`Error`].

use std::ffi::c_char;
use std::ptr::NonNull;

use super::abi::{self, Args, Function, TableHead};
use crate::ApiVersion;
use crate::error::{Code, Error, LoadFailure, Result};

/// The major version of the PJRT C API spoken here.
pub(crate) const MAJOR: i32 = 0;

/// A plugin's function table.
///
/// It stays a pointer: a copy would lose the slots that lie beyond what this crate knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Api {
    table: NonNull<TableHead>,
    version: ApiVersion,
}

// SAFETY: the table is immutable once `GetPjrtApi` has returned it, and PJRT functions may be called from any thread.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

/// Every function but the two that release or describe an error.
type Fallible = unsafe extern "C" fn(*mut std::ffi::c_void) -> *mut abi::Error;
/// `PJRT_Error_Destroy` and `PJRT_Error_Message`.
type Infallible = unsafe extern "C" fn(*mut std::ffi::c_void);

impl Api {
    /// Checks the head of a table: null, too short, or of another major version is refused.
    ///
    /// # Safety
    ///
    /// `table` is null or what `GetPjrtApi` returned: it is valid for the life of the process, starts with its size
    /// in bytes, and holds that many bytes.
    pub(crate) unsafe fn new(table: *const TableHead) -> std::result::Result<Self, LoadFailure> {
        let table = NonNull::new(table.cast_mut()).ok_or(LoadFailure::NullTable)?;
        // SAFETY: a table starts with its size.
        let size = unsafe { table.cast::<usize>().read() };
        if size < std::mem::size_of::<TableHead>() {
            return Err(LoadFailure::TruncatedTable { size });
        }
        // SAFETY: the table is at least as long as its head.
        let fields = unsafe { &table.as_ref().version };
        let version = ApiVersion { major: fields.major, minor: fields.minor };
        if version.major != MAJOR {
            return Err(LoadFailure::MajorVersion { found: version, needed: MAJOR });
        }
        Ok(Self { table, version })
    }

    pub(crate) fn version(self) -> ApiVersion {
        self.version
    }

    /// The address of the table, by which two loads of one plugin are recognised.
    pub(crate) fn address(self) -> usize {
        self.table.as_ptr().addr()
    }

    /// Calls `F` and converts its error, which is destroyed exactly once.
    ///
    /// # Safety
    ///
    /// The pointers in `args` are valid for what `F` does with them.
    pub(crate) unsafe fn call<F: Function>(self, args: &mut F::Args) -> Result<()> {
        let slot = self.slot::<F>().ok_or_else(|| self.absent::<F>())?;
        // SAFETY: the slot of a fallible function holds a pointer of this type, and `args` is the struct it takes.
        let error = unsafe {
            let function = std::mem::transmute::<NonNull<()>, Fallible>(slot);
            function(std::ptr::from_mut(args).cast())
        };
        match NonNull::new(error) {
            None => Ok(()),
            // SAFETY: the plugin has just returned this error to us.
            Some(error) => Err(unsafe { self.take_error(error, F::NAME) }),
        }
    }

    /// An error unless the plugin has `F`.
    pub(crate) fn require<F: Function>(self) -> Result<()> {
        self.slot::<F>().map(|_| ()).ok_or_else(|| self.absent::<F>())
    }

    /// An error for a plugin that reported success and did not keep the contract of `F`.
    pub(crate) fn broken<F: Function>(self, what: &str) -> Error {
        Error::Call {
            code: Code::Internal,
            function: F::NAME,
            message: format!("the plugin reported success but {what}"),
            version: self.version,
        }
    }

    /// `pointer`, or an error that says which output of `F` was left null.
    pub(crate) fn non_null<F: Function, T>(self, pointer: *mut T, what: &str) -> Result<NonNull<T>> {
        NonNull::new(pointer).ok_or_else(|| self.broken::<F>(&format!("returned a null {what}")))
    }

    /// `count` items at `pointer`, which may be null only where there are none.
    ///
    /// # Safety
    ///
    /// Unless null, `pointer` leads to `count` initialised items that live as long as `'a`.
    pub(crate) unsafe fn slice<'a, F: Function, T>(
        self,
        pointer: *const T,
        count: usize,
        what: &str,
    ) -> Result<&'a [T]> {
        if count == 0 {
            return Ok(&[]);
        }
        if pointer.is_null() {
            return Err(self.broken::<F>(&format!("returned null for {count} items of {what}")));
        }
        // Null is not the only absurd answer; a slice must stay below this size.
        if !pointer.is_aligned() || count > isize::MAX as usize / std::mem::size_of::<T>().max(1) {
            return Err(self.broken::<F>(&format!("returned an impossible {what} ({count} items at {pointer:p})")));
        }
        // SAFETY: by the contract of this function, and the size was just checked.
        Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
    }

    /// The string of `size` bytes at `pointer`, with what is not UTF-8 replaced.
    ///
    /// # Safety
    ///
    /// Unless null, `pointer` leads to `size` initialised bytes.
    pub(crate) unsafe fn string<F: Function>(self, pointer: *const c_char, size: usize, what: &str) -> Result<String> {
        // SAFETY: by the contract of this function.
        let bytes = unsafe { self.slice::<F, u8>(pointer.cast(), size, what) }?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// The pointer in the slot of `F`, or `None` where the table ends before it or leaves it null.
    fn slot<F: Function>(self) -> Option<NonNull<()>> {
        let offset = std::mem::size_of::<TableHead>() + F::SLOT * std::mem::size_of::<*const ()>();
        // SAFETY: `new` checked that the table holds its head; the slot is read only if the table's own size covers it.
        unsafe {
            let size = self.table.cast::<usize>().read();
            if size < offset + std::mem::size_of::<*const ()>() {
                return None;
            }
            NonNull::new(self.table.byte_add(offset).cast::<*mut ()>().read())
        }
    }

    fn absent<F: Function>(self) -> Error {
        Error::Call {
            code: Code::Unimplemented,
            function: F::NAME,
            message: "this plugin has no such function; a newer plugin may have it".to_owned(),
            version: self.version,
        }
    }

    /// Reads code and message of `error` and destroys it.
    ///
    /// # Safety
    ///
    /// `error` was returned by this plugin to us and has not been destroyed.
    unsafe fn take_error(self, error: NonNull<abi::Error>, function: &'static str) -> Error {
        // SAFETY: `error` is live until the last line.
        let (code, message) = unsafe { (self.error_code(error), self.error_message(error)) };
        // SAFETY: `error` is ours, and nothing refers to it any more.
        unsafe { self.destroy_error(error) };
        Error::Call { code, function, message, version: self.version }
    }

    /// # Safety
    ///
    /// `error` is live.
    unsafe fn error_code(self, error: NonNull<abi::Error>) -> Code {
        let Some(slot) = self.slot::<abi::Error_GetCode>() else { return Code::Unknown };
        let mut args = abi::ErrorGetCodeArgs::new();
        args.error = error.as_ptr();
        // SAFETY: the slot holds a fallible function, and `error` is live.
        let second = unsafe {
            let function = std::mem::transmute::<NonNull<()>, Fallible>(slot);
            function((&raw mut args).cast())
        };
        match NonNull::new(second) {
            None => Code::from_raw(args.code),
            Some(second) => {
                // SAFETY: the error about the error is ours as well.
                unsafe { self.destroy_error(second) };
                Code::Unknown
            }
        }
    }

    /// # Safety
    ///
    /// `error` is live.
    unsafe fn error_message(self, error: NonNull<abi::Error>) -> String {
        let none = || "the plugin gives no message".to_owned();
        let Some(slot) = self.slot::<abi::Error_Message>() else { return none() };
        let mut args = abi::ErrorMessageArgs::new();
        args.error = error.as_ptr();
        // SAFETY: `PJRT_Error_Message` returns nothing, and `error` is live.
        unsafe {
            let function = std::mem::transmute::<NonNull<()>, Infallible>(slot);
            function((&raw mut args).cast());
        }
        // SAFETY: the message lives as long as its error, and is copied here.
        match unsafe { self.string::<abi::Error_Message>(args.message, args.message_size, "message") } {
            Ok(message) if !message.is_empty() => message,
            Ok(_) | Err(_) => none(),
        }
    }

    /// # Safety
    ///
    /// `error` is live, ours, and not used again.
    unsafe fn destroy_error(self, error: NonNull<abi::Error>) {
        let Some(slot) = self.slot::<abi::Error_Destroy>() else {
            tracing::warn!(version = %self.version, "the plugin has no PJRT_Error_Destroy; an error object stays allocated");
            return;
        };
        let mut args = abi::ObjectArgs::<abi::Error>::new();
        args.object = error.as_ptr();
        // SAFETY: `PJRT_Error_Destroy` returns nothing, and `error` is live and ours.
        unsafe {
            let function = std::mem::transmute::<NonNull<()>, Infallible>(slot);
            function((&raw mut args).cast());
        }
    }
}
