//! Named values: client options, plugin attributes, cost properties.

use std::fmt;

/// A value that goes with a name.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum NamedValue {
    /// Text.
    String(String),
    /// A 64-bit integer.
    Int64(i64),
    /// A list of 64-bit integers.
    Int64List(Vec<i64>),
    /// A 32-bit float.
    Float(f32),
    /// A truth value.
    Bool(bool),
}

impl From<&str> for NamedValue {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<String> for NamedValue {
    fn from(value: String) -> Self {
        Self::String(value)
    }
}

impl From<i64> for NamedValue {
    fn from(value: i64) -> Self {
        Self::Int64(value)
    }
}

impl From<Vec<i64>> for NamedValue {
    fn from(value: Vec<i64>) -> Self {
        Self::Int64List(value)
    }
}

impl From<f32> for NamedValue {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

impl From<bool> for NamedValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl fmt::Display for NamedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(value) => f.write_str(value),
            Self::Int64(value) => value.fmt(f),
            Self::Int64List(value) => write!(f, "{value:?}"),
            Self::Float(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
        }
    }
}
