//! Walks a request's body before the message crate decodes it, and checks that every length fits the bytes that are there.
//!
//! The crate calls `Vec::with_capacity` with the count from the wire, so eight hostile bytes would abort the process. After this walk a
//! decode allocates no more than a small multiple of the frame. Bytes after the body are tolerated, as Kafka does.

mod schema;
#[cfg(test)]
mod tests;

use crate::versions::Api;
use schema::{Field, Kind};

/// Elements of arrays and tagged fields in one request.
pub const ELEMENTS_MAX: usize = 250_000;
/// Tagged fields from the future that any request may have.
const UNKNOWN_TAGS_FREE: usize = 64;
/// Beyond those, bytes of the body for each: the message crate keeps them in a map whose first entry takes a node of 408 bytes, which
/// would be the greatest multiple of all. A partition of any request is longer than this.
const UNKNOWN_TAG_BODY_BYTES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    #[error("length or count {0} does not fit the bytes that remain")]
    Length(i64),
    #[error("a text of {0} bytes, more than 32767")]
    Text(i64),
    #[error("request ends inside a field")]
    Truncated,
    #[error("more than {ELEMENTS_MAX} elements")]
    Elements,
    #[error("a varint is longer than 5 bytes")]
    Varint,
    #[error("tagged field {0} does not fill its size")]
    Tag(u32),
    #[error("more unknown tagged fields than a request of this size may have")]
    UnknownTags,
    #[error("no layout for api key {0}")]
    NoLayout(i16),
}

/// Checks the body of a request. `version` is the one on the wire, which the caller has found to be served.
pub fn check_request(api: &Api, version: i16, body: &[u8]) -> Result<(), GuardError> {
    let fields = schema::fields(api.key).ok_or(GuardError::NoLayout(api.key))?;
    let mut walk = Walk {
        version,
        flexible: api.is_flexible(version),
        elements: 0,
        unknown_tags_left: unknown_tags_max(body),
        rest: body,
    };
    walk.structure(fields)
}

/// Checks the tagged fields of a header; returns how many bytes they take.
pub fn check_tags(bytes: &[u8]) -> Result<usize, GuardError> {
    let mut walk = Walk {
        version: 0,
        flexible: true,
        elements: 0,
        unknown_tags_left: unknown_tags_max(bytes),
        rest: bytes,
    };
    walk.structure(&[])?;
    Ok(bytes.len() - walk.rest.len())
}

struct Walk<'a> {
    version: i16,
    flexible: bool,
    elements: usize,
    unknown_tags_left: usize,
    rest: &'a [u8],
}

fn unknown_tags_max(body: &[u8]) -> usize {
    UNKNOWN_TAGS_FREE + body.len() / UNKNOWN_TAG_BODY_BYTES
}

impl Walk<'_> {
    /// Recursion is as deep as the schema, not as the bytes.
    fn structure(&mut self, fields: &'static [Field]) -> Result<(), GuardError> {
        for field in fields {
            if field.tag.is_none() && field.is_in(self.version) {
                self.value(&field.kind)?;
            }
        }
        if self.flexible {
            self.tags(fields)
        } else {
            Ok(())
        }
    }

    fn value(&mut self, kind: &Kind) -> Result<(), GuardError> {
        match *kind {
            Kind::Fixed(bytes) => self.skip(bytes),
            Kind::Text => {
                let length = if self.flexible {
                    self.compact()?
                } else {
                    i64::from(i16::from_be_bytes(self.take()?))
                };
                // Kafka has no longer ones, whatever the encoding could say.
                if length > i64::from(i16::MAX) {
                    return Err(GuardError::Text(length));
                }
                self.skip_length(length)
            }
            Kind::Blob => {
                let length = self.length()?;
                self.skip_length(length)
            }
            Kind::Array(fields) => self.each(1, |walk| walk.structure(fields)),
            Kind::Texts => self.each(1, |walk| walk.value(&Kind::Text)),
            Kind::Numbers(bytes) => self.each(bytes, |walk| walk.skip(bytes)),
            Kind::Structure(fields) => self.structure(fields),
            Kind::NullableStructure(fields) => match i8::from_be_bytes(self.take()?) {
                ..0 => Ok(()),
                _ => self.structure(fields),
            },
        }
    }

    fn each(
        &mut self,
        element_bytes_min: usize,
        mut element: impl FnMut(&mut Self) -> Result<(), GuardError>,
    ) -> Result<(), GuardError> {
        let length = self.length()?;
        // -1 is null, which the decoder judges.
        let count = match usize::try_from(length) {
            Ok(count) => count,
            Err(_) if length == -1 => return Ok(()),
            Err(_) => return Err(GuardError::Length(length)),
        };
        if count > self.rest.len() / element_bytes_min {
            return Err(GuardError::Length(length));
        }
        self.count(count)?;
        for _ in 0..count {
            element(self)?;
        }
        Ok(())
    }

    fn tags(&mut self, fields: &'static [Field]) -> Result<(), GuardError> {
        let count = self.unsigned()?;
        // A tagged field takes two bytes at least.
        if count as usize > self.rest.len() / 2 {
            return Err(GuardError::Length(i64::from(count)));
        }
        self.count(count as usize)?;
        for _ in 0..count {
            let tag = self.unsigned()?;
            let size = self.unsigned()?;
            let (value, after) = self
                .rest
                .split_at_checked(size as usize)
                .ok_or(GuardError::Length(i64::from(size)))?;
            // The decoder reads known tags by their type and ignores the size, so both must agree.
            if let Some(field) = fields
                .iter()
                .find(|field| field.tag == Some(tag) && field.is_in(self.version))
            {
                self.rest = value;
                self.value(&field.kind)?;
                if !self.rest.is_empty() {
                    return Err(GuardError::Tag(tag));
                }
            } else {
                self.unknown_tags_left = self
                    .unknown_tags_left
                    .checked_sub(1)
                    .ok_or(GuardError::UnknownTags)?;
            }
            self.rest = after;
        }
        Ok(())
    }

    fn count(&mut self, more: usize) -> Result<(), GuardError> {
        self.elements = self.elements.saturating_add(more);
        if self.elements > ELEMENTS_MAX {
            Err(GuardError::Elements)
        } else {
            Ok(())
        }
    }

    /// The length of bytes and arrays.
    fn length(&mut self) -> Result<i64, GuardError> {
        if self.flexible {
            self.compact()
        } else {
            Ok(i64::from(i32::from_be_bytes(self.take()?)))
        }
    }

    fn compact(&mut self) -> Result<i64, GuardError> {
        Ok(i64::from(self.unsigned()?) - 1)
    }

    fn unsigned(&mut self) -> Result<u32, GuardError> {
        let mut value = 0u32;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.take()?;
            if shift == 28 && byte > 0x0f {
                return Err(GuardError::Varint);
            }
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(GuardError::Varint)
    }

    fn skip_length(&mut self, length: i64) -> Result<(), GuardError> {
        match usize::try_from(length) {
            Ok(bytes) => self.skip(bytes).map_err(|_| GuardError::Length(length)),
            Err(_) if length == -1 => Ok(()),
            Err(_) => Err(GuardError::Length(length)),
        }
    }

    fn skip(&mut self, bytes: usize) -> Result<(), GuardError> {
        self.rest = self.rest.get(bytes..).ok_or(GuardError::Truncated)?;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], GuardError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(GuardError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }
}
