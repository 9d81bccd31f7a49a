//! Named values in both directions: client options in, plugin attributes and cost properties out.

use super::abi::{self, Args, Function, named_value_kind as kind};
use super::api::Api;
use crate::error::Result;
use crate::value::NamedValue;

/// The C form of `options`. It borrows their names and values, so it must not outlive them.
pub(super) fn to_raw(options: &[(&str, NamedValue)]) -> Vec<abi::NamedValue> {
    options.iter().map(|(name, value)| one(name, value)).collect()
}

fn one(name: &str, value: &NamedValue) -> abi::NamedValue {
    let mut raw = abi::NamedValue::new();
    raw.name = name.as_ptr().cast();
    raw.name_size = name.len();
    raw.value_size = 1;
    (raw.kind, raw.data) = match value {
        NamedValue::String(text) => {
            raw.value_size = text.len();
            (kind::STRING, abi::NamedValueData { string: text.as_ptr().cast() })
        }
        NamedValue::Int64(int64) => (kind::INT64, abi::NamedValueData { int64: *int64 }),
        NamedValue::Int64List(list) => {
            raw.value_size = list.len();
            (kind::INT64_LIST, abi::NamedValueData { int64_list: list.as_ptr() })
        }
        NamedValue::Float(float) => (kind::FLOAT, abi::NamedValueData { float: *float }),
        NamedValue::Bool(boolean) => (kind::BOOL, abi::NamedValueData { boolean: u8::from(*boolean) }),
    };
    raw
}

/// Copies the `count` values that `F` returned. A kind unknown here is left out, with a warning.
///
/// # Safety
///
/// Unless null, `values` leads to `count` valid named values.
pub(super) unsafe fn from_raw<F: Function>(
    api: Api,
    values: *const abi::NamedValue,
    count: usize,
) -> Result<Vec<(String, NamedValue)>> {
    // SAFETY: by the contract of this function.
    let raw = unsafe { api.slice::<F, _>(values, count, "named values") }?;
    let mut named = Vec::with_capacity(raw.len());
    for value in raw {
        // SAFETY: the value is valid, so its name and the member told by its kind are.
        let (name, read) = unsafe {
            let name = api.string::<F>(value.name, value.name_size, "name of a value")?;
            let read = match value.kind {
                kind::STRING => {
                    NamedValue::String(api.string::<F>(value.data.string, value.value_size, "string value")?)
                }
                kind::INT64 => NamedValue::Int64(value.data.int64),
                kind::INT64_LIST => NamedValue::Int64List(
                    api.slice::<F, _>(value.data.int64_list, value.value_size, "list value")?.to_vec(),
                ),
                kind::FLOAT => NamedValue::Float(value.data.float),
                kind::BOOL => NamedValue::Bool(value.data.boolean != 0),
                other => {
                    tracing::warn!(name, kind = other, "the plugin returned a named value of an unknown kind");
                    continue;
                }
            };
            (name, read)
        };
        named.push((name, read));
    }
    Ok(named)
}
