//! Walking the fields of an encoded message without decoding them.
//!
//! Import and export handle the few fields that the representation models and
//! leave all others, in the order in which they stand, to the generated messages.

use buffa::encoding::{self, Tag, WireType};
use buffa::{DecodeError, DecodeOptions, Message, RECURSION_LIMIT};

/// One field: its tag and payload as they stand, and the payload.
pub(crate) struct Field<'a> {
    tag: Tag,
    /// Tag and payload.
    pub(crate) whole: &'a [u8],
    payload: Payload<'a>,
}

enum Payload<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Field<'a> {
    pub(crate) fn number(&self) -> u32 {
        self.tag.field_number()
    }

    /// The payload of a message, string or packed list.
    pub(crate) fn bytes(&self) -> Result<&'a [u8], DecodeError> {
        match self.payload {
            Payload::Bytes(bytes) => Ok(bytes),
            _ => Err(encoding::wire_type_mismatch(self.tag, WireType::LengthDelimited)),
        }
    }

    pub(crate) fn string(&self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::InvalidUtf8)
    }

    /// An `int64`.
    pub(crate) fn integer(&self) -> Result<i64, DecodeError> {
        match self.payload {
            Payload::Varint(value) => Ok(value.cast_signed()),
            _ => Err(encoding::wire_type_mismatch(self.tag, WireType::Varint)),
        }
    }

    /// What a field of a `repeated int64` adds to it, packed or not.
    pub(crate) fn integers(&self, mut add: impl FnMut(i64)) -> Result<(), DecodeError> {
        if let Payload::Varint(value) = self.payload {
            add(value.cast_signed());
            return Ok(());
        }
        let mut rest = self.bytes()?;
        while !rest.is_empty() {
            add(encoding::decode_varint(&mut rest)?.cast_signed());
        }
        Ok(())
    }
}

/// The fields of an encoded message, in order; stops after the first error.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn step(&mut self) -> Result<Field<'a>, DecodeError> {
        let start = self.0;
        let mut rest = start;
        let tag = Tag::decode(&mut rest)?;
        let payload = match tag.wire_type() {
            WireType::Varint => Payload::Varint(encoding::decode_varint(&mut rest)?),
            WireType::LengthDelimited => {
                let length = usize::try_from(encoding::decode_varint(&mut rest)?);
                let split = length.ok().and_then(|length| rest.split_at_checked(length));
                let (bytes, after) = split.ok_or(DecodeError::UnexpectedEof)?;
                rest = after;
                Payload::Bytes(bytes)
            }
            _ => {
                encoding::skip_field_depth(tag, &mut rest, RECURSION_LIMIT)?;
                Payload::Other
            }
        };
        self.0 = rest;
        let whole = start.get(..start.len() - rest.len()).unwrap_or(start);
        Ok(Field { tag, whole, payload })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.step();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Merges into `rest` every field of `message` that `take` does not want, in order.
///
/// `take` answers whether it has dealt with a field.
pub(crate) fn split<'a, M: Message>(
    message: &'a [u8],
    rest: &mut M,
    options: &DecodeOptions,
    mut take: impl FnMut(&Field<'a>) -> Result<bool, DecodeError>,
) -> Result<(), DecodeError> {
    // Fields side by side are merged in one go.
    let (mut start, mut end) = (0, 0);
    for field in Fields::new(message) {
        let field = field?;
        if take(&field)? {
            merge(rest, message.get(start..end), options)?;
            start = end + field.whole.len();
        }
        end += field.whole.len();
    }
    merge(rest, message.get(start..end), options)
}

fn merge<M: Message>(rest: &mut M, fields: Option<&[u8]>, options: &DecodeOptions) -> Result<(), DecodeError> {
    match fields {
        None | Some([]) => Ok(()),
        Some(fields) => options.merge_from_slice(rest, fields),
    }
}

/// Appends fields to an encoded message, in between those of another one.
///
/// Fields are written in the order of their numbers, those of `rest` as they come: what import
/// took apart goes back to where it was.
pub(crate) struct Splice<'a> {
    out: &'a mut Vec<u8>,
    rest: &'a [u8],
}

impl<'a> Splice<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>, rest: &'a [u8]) -> Self {
        Self { out, rest }
    }

    /// Writes the fields of `rest` whose numbers are below `number`.
    fn advance(&mut self, number: u32) {
        let below = Fields::new(self.rest).map_while(|f| f.ok().filter(|f| f.number() < number));
        let length = below.map(|f| f.whole.len()).sum();
        if let Some((before, after)) = self.rest.split_at_checked(length) {
            self.out.extend_from_slice(before);
            self.rest = after;
        }
    }

    /// A message, a string, or a packed list, however short.
    pub(crate) fn bytes(&mut self, number: u32, payload: &[u8]) {
        self.advance(number);
        Tag::new(number, WireType::LengthDelimited).encode(self.out);
        encoding::encode_varint(payload.len() as u64, self.out);
        self.out.extend_from_slice(payload);
    }

    /// A string; left out where empty.
    pub(crate) fn string(&mut self, number: u32, value: &str) {
        if !value.is_empty() {
            self.bytes(number, value.as_bytes());
        }
    }

    /// An `int64`; left out where 0.
    pub(crate) fn integer(&mut self, number: u32, value: i64) {
        if value != 0 {
            self.advance(number);
            Tag::new(number, WireType::Varint).encode(self.out);
            encoding::encode_varint(value.cast_unsigned(), self.out);
        }
    }

    /// A packed `repeated int64`; left out where empty.
    pub(crate) fn integers(&mut self, number: u32, values: impl Iterator<Item = i64>) {
        let mut payload = Vec::new();
        for value in values {
            encoding::encode_varint(value.cast_unsigned(), &mut payload);
        }
        if !payload.is_empty() {
            self.bytes(number, &payload);
        }
    }

    /// Writes what is left of the other message.
    pub(crate) fn finish(self) {
        self.out.extend_from_slice(self.rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::HloComputationProto;

    #[test]
    fn what_is_split_off_splices_back_into_its_place() {
        let proto = HloComputationProto {
            name: "sum".into(),
            id: 7,
            root_id: -1,
            execution_thread: "t".into(),
            ..Default::default()
        };
        let encoded = proto.encode_to_vec();
        let mut rest = HloComputationProto::default();
        let (mut name, mut id) = ("", 0);
        split(&encoded, &mut rest, &DecodeOptions::new(), |field| {
            match field.number() {
                1 => name = field.string()?,
                5 => id = field.integer()?,
                _ => return Ok(false),
            }
            Ok(true)
        })
        .unwrap();
        assert_eq!((name, id), ("sum", 7));
        assert_eq!(rest, HloComputationProto { root_id: -1, execution_thread: "t".into(), ..Default::default() });
        let mut out = Vec::new();
        let left = rest.encode_to_vec();
        let mut splice = Splice::new(&mut out, &left);
        splice.string(1, name);
        splice.integer(5, id);
        splice.finish();
        assert_eq!(out, encoded);
    }

    #[test]
    fn a_field_of_another_wire_type_is_refused() {
        let check = |bytes: &[u8]| {
            let field = Fields::new(bytes).next().unwrap()?;
            field.string().map(str::len)
        };
        assert_eq!(check(&[0x0a, 1, b'x']).unwrap(), 1);
        assert!(matches!(check(&[0x08, 1]), Err(DecodeError::WireTypeMismatch { .. })));
        assert!(matches!(check(&[0x0a, 1, 0xff]), Err(DecodeError::InvalidUtf8)));
        assert!(matches!(check(&[0x0a, 9, b'x']), Err(DecodeError::UnexpectedEof)));
    }
}
