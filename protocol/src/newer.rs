//! Messages in versions that the message crate does not know yet, in the crate's own types.
//!
//! [`Newer`] reads and writes what the crate can by the crate, and the versions after that here. When the crate catches up, a
//! message leaves this module and nothing else changes.

mod log_dirs;
mod markers;
mod offsets;
mod voters;

pub use log_dirs::Cordonable;
pub use markers::{TxnMarker, TxnMarkers};
pub use voters::VoterAddition;

use anyhow::{Result, bail, ensure};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::protocol::buf::{ByteBuf, ByteBufMut};
use uuid::Uuid;

/// A message that is also spoken in versions which the message crate does not have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Newer<M>(pub M);

fn uuid<B: ByteBuf>(buf: &mut B) -> Result<Uuid> {
    Ok(Uuid::from_u128(buf.try_get_u128()?))
}

fn unsigned_varint<B: ByteBuf>(buf: &mut B) -> Result<u32> {
    let mut value = 0u32;
    for shift in [0, 7, 14, 21, 28] {
        let byte = buf.try_get_u8()?;
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a varint is longer than 5 bytes")
}

fn put_unsigned_varint<B: ByteBufMut>(buf: &mut B, mut value: u32) {
    while value >= 0x80 {
        buf.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    buf.put_u8(value as u8);
}

/// The length of a string or an array; `None` for null.
fn compact_length<B: ByteBuf>(buf: &mut B) -> Result<Option<usize>> {
    let length = unsigned_varint(buf)?.checked_sub(1);
    Ok(length.map(|length| length as usize))
}

fn nullable_string<B: ByteBuf>(buf: &mut B) -> Result<Option<StrBytes>> {
    let Some(length) = compact_length(buf)? else {
        return Ok(None);
    };
    Ok(Some(StrBytes::from_utf8(buf.try_get_bytes(length)?)?))
}

fn string<B: ByteBuf>(buf: &mut B) -> Result<StrBytes> {
    match nullable_string(buf)? {
        Some(string) => Ok(string),
        None => bail!("a string is null that must not be"),
    }
}

/// A compact array. The request's guard has bounded the count; it is compared with the bytes that remain all the same.
fn nullable_array<T, B: ByteBuf>(
    buf: &mut B,
    mut element: impl FnMut(&mut B) -> Result<T>,
) -> Result<Option<Vec<T>>> {
    let Some(count) = compact_length(buf)? else {
        return Ok(None);
    };
    ensure!(
        count <= buf.remaining(),
        "an array of {count} elements does not fit the bytes that remain"
    );
    let mut elements = Vec::new();
    for _ in 0..count {
        elements.push(element(buf)?);
    }
    Ok(Some(elements))
}

fn array<T, B: ByteBuf>(buf: &mut B, element: impl FnMut(&mut B) -> Result<T>) -> Result<Vec<T>> {
    match nullable_array(buf, element)? {
        Some(elements) => Ok(elements),
        None => bail!("an array is null that must not be"),
    }
}

/// Passes over tagged fields: none is defined in the messages of this module.
fn skip_tags<B: ByteBuf>(buf: &mut B) -> Result<()> {
    for _ in 0..unsigned_varint(buf)? {
        let _tag = unsigned_varint(buf)?;
        let size = unsigned_varint(buf)?;
        buf.try_get_bytes(size as usize)?;
    }
    Ok(())
}
