//! The part of the FlatBuffers format that a reader of one schema needs: tables, strings and vectors.
//!
//! A buffer is a graph of offsets, so nothing in it is trusted: every read is checked against the end of the buffer,
//! and an offset only ever points forward, but for that to a table's vtable. Tables may share parts, so whoever walks
//! them recursively counts what it visits.

use thiserror::Error;

/// A part of the buffer that is not where the buffer says, or not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FlatError {
    /// Beyond the end.
    #[error("it refers to byte {at} of {size}")]
    Beyond {
        /// The position.
        at: usize,
        /// The size of the buffer.
        size: usize,
    },
    /// Not text.
    #[error("the text at byte {at} is not UTF-8")]
    Text {
        /// The position.
        at: usize,
    },
}

type Result<T> = std::result::Result<T, FlatError>;

/// A table: fields by number, each of which may be absent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    bytes: &'a [u8],
    at: usize,
    vtable: usize,
    vtable_size: usize,
}

impl<'a> Table<'a> {
    /// The table that the buffer is about.
    pub(super) fn root(bytes: &'a [u8]) -> Result<Self> {
        Self::at(bytes, follow(bytes, 0)?)
    }

    fn at(bytes: &'a [u8], at: usize) -> Result<Self> {
        // The vtable may lie on either side of the table.
        let back = i64::from(u32_at(bytes, at)?.cast_signed());
        let beyond = || FlatError::Beyond { at, size: bytes.len() };
        let vtable = i64::try_from(at).ok().and_then(|at| usize::try_from(at - back).ok()).ok_or_else(beyond)?;
        let vtable_size = usize::from(u16_at(bytes, vtable)?);
        Ok(Self { bytes, at, vtable, vtable_size })
    }

    /// Where a field is; `None` where it is absent.
    fn field(self, number: usize) -> Result<Option<usize>> {
        let slot = 4 + 2 * number;
        if slot + 2 > self.vtable_size {
            return Ok(None);
        }
        let offset = usize::from(u16_at(self.bytes, self.vtable + slot)?);
        Ok((offset != 0).then_some(self.at + offset))
    }

    pub(super) fn u8(self, number: usize) -> Result<u8> {
        self.field(number)?.map_or(Ok(0), |at| array(self.bytes, at).map(|[byte]| byte))
    }

    pub(super) fn u16(self, number: usize) -> Result<u16> {
        self.field(number)?.map_or(Ok(0), |at| u16_at(self.bytes, at))
    }

    pub(super) fn table(self, number: usize) -> Result<Option<Self>> {
        self.field(number)?.map(|at| Self::at(self.bytes, follow(self.bytes, at)?)).transpose()
    }

    pub(super) fn text(self, number: usize) -> Result<&'a str> {
        self.field(number)?.map_or(Ok(""), |at| text(self.bytes, follow(self.bytes, at)?))
    }

    /// The elements of a vector, `width` bytes each, and where they begin.
    fn vector(self, number: usize, width: usize) -> Result<(usize, &'a [u8])> {
        let Some(at) = self.field(number)? else { return Ok((0, &[])) };
        let at = follow(self.bytes, at)?;
        let count = u32_at(self.bytes, at)? as usize;
        let length = count.checked_mul(width).ok_or(FlatError::Beyond { at, size: self.bytes.len() })?;
        Ok((at + 4, slice(self.bytes, at + 4, length)?))
    }

    pub(super) fn u8s(self, number: usize) -> Result<&'a [u8]> {
        Ok(self.vector(number, 1)?.1)
    }

    pub(super) fn u16s(self, number: usize) -> Result<Vec<u16>> {
        Ok(self.vector(number, 2)?.1.as_chunks().0.iter().map(|&c| u16::from_le_bytes(c)).collect())
    }

    pub(super) fn u32s(self, number: usize) -> Result<Vec<u32>> {
        Ok(self.vector(number, 4)?.1.as_chunks().0.iter().map(|&c| u32::from_le_bytes(c)).collect())
    }

    /// The positions that a vector of offsets points to.
    fn offsets(self, number: usize) -> Result<impl Iterator<Item = Result<usize>> + 'a> {
        let (start, elements) = self.vector(number, 4)?;
        Ok((0..elements.len() / 4).map(move |i| follow(self.bytes, start + 4 * i)))
    }

    pub(super) fn tables(self, number: usize) -> Result<impl Iterator<Item = Result<Self>> + 'a> {
        Ok(self.offsets(number)?.map(move |at| Self::at(self.bytes, at?)))
    }

    pub(super) fn texts(self, number: usize) -> Result<impl Iterator<Item = Result<&'a str>> + 'a> {
        Ok(self.offsets(number)?.map(move |at| text(self.bytes, at?)))
    }
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8]> {
    let beyond = FlatError::Beyond { at, size: bytes.len() };
    at.checked_add(length).and_then(|end| bytes.get(at..end)).ok_or(beyond)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    slice(bytes, at, N)?.try_into().map_err(|_| FlatError::Beyond { at, size: bytes.len() })
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// Where the offset at `at` points to.
fn follow(bytes: &[u8], at: usize) -> Result<usize> {
    let target = at.checked_add(u32_at(bytes, at)? as usize).filter(|&t| t < bytes.len());
    target.ok_or(FlatError::Beyond { at, size: bytes.len() })
}

fn text(bytes: &[u8], at: usize) -> Result<&str> {
    let length = u32_at(bytes, at)? as usize;
    std::str::from_utf8(slice(bytes, at + 4, length)?).map_err(|_| FlatError::Text { at })
}
