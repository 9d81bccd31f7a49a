//! What the contents of a file are.

use std::fmt;

/// A format that holds a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Format {
    /// A serialized `HloModuleProto`; also whatever is none of the others.
    #[default]
    Hlo,
    /// HLO as text, as XLA prints it.
    HloText,
    /// StableHLO as text.
    StableHloText,
    /// StableHLO as MLIR bytecode, portable or not.
    StableHloBytecode,
    /// What `jax.export` serializes.
    JaxExport,
}

/// How HLO text begins.
const HLO_TEXT: &[u8] = b"HloModule";

/// How MLIR bytecode begins.
const BYTECODE: &[u8] = b"ML\xefR";

/// How a module in MLIR's text begins, comments and aliases left out.
const TEXT: &[&str] = &["module", "builtin.module", "\"builtin.module\"", "func.func", "\"func.func\""];

/// How much of a text is looked at; aliases of source locations may come first.
const LINES: usize = 1 << 16;

impl Format {
    /// Recognises a format by the first bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.trim_ascii_start().starts_with(HLO_TEXT) {
            return Self::HloText;
        }
        if bytes.starts_with(BYTECODE) {
            return Self::StableHloBytecode;
        }
        // A buffer begins with the offset of its root table, which lies near. A proto begins with field 1, a name,
        // which has no zero bytes.
        if let [a, b, 0, 0, ..] = *bytes
            && (a, b) != (0, 0)
        {
            return Self::JaxExport;
        }
        let head = String::from_utf8_lossy(bytes.get(..LINES.min(bytes.len())).unwrap_or(bytes));
        let mut lines = head.lines().map(str::trim_start);
        let first = lines.find(|l| !l.is_empty() && !l.starts_with("//") && !l.starts_with(['#', '!']));
        let word =
            |line: &str| TEXT.iter().any(|t| line.strip_prefix(t).is_some_and(|r| r.starts_with([' ', '(', '{'])));
        if first.is_some_and(word) { Self::StableHloText } else { Self::Hlo }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hlo => "a serialized HloModuleProto",
            Self::HloText => "HLO text",
            Self::StableHloText => "StableHLO text",
            Self::StableHloBytecode => "StableHLO bytecode",
            Self::JaxExport => "a jax.export file",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_recognised_by_their_first_bytes() {
        for (bytes, format) in [
            (&b"ML\xefR\x0dStableHLO_v1.15.0"[..], Format::StableHloBytecode),
            (b"module @jit_step attributes {}", Format::StableHloText),
            (b"\n// exported\n#loc = loc(unknown)\nmodule {\n}", Format::StableHloText),
            (b"func.func public @main() { return }", Format::StableHloText),
            (b"\"builtin.module\"() ({", Format::StableHloText),
            (b"\x3c\0\0\0\x38\0", Format::JaxExport),
            (b"\x0a\x08jit_step\x12\x07main.35", Format::Hlo),
            (b"\x0a\x06module\x12\x07main.35", Format::Hlo),
            (b"\n HloModule jit_step", Format::HloText),
            (b"modules are text", Format::Hlo),
            (b"\0\0\0\0", Format::Hlo),
            (b"", Format::Hlo),
        ] {
            assert_eq!(Format::of(bytes), format, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
