//! Names, strings and lists.

use std::cell::Cell;
use std::fmt::{self, Write};

/// A name as XLA sanitizes it on import: letters, digits, `_`, `.` and `-`, no digit in front.
pub(super) struct Name<'a>(pub(super) &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, c) in self.0.chars().enumerate() {
            let fits = c == '_' || c.is_ascii_alphabetic() || (n > 0 && (c.is_ascii_digit() || c == '.' || c == '-'));
            f.write_char(if fits { c } else { '_' })?;
        }
        Ok(())
    }
}

/// A string in quotes, escaped as in C.
pub(super) struct Quoted<'a>(pub(super) &'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for &byte in self.0 {
            match byte {
                b'\n' => f.write_str("\\n")?,
                b'\r' => f.write_str("\\r")?,
                b'\t' => f.write_str("\\t")?,
                b'"' => f.write_str("\\\"")?,
                b'\'' => f.write_str("\\'")?,
                b'\\' => f.write_str("\\\\")?,
                0x20..=0x7e => f.write_char(char::from(byte))?,
                other => write!(f, "\\{other:03o}")?,
            }
        }
        f.write_char('"')
    }
}

/// A string that stands without quotes where it is a dictionary in braces.
pub(super) struct QuotedOrDict<'a>(pub(super) &'a [u8]);

impl fmt::Display for QuotedOrDict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) if is_dict(self.0) => f.write_str(text),
            _ => write!(f, "{}", Quoted(self.0)),
        }
    }
}

/// Whether braces open at the first byte and close at the last one, strings aside.
fn is_dict(bytes: &[u8]) -> bool {
    let mut depth = 0usize;
    let mut in_string = false;
    let mut escaped = false;
    for (n, &byte) in bytes.iter().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' => depth += 1,
            b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return n + 1 == bytes.len();
                }
            }
            _ => {}
        }
        if depth == 0 {
            return false;
        }
    }
    false
}

/// Items with `, ` in between and, where asked for, a comment that counts at every fifth.
pub(super) struct Separated<I> {
    items: Cell<Option<I>>,
    indices: bool,
}

impl<I> Separated<I> {
    pub(super) fn new(items: I, indices: bool) -> Self {
        Self { items: Cell::new(Some(items)), indices }
    }
}

impl<I: Iterator<Item: fmt::Display>> fmt::Display for Separated<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, item) in self.items.take().into_iter().flatten().enumerate() {
            f.write_str(if n > 0 { ", " } else { "" })?;
            if self.indices && n > 0 && n % 5 == 0 {
                write!(f, "/*index={n}*/")?;
            }
            write!(f, "{item}")?;
        }
        Ok(())
    }
}

/// `{1,2,3}`
pub(super) struct Braces<'a, T>(pub(super) &'a [T]);

impl<T: fmt::Display> fmt::Display for Braces<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}", Joined(self.0, ","))
    }
}

/// Items with a separator in between.
pub(super) struct Joined<'a, T>(pub(super) &'a [T], pub(super) &'static str);

impl<T: fmt::Display> fmt::Display for Joined<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if n > 0 { self.1 } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_dictionaries_go_without_quotes() {
        let check = |text: &str, expected: &str| assert_eq!(QuotedOrDict(text.as_bytes()).to_string(), expected);
        check(r#"{"n":"5"}"#, r#"{"n":"5"}"#);
        check(r#"{"a":"}"}"#, r#"{"a":"}"}"#);
        check("{a}{b}", r#""{a}{b}""#);
        check(r#"{"open"#, r#""{\"open""#);
        check("a'b", r#""a\'b""#);
        check("", r#""""#);
        assert_eq!(QuotedOrDict(&[0xff, 1, b'\n']).to_string(), r#""\377\001\n""#);
    }

    #[test]
    fn names_are_sanitized() {
        assert_eq!(Name("0a b%c.d-e").to_string(), "_a_b_c.d-e");
    }
}
