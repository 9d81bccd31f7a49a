//! JSON documents, read with the place of what is wrong in them.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// What is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Flaw {
    /// It is of another version of its format.
    #[error("it has format_version {found}, and this program reads {expected}")]
    Version {
        /// The version found.
        found: u64,
        /// The version read.
        expected: u32,
    },
    /// It is not the JSON that is expected.
    #[error("{}: {message}", self.place())]
    Json {
        /// Path within the document, such as `inputs[3].dtype`; empty where all of it is meant.
        path: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
}

impl Flaw {
    /// Where it is: path, line and column. Empty where that is the whole document.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Version { .. } => String::new(),
            Self::Json { path, line, column, .. } if path.is_empty() => format!("line {line}, column {column}"),
            Self::Json { path, line, column, .. } => format!("{path} (line {line}, column {column})"),
        }
    }

    fn new(path: String, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let message = text.split(" at line ").next().unwrap_or(&text).to_owned();
        Self::Json { path, line: error.line(), column: error.column(), message }
    }
}

/// Reads a document that says its `format_version`. That is looked at first: another version may well have other keys.
///
/// # Errors
///
/// Where it is of another version, or not what `T` reads.
pub(crate) fn read<T: DeserializeOwned>(text: &[u8], expected: u32) -> Result<T, Flaw> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u64,
    }
    match serde_json::from_slice(text) {
        Ok(Version { format_version: found }) if found != u64::from(expected) => Err(Flaw::Version { found, expected }),
        _ => parse(text),
    }
}

/// Reads JSON without a version.
///
/// # Errors
///
/// Where it is not what `T` reads, or more follows.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Flaw> {
    let deserializer = &mut serde_json::Deserializer::from_slice(text);
    let document = serde_path_to_error::deserialize(&mut *deserializer).map_err(|error| {
        let path = error.path().to_string();
        Flaw::new(if path == "." { String::new() } else { path }, error.inner())
    })?;
    deserializer.end().map_err(|error| Flaw::Json {
        path: String::new(),
        line: error.line(),
        column: error.column(),
        message: "there is more after the end of the document".to_owned(),
    })?;
    Ok(document)
}
