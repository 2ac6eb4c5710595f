//! Bytes of the internal log and of snapshots: varints, length-prefixed bytes, and a reader that trusts nothing.
//!
//! ```text
//! unsigned   LEB128, at most 10 bytes          signed     zigzag, then LEB128
//! wide       zigzag LEB128 of an i128          bytes      unsigned length, then the bytes
//! optional   0, or 1 and the item              u8         one byte
//! ```
//!
//! The writers append to a `Vec<u8>`; the [`Reader`] checks every length against the bytes that are there, so that a
//! damaged record can neither panic nor allocate more than its own size.

use bytes::Bytes;
use thiserror::Error;

/// Why bytes of the internal log or of a snapshot could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodecError {
    #[error("{what}: the bytes end too early")]
    Truncated { what: &'static str },
    #[error("{what}: {value} is not a known code")]
    UnknownCode { what: &'static str, value: u64 },
    #[error("{what}: a number does not fit its type")]
    Overflow { what: &'static str },
    #[error("{what}: not UTF-8")]
    NotUtf8 { what: &'static str },
    #[error("{what}: {count} bytes are left over")]
    LeftOver { what: &'static str, count: usize },
    #[error("{what}: {detail}")]
    Invalid { what: &'static str, detail: String },
}

pub fn put_unsigned(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_unsigned(out, ((value << 1) ^ (value >> 63)) as u64);
}

pub fn put_wide(out: &mut Vec<u8>, value: i128) {
    let mut value = ((value << 1) ^ (value >> 127)) as u128;
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_unsigned(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub fn put_optional_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => out.push(0),
        Some(bytes) => {
            out.push(1);
            put_bytes(out, bytes);
        }
    }
}

pub fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.push(u8::from(value));
}

/// Reads what the `put_…` functions wrote, front to back.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// `what` names the bytes in errors.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Reader<'a> {
        Reader { what, rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// An error unless everything has been read.
    pub fn finish(self) -> Result<(), CodecError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(CodecError::LeftOver {
                what: self.what,
                count,
            }),
        }
    }

    pub fn byte(&mut self) -> Result<u8, CodecError> {
        let (first, rest) = self
            .rest
            .split_first()
            .ok_or(CodecError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(*first)
    }

    pub fn bool(&mut self) -> Result<bool, CodecError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.unknown(u64::from(other))),
        }
    }

    pub fn unsigned(&mut self) -> Result<u64, CodecError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(CodecError::Overflow { what: self.what });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(CodecError::Overflow { what: self.what })
    }

    pub fn signed(&mut self) -> Result<i64, CodecError> {
        let value = self.unsigned()?;
        Ok(((value >> 1) as i64) ^ -((value & 1) as i64))
    }

    pub fn wide(&mut self) -> Result<i128, CodecError> {
        let mut value = 0u128;
        for shift in (0..128).step_by(7) {
            let byte = self.byte()?;
            let bits = u128::from(byte & 0x7f);
            if shift == 126 && bits > 3 {
                return Err(CodecError::Overflow { what: self.what });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(((value >> 1) as i128) ^ -((value & 1) as i128));
            }
        }
        Err(CodecError::Overflow { what: self.what })
    }

    /// Eight bytes, the least first.
    pub fn unsigned64_le(&mut self) -> Result<u64, CodecError> {
        let (bytes, rest) = self
            .rest
            .split_first_chunk::<8>()
            .ok_or(CodecError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*bytes))
    }

    pub fn unsigned32(&mut self) -> Result<u32, CodecError> {
        u32::try_from(self.unsigned()?).map_err(|_| CodecError::Overflow { what: self.what })
    }

    pub fn signed32(&mut self) -> Result<i32, CodecError> {
        i32::try_from(self.signed()?).map_err(|_| CodecError::Overflow { what: self.what })
    }

    /// A count of items that take at least one byte each, so it can never exceed the bytes that are left.
    pub fn count(&mut self) -> Result<usize, CodecError> {
        let count = self.unsigned()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.rest.len() => Ok(count),
            _ => Err(CodecError::Truncated { what: self.what }),
        }
    }

    pub fn exact(&mut self, length: usize) -> Result<&'a [u8], CodecError> {
        if length > self.rest.len() {
            return Err(CodecError::Truncated { what: self.what });
        }
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(taken)
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], CodecError> {
        let length = self.count()?;
        self.exact(length)
    }

    pub fn owned_bytes(&mut self) -> Result<Bytes, CodecError> {
        self.bytes().map(Bytes::copy_from_slice)
    }

    pub fn optional_bytes(&mut self) -> Result<Option<&'a [u8]>, CodecError> {
        if self.bool()? {
            self.bytes().map(Some)
        } else {
            Ok(None)
        }
    }

    pub fn text(&mut self) -> Result<&'a str, CodecError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| CodecError::NotUtf8 { what: self.what })
    }

    pub fn unknown(&self, value: u64) -> CodecError {
        CodecError::UnknownCode {
            what: self.what,
            value,
        }
    }

    pub fn invalid(&self, detail: impl Into<String>) -> CodecError {
        CodecError::Invalid {
            what: self.what,
            detail: detail.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn everything_written_is_read_back(a: u64, b: i64, c: i128, d: Vec<u8>, e: Option<Vec<u8>>, f: bool) {
            let mut out = Vec::new();
            put_unsigned(&mut out, a);
            put_signed(&mut out, b);
            put_wide(&mut out, c);
            put_bytes(&mut out, &d);
            put_optional_bytes(&mut out, e.as_deref());
            put_bool(&mut out, f);
            let mut reader = Reader::new("test", &out);
            prop_assert_eq!(reader.unsigned().unwrap(), a);
            prop_assert_eq!(reader.signed().unwrap(), b);
            prop_assert_eq!(reader.wide().unwrap(), c);
            prop_assert_eq!(reader.bytes().unwrap(), &d[..]);
            prop_assert_eq!(reader.optional_bytes().unwrap(), e.as_deref());
            prop_assert_eq!(reader.bool().unwrap(), f);
            reader.finish().unwrap();
        }
    }

    #[test]
    fn extreme_numbers_survive() {
        for value in [i64::MIN, -1, 0, 1, i64::MAX] {
            let mut out = Vec::new();
            put_signed(&mut out, value);
            put_wide(&mut out, i128::from(value));
            put_wide(&mut out, if value < 0 { i128::MIN } else { i128::MAX });
            let mut reader = Reader::new("test", &out);
            assert_eq!(reader.signed(), Ok(value));
            assert_eq!(reader.wide(), Ok(i128::from(value)));
            assert_eq!(
                reader.wide(),
                Ok(if value < 0 { i128::MIN } else { i128::MAX })
            );
        }
    }

    #[test]
    fn a_length_beyond_the_bytes_is_an_error_and_not_an_allocation() {
        let mut out = Vec::new();
        put_unsigned(&mut out, u64::MAX);
        assert!(matches!(
            Reader::new("test", &out).bytes(),
            Err(CodecError::Truncated { .. })
        ));
        assert!(matches!(
            Reader::new("test", &[0xff; 11]).unsigned(),
            Err(CodecError::Overflow { .. })
        ));
        assert!(matches!(
            Reader::new("test", &[0x80]).unsigned(),
            Err(CodecError::Truncated { .. })
        ));
    }
}
