//! numpy's format of one array: a magic number, a Python dictionary, and the elements.
//!
//! The dictionary is read by a parser of exactly the three entries that numpy writes: nothing in a file makes it allocate
//! or recurse.

use hlo::PrimitiveType;

use crate::bundle::Dtype;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Types by the code that numpy has for them.
const CODES: &[(&str, PrimitiveType)] = &[
    ("b1", PrimitiveType::PRED),
    ("i1", PrimitiveType::S8),
    ("i2", PrimitiveType::S16),
    ("i4", PrimitiveType::S32),
    ("i8", PrimitiveType::S64),
    ("u1", PrimitiveType::U8),
    ("u2", PrimitiveType::U16),
    ("u4", PrimitiveType::U32),
    ("u8", PrimitiveType::U64),
    ("f2", PrimitiveType::F16),
    ("f4", PrimitiveType::F32),
    ("f8", PrimitiveType::F64),
    ("c8", PrimitiveType::C64),
    ("c16", PrimitiveType::C128),
    // numpy has no name for ml_dtypes' bfloat16 and calls it two bytes of anything.
    ("V2", PrimitiveType::BF16),
];

/// What the head of an array says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    /// Where the elements begin.
    pub(super) start: usize,
}

/// Reads the head of an array; an error says what is wrong, and what to do about what is merely not supported.
pub(super) fn header(bytes: &[u8]) -> Result<Header, String> {
    let damaged = || "its header is damaged or truncated".to_owned();
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is no array of numpy: the magic number is missing")?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(damaged)?;
    let (length, rest) = match version {
        [1, 0] => {
            let (length, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
            (usize::from(u16::from_le_bytes(*length)), rest)
        }
        [2 | 3, 0] => {
            let (length, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
            (usize::try_from(u32::from_le_bytes(*length)).map_err(|_| damaged())?, rest)
        }
        [major, minor] => return Err(format!("it is of numpy's format {major}.{minor}; 1.0, 2.0 and 3.0 are read")),
    };
    let start = bytes.len() - rest.len() + length;
    let text = rest.get(..length).and_then(|text| std::str::from_utf8(text).ok()).ok_or_else(damaged)?;
    let said = Dictionary::parse(text).ok_or_else(damaged)?;
    let Descr::Plain(descr) = said.descr else {
        return Err("it is a structured array; save each field as an array of its own".to_owned());
    };
    if said.fortran_order {
        return Err("its elements are in Fortran order; save it as np.ascontiguousarray(...)".to_owned());
    }
    Ok(Header { dtype: dtype(descr)?, shape: said.shape, start })
}

fn dtype(descr: &str) -> Result<Dtype, String> {
    let code = descr.trim_start_matches(['<', '>', '|', '=']);
    if descr.starts_with('>') && !code.ends_with('1') {
        return Err(format!("its elements are big-endian ({descr}); save it with .astype('<{code}')"));
    }
    let found = CODES.iter().find(|(name, _)| *name == code);
    found.and_then(|&(_, primitive)| Dtype::from_primitive(primitive)).ok_or_else(|| {
        let what = match code.chars().next() {
            Some('O') => "holds Python objects",
            Some('U' | 'S' | 'a') => "holds text",
            Some('M' | 'm') => "holds dates or times",
            Some('V') => "is of a type that numpy has no name for, which a safetensors file keeps",
            _ => "is of a type that no input has",
        };
        format!("it {what} ({descr}), and inputs take numbers and truth values")
    })
}

enum Descr<'a> {
    Plain(&'a str),
    Structured,
}

struct Dictionary<'a> {
    descr: Descr<'a>,
    fortran_order: bool,
    shape: Vec<u64>,
}

impl<'a> Dictionary<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        let mut rest = Cursor(text);
        rest.eat("{")?;
        while rest.eat("}").is_none() {
            let key = rest.string()?;
            rest.eat(":")?;
            match key {
                "descr" if rest.eat("[").is_some() => {
                    descr = Some(Descr::Structured);
                    // Fields nest; the other keys, which numpy sorts behind, do not matter any more.
                    (fortran_order, shape) = (Some(false), Some(Vec::new()));
                    break;
                }
                "descr" => descr = Some(Descr::Plain(rest.string()?)),
                "fortran_order" => {
                    let yes = rest.eat("True").is_some();
                    if !yes {
                        rest.eat("False")?;
                    }
                    fortran_order = Some(yes);
                }
                "shape" => shape = Some(rest.tuple()?),
                _ => return None,
            }
            // A comma, or the end.
            if rest.eat(",").is_none() && !rest.0.trim_start().starts_with('}') {
                return None;
            }
        }
        Some(Self { descr: descr?, fortran_order: fortran_order?, shape: shape? })
    }
}

