//! Tokens: what stands next in the text, and where.
//!
//! White space and comments count for nothing and are skipped in front of every token, except the comment with which
//! our own printer marks an instruction whose fields it could not print: it is kept in mind and refused.

use super::{ParseError, Problem};

/// Nesting (tuple shapes, literals, shardings, computations inside attributes) beyond which a text is refused.
pub(super) const DEEPEST: usize = 64;

/// Longest excerpt of the text in an error, in characters.
const EXCERPT: usize = 40;

/// How the printer's comment about unknown fields begins.
const UNKNOWN: &str = "/*unknown fields ";

/// A position in the text. Copying it and going back is how alternatives are tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    /// Where a comment about unknown fields was skipped.
    unknown: Option<usize>,
}

pub(super) type Result<T, E = ParseError> = std::result::Result<T, E>;

/// Whether a byte belongs to a name, a key or a number.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let mut cursor = Self { text, at: 0, unknown: None };
        cursor.skip();
        cursor
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn advance(&mut self, bytes: usize) {
        self.at += bytes;
        self.skip();
    }

    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_ascii_start();
            self.at += rest.len() - trimmed.len();
            let comment = if trimmed.starts_with("/*") {
                trimmed.find("*/").map(|end| end + 2)
            } else if trimmed.starts_with("//") {
                Some(trimmed.find('\n').unwrap_or(trimmed.len()))
            } else {
                None
            };
            let Some(length) = comment else { return };
            if trimmed.starts_with(UNKNOWN) {
                self.unknown = Some(self.at);
            }
            self.at += length;
        }
    }

    /// The next byte, or `None` at the end.
    pub(super) fn peek(&self) -> Option<u8> {
        self.rest().bytes().next()
    }

    /// Whether the last token and the next one touch: nothing was skipped in between.
    pub(super) fn touches(&self) -> bool {
        let before = self.at.checked_sub(1).and_then(|at| self.text.as_bytes().get(at));
        before.is_some_and(|b| !b.is_ascii_whitespace() && *b != b'/')
    }

    /// Takes `token` where it stands next.
    pub(super) fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.advance(token.len());
        }
        found
    }

    /// Takes `token`, which must stand next.
    pub(super) fn expect(&mut self, token: &str) -> Result<()> {
        if self.eat(token) { Ok(()) } else { Err(self.expected(format!("`{token}`"))) }
    }

    /// Takes the word where it stands next as a whole.
    pub(super) fn eat_word(&mut self, word: &str) -> bool {
        let found = self.peek_word() == word;
        if found {
            self.advance(word.len());
        }
        found
    }

    /// The word that stands next, possibly empty.
    pub(super) fn peek_word(&self) -> &'a str {
        let rest = self.rest();
        let length = rest.bytes().position(|b| !is_word(b)).unwrap_or(rest.len());
        rest.get(..length).unwrap_or_default()
    }

    /// The byte that touches the word that stands next; `None` where no word does.
    pub(super) fn peek_behind_word(&self) -> Option<u8> {
        let length = self.peek_word().len();
        if length == 0 { None } else { self.rest().as_bytes().get(length).copied() }
    }

    /// A word: letters, digits, `_`, `.` and `-`.
    pub(super) fn word(&mut self, what: &str) -> Result<&'a str> {
        match self.peek_word() {
            "" => Err(self.expected(what)),
            word => {
                self.advance(word.len());
                Ok(word)
            }
        }
    }

    /// A name with or without `%` in front.
    pub(super) fn name(&mut self, what: &str) -> Result<&'a str> {
        let start = *self;
        if self.rest().starts_with('%') {
            // A name touches its sign.
            self.at += 1;
        }
        let word = self.peek_word();
        if word.bytes().next().is_none_or(|b| !(b.is_ascii_alphabetic() || b == b'_')) {
            return Err(start.expected(what));
        }
        self.advance(word.len());
        Ok(word)
    }

    /// A whole number of any type that has no more than 64 bits.
    pub(super) fn integer<T: TryFrom<i128>>(&mut self) -> Result<T> {
        let start = *self;
        let word = self.number("a whole number")?;
        let wide = word.parse::<i128>().map_err(|_| start.expected("a whole number"))?;
        T::try_from(wide).map_err(|_| start.refused("the number is out of range here"))
    }

    /// The text of a number, sign and payload included.
    pub(super) fn number(&mut self, what: &str) -> Result<&'a str> {
        let rest = self.rest();
        let mut length = usize::from(rest.starts_with(['+', '-']));
        for (n, byte) in rest.bytes().enumerate().skip(length) {
            // The sign of an exponent.
            let exponent = byte == b'+' && n > 0 && rest.as_bytes().get(n - 1).is_some_and(|b| b | 0x20 == b'e');
            if !is_word(byte) && !exponent {
                break;
            }
            length = n + 1;
        }
        let payload = rest.get(length..).filter(|r| r.starts_with("(0x")).and_then(|r| r.find(')'));
        length += payload.map_or(0, |end| end + 1);
        match rest.get(..length) {
            None | Some("" | "+" | "-") => Err(self.expected(what)),
            Some(number) => {
                self.advance(length);
                Ok(number)
            }
        }
    }

    pub(super) fn boolean(&mut self) -> Result<bool> {
        match self.peek_word() {
            word @ ("true" | "false") => {
                self.advance(word.len());
                Ok(word == "true")
            }
            _ => Err(self.expected("`true` or `false`")),
        }
    }

    /// One of `names`; the result is its position.
    pub(super) fn choice(&mut self, names: &[&str]) -> Result<i32> {
        let word = self.peek_word();
        let found = names.iter().position(|&name| name == word).and_then(|n| i32::try_from(n).ok());
        match found {
            Some(number) if !word.is_empty() => {
                self.advance(word.len());
                Ok(number)
            }
            _ => Err(self.expected(format!("one of {}", names.join(", ")))),
        }
    }

    /// A string in quotes, its escapes resolved.
    pub(super) fn quoted(&mut self) -> Result<Vec<u8>> {
        let start = *self;
        let mut bytes = self.rest().bytes().enumerate();
        if bytes.next().is_none_or(|(_, b)| b != b'"') {
            return Err(start.expected("a string in quotes"));
        }
        let mut value = Vec::new();
        while let Some((n, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    self.advance(n + 1);
                    return Ok(value);
                }
                b'\\' => {
                    let escape = self.rest().get(n + 1..).and_then(unescape);
                    let Some((resolved, length)) = escape else {
                        self.at += n;
                        return Err(self.expected("an escape as in C"));
                    };
                    value.push(resolved);
                    for _ in 0..length {
                        bytes.next();
                    }
                }
                // As in C, a string ends on the line on which it begins.
                b'\n' => break,
                other => value.push(other),
            }
        }
        Err(start.refused("the string has no end on its line"))
    }

    /// A string in quotes that is UTF-8.
    pub(super) fn text(&mut self) -> Result<String> {
        let start = *self;
        String::from_utf8(self.quoted()?).map_err(|_| start.refused("the string is not UTF-8"))
    }

    /// A string in quotes, or a dictionary in braces as it stands.
    pub(super) fn quoted_or_dict(&mut self) -> Result<Vec<u8>> {
        if self.peek() != Some(b'{') {
            return self.quoted();
        }
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        for (n, byte) in self.rest().bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                b'{' if !in_string => depth += 1,
                b'}' if !in_string => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                let value = self.rest().get(..=n).unwrap_or_default().as_bytes().to_vec();
                self.advance(n + 1);
                return Ok(value);
            }
        }
        Err(self.refused("the dictionary's braces are not closed"))
    }

    /// Everything up to `end`, which is taken too, without white space around it.
    pub(super) fn until(&mut self, end: char, what: &str) -> Result<&'a str> {
        let rest = self.rest();
        match rest.find(end) {
            Some(length) if length > 0 => {
                self.advance(length + end.len_utf8());
                Ok(rest.get(..length).unwrap_or_default().trim_ascii())
            }
            _ => Err(self.expected(what)),
        }
    }

    /// Items between `open` and `close`, with commas in between.
    pub(super) fn list<T>(
        &mut self,
        open: &str,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.expect(open)?;
        let mut items = Vec::new();
        while !self.eat(close) {
            if !items.is_empty() && !self.eat(",") {
                return Err(self.expected(format!("`,` or `{close}`")));
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// `{1,2,3}`
    pub(super) fn integers<T: TryFrom<i128>>(&mut self) -> Result<Vec<T>> {
        self.list("{", "}", Self::integer)
    }

    /// Fails where a comment since the last call says that fields could not be printed.
    pub(super) fn check_unknown(&mut self) -> Result<()> {
        match self.unknown.take() {
            Some(at) => Err(Self { at, ..*self }
                .refused("the printer met fields that text cannot hold; read the module from its proto instead")),
            None => Ok(()),
        }
    }

    /// An error: something else was expected here.
    pub(super) fn expected(&self, what: impl Into<String>) -> ParseError {
        self.error(Problem::Expected(what.into()))
    }

    /// An error: what stands here is understood and refused.
    pub(super) fn refused(&self, why: impl Into<String>) -> ParseError {
        self.error(Problem::Refused(why.into()))
    }

    fn error(&self, problem: Problem) -> ParseError {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |n| n + 1);
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
        ParseError { line, column, token: self.token(), problem }
    }

    /// The token that stands here, as an error shows it.
    fn token(&self) -> String {
        let rest = self.rest();
        let sigil = usize::from(rest.starts_with(['%', '-', '+']));
        let word = rest.bytes().skip(sigil).position(|b| !is_word(b)).map_or(rest.len(), |n| n + sigil);
        let length = match rest.bytes().next() {
            Some(b'"') => rest.bytes().skip(1).position(|b| b == b'"' || b == b'\n').map_or(rest.len(), |n| n + 2),
            Some(b'/') => rest.find("*/").map_or(1, |n| n + 2),
            _ => word,
        };
        let shortest = rest.chars().next().map_or(0, char::len_utf8);
        let token = rest.get(..length.max(shortest)).unwrap_or(rest);
        match token.char_indices().nth(EXCERPT) {
            Some((end, _)) => format!("{}...", token.get(..end).unwrap_or_default()),
            None => token.to_owned(),
        }
    }
}

/// What the escape stands for whose text follows a backslash, and the length of that text.
fn unescape(text: &str) -> Option<(u8, usize)> {
    let digits = |radix: u32, from: usize, most: usize| {
        let digits = text.bytes().skip(from).take(most).take_while(|&b| char::from(b).is_digit(radix)).count();
        let value = u8::from_str_radix(text.get(from..from + digits)?, radix).ok()?;
        Some((value, from + digits))
    };
    Some(match text.bytes().next()? {
        b'n' => (b'\n', 1),
        b'r' => (b'\r', 1),
        b't' => (b'\t', 1),
        b'a' => (7, 1),
        b'b' => (8, 1),
        b'f' => (12, 1),
        b'v' => (11, 1),
        same @ (b'"' | b'\'' | b'\\' | b'?') => (same, 1),
        b'x' | b'X' => digits(16, 1, 2)?,
        b'0'..=b'7' => digits(8, 0, 3)?,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_taken_one_by_one() {
        let mut c = Cursor::new(" /*index=5*/ %add.1-x, -nan(0x1) // end\n \"a\\\"\\303\\251\\n\" {a=\"}\"} {1, -2,3}");
        assert_eq!(c.name("a name").unwrap(), "add.1-x");
        assert!(c.eat(",") && !c.eat(","));
        assert_eq!(c.number("a number").unwrap(), "-nan(0x1)");
        assert_eq!(c.text().unwrap(), "a\"é\n");
        assert_eq!(c.quoted_or_dict().unwrap(), b"{a=\"}\"}");
        assert_eq!(c.integers::<i64>().unwrap(), [1, -2, 3]);
        assert_eq!(c.peek(), None);
    }

    #[test]
    fn an_error_says_where_and_what_stands_there() {
        let check = |text: &str, expected: &str, parse: fn(&mut Cursor<'_>) -> Option<ParseError>| {
            let mut cursor = Cursor::new(text);
            assert_eq!(parse(&mut cursor).unwrap().to_string(), expected);
        };
        check("\n  é x", "line 2, column 3: expected a name, found `é`", |c| c.name("a name").err());
        check("", "line 1, column 1: expected a name, found the end of the text", |c| c.name("a name").err());
        check("300", "line 1, column 1: `300`: the number is out of range here", |c| c.integer::<u8>().err());
        check("\"a\n\"", "line 1, column 1: `\"a\n`: the string has no end on its line", |c| c.quoted().err());
        check("{1 2}", "line 1, column 4: expected `,` or `}`, found `2`", |c| c.integers::<u8>().err());
        check("yes", "line 1, column 1: expected one of a, b, found `yes`", |c| c.choice(&["a", "b"]).err());
        check("\"\\q\"", "line 1, column 2: expected an escape as in C, found `\\`", |c| c.quoted().err());
    }
}
