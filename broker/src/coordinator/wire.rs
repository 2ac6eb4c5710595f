//! The few wire primitives that coordinator records are made of (Kafka's string, bytes, varint and tagged fields).
//!
//! A reader never allocates more than the bytes it was given: every length is checked against what is left.

use bytes::Bytes;

/// Why bytes do not decode.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum WireError {
    #[error("ends early")]
    EndsEarly,
    #[error("a length is wrong")]
    Length,
    #[error("a string is not UTF-8")]
    NotUtf8,
}

/// Reads primitives from a slice.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(WireError::EndsEarly)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::EndsEarly)
    }

    pub fn int8(&mut self) -> Result<i8, WireError> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    pub fn int16(&mut self) -> Result<i16, WireError> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    pub fn int32(&mut self) -> Result<i32, WireError> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub fn int64(&mut self) -> Result<i64, WireError> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    pub fn unsigned_varint(&mut self) -> Result<u32, WireError> {
        let mut value: u32 = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array::<1>()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Length)
    }

    /// An array's element count; every element takes at least a byte.
    pub fn count(&mut self) -> Result<usize, WireError> {
        let count = usize::try_from(self.int32()?).map_err(|_| WireError::Length)?;
        if count <= self.rest.len() {
            Ok(count)
        } else {
            Err(WireError::Length)
        }
    }

    pub fn compact_count(&mut self) -> Result<usize, WireError> {
        let count = self.compact_length()?.ok_or(WireError::Length)?;
        if count <= self.rest.len() {
            Ok(count)
        } else {
            Err(WireError::Length)
        }
    }

    /// As [`Self::count`] and [`Self::compact_count`], of an array that may be null.
    pub fn nullable_count_of(&mut self, compact: bool) -> Result<Option<usize>, WireError> {
        let count = if compact {
            self.compact_length()?
        } else {
            match self.int32()? {
                -1 => None,
                count => Some(usize::try_from(count).map_err(|_| WireError::Length)?),
            }
        };
        match count {
            Some(count) if count > self.rest.len() => Err(WireError::Length),
            count => Ok(count),
        }
    }

    fn compact_length(&mut self) -> Result<Option<usize>, WireError> {
        let length = self.unsigned_varint()?;
        Ok(length.checked_sub(1).map(|length| length as usize))
    }

    pub fn string(&mut self) -> Result<String, WireError> {
        self.string_of(false)
    }

    pub fn compact_string(&mut self) -> Result<String, WireError> {
        self.string_of(true)
    }

    pub fn string_of(&mut self, compact: bool) -> Result<String, WireError> {
        self.nullable_string_of(compact)?.ok_or(WireError::Length)
    }

    pub fn nullable_string_of(&mut self, compact: bool) -> Result<Option<String>, WireError> {
        let length = if compact {
            self.compact_length()?
        } else {
            match self.int16()? {
                -1 => None,
                length => Some(usize::try_from(length).map_err(|_| WireError::Length)?),
            }
        };
        let Some(length) = length else {
            return Ok(None);
        };
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| WireError::NotUtf8)?;
        Ok(Some(text.to_owned()))
    }

    pub fn bytes_of(&mut self, compact: bool) -> Result<Bytes, WireError> {
        let length = if compact {
            self.compact_length()?.ok_or(WireError::Length)?
        } else {
            usize::try_from(self.int32()?).map_err(|_| WireError::Length)?
        };
        Ok(Bytes::copy_from_slice(self.take(length)?))
    }

    /// Calls `field` with each tagged field's tag and bytes.
    pub fn tagged_fields(
        &mut self,
        mut field: impl FnMut(u32, &[u8]) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        for _ in 0..self.unsigned_varint()? {
            let tag = self.unsigned_varint()?;
            let size = self.unsigned_varint()? as usize;
            field(tag, self.take(size)?)?;
        }
        Ok(())
    }
}

/// Writes primitives. Strings come from decoded requests, so they fit their length fields; one that does not is cut
/// at a character boundary rather than written with a wrong length.
#[derive(Default)]
pub struct Writer {
    buffer: Vec<u8>,
}

impl Writer {
    pub fn int16(&mut self, value: i16) {
        self.raw(&value.to_be_bytes());
    }

    pub fn int32(&mut self, value: i32) {
        self.raw(&value.to_be_bytes());
    }

    pub fn int64(&mut self, value: i64) {
        self.raw(&value.to_be_bytes());
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    pub fn unsigned_varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.buffer.push((value as u8 & 0x7f) | 0x80);
            value >>= 7;
        }
        self.buffer.push(value as u8);
    }

    pub fn string(&mut self, text: &str) {
        let mut length = text.len().min(i16::MAX as usize);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        self.int16(length as i16);
        self.raw(&text.as_bytes()[..length]);
    }

    pub fn nullable_string(&mut self, text: Option<&str>) {
        match text {
            Some(text) => self.string(text),
            None => self.int16(-1),
        }
    }

    pub fn compact_string(&mut self, text: &str) {
        self.unsigned_varint(text.len() as u32 + 1);
        self.raw(text.as_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.int32(i32::try_from(bytes.len()).expect("a member's bytes fit a request frame"));
        self.raw(bytes);
    }

    pub fn finish(self) -> Bytes {
        Bytes::from(self.buffer)
    }
}