/// What is left of the text.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    /// Takes a token, if it is next.
    fn eat(&mut self, token: &str) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(token)?;
        Some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (string, rest) = text.strip_prefix(quote)?.split_once(quote)?;
        self.0 = rest;
        Some(string)
    }

    /// Dimensions; Python 2 writes an `L` behind a long one.
    fn tuple(&mut self) -> Option<Vec<u64>> {
        let mut numbers = Vec::new();
        self.eat("(")?;
        while self.eat(")").is_none() {
            let text = self.0.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let (digits, rest) = text.split_at_checked(end)?;
            numbers.push(digits.parse().ok()?);
            self.0 = rest.strip_prefix('L').unwrap_or(rest);
            if self.eat(",").is_none() && !self.0.trim_start().starts_with(')') {
                return None;
            }
        }
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(version: u8, dictionary: &str) -> Vec<u8> {
        let mut bytes = [MAGIC, &[version, 0]].concat();
        match version {
            1 => bytes.extend((dictionary.len() as u16).to_le_bytes()),
            _ => bytes.extend((dictionary.len() as u32).to_le_bytes()),
        }
        bytes.extend(dictionary.as_bytes());
        bytes
    }

    #[test]
    fn what_numpy_and_others_write_is_read() {
        for (version, dictionary, primitive, shape) in [
            (1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }     \n", PrimitiveType::F32, &[3, 4][..]),
            (2, "{'descr': '|u1', 'fortran_order': False, 'shape': (7,), }\n", PrimitiveType::U8, &[7]),
            (3, "{\"shape\":(),\"fortran_order\":False,\"descr\":\"=i8\"}", PrimitiveType::S64, &[]),
            (1, "{'descr': '<V2', 'fortran_order': False, 'shape': (2L, 5L)}", PrimitiveType::BF16, &[2, 5]),
            (1, "{'descr': '|b1', 'fortran_order': False, 'shape': (0, 5)}", PrimitiveType::PRED, &[0, 5]),
        ] {
            let bytes = file(version, dictionary);
            let header = header(&bytes).unwrap();
            assert_eq!((header.dtype.primitive(), &header.shape[..], header.start), (primitive, shape, bytes.len()));
        }
    }

    #[test]
    fn what_cannot_be_fed_is_refused_by_name() {
        let plain = |descr: &str| format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (3,)}}");
        for (dictionary, part) in [
            (plain("'>f4'"), "big-endian (>f4); save it with .astype('<f4')"),
            (plain("'|O'"), "Python objects"),
            (plain("'<U5'"), "text"),
            (plain("'<M8[ns]'"), "dates"),
            (plain("'|V1'"), "safetensors"),
            (plain("'<f16'"), "no input has"),
            (plain("[('x', '<f4'), ('y', '<i4', (2,))]"), "structured"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4)}".to_owned(), "np.ascontiguousarray"),
            ("{'descr': '<f4', 'shape': (3,)}".to_owned(), "damaged"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3 4)}".to_owned(), "damaged"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}".to_owned(), "damaged"),
            (format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},)}}", u128::MAX), "damaged"),
            ("((((((((".repeat(1000), "damaged"),
        ] {
            let error = header(&file(1, &dictionary)).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(header(b"PK\x03\x04").unwrap_err().contains("magic number"));
        assert!(header(&file(9, "{}")).unwrap_err().contains("9.0"));
        // A length beyond the end of the file.
        assert!(header(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{").unwrap_err().contains("truncated"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(version in 0u8..4, text in "\\PC{0,80}", bytes: Vec<u8>) {
            let _ = header(&file(version, &text));
            let _ = header(&[MAGIC, &bytes].concat());
        }
    }
}
