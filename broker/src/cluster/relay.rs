//! Requests that go by a third broker, since the link between two is cut.
//!
//! ```text
//! request   8 │ to i32 │ milliseconds u32 │ the request
//! answer    1 │ the answer        or 0: it was not had
//! ```
//!
//! Numbers are big-endian. The third asks directly or not at all, so that nothing goes in circles.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Names a relayed request among those of `cluster::request`.
pub(super) const RELAY: u8 = 8;

const HAD: u8 = 1;
const NOT_HAD: u8 = 0;

/// What a third broker is asked.
pub(super) fn request(to: i32, time_max: Duration, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(payload.len() + 9);
    bytes.put_u8(RELAY);
    bytes.put_i32(to);
    bytes.put_u32(u32::try_from(time_max.as_millis()).unwrap_or(u32::MAX));
    bytes.put_slice(payload);
    bytes.freeze()
}

/// Whom to ask, how long to wait, and what to ask; of what follows the kind.
pub(super) fn decode(mut bytes: Bytes) -> Option<(i32, Duration, Bytes)> {
    let to = bytes.try_get_i32().ok()?;
    let millis = bytes.try_get_u32().ok()?;
    // Not again by another.
    let is_relayed = bytes.first() == Some(&RELAY);
    (!is_relayed).then(|| (to, Duration::from_millis(millis.into()), bytes))
}

/// What the third answers.
pub(super) fn answered(answer: Option<Bytes>) -> Bytes {
    let Some(answer) = answer else {
        return Bytes::from_static(&[NOT_HAD]);
    };
    let mut bytes = BytesMut::with_capacity(answer.len() + 1);
    bytes.put_u8(HAD);
    bytes.put_slice(&answer);
    bytes.freeze()
}

/// The answer of whom the third asked.
pub(super) fn answer(mut bytes: Bytes) -> Option<Bytes> {
    match bytes.try_get_u8() {
        Ok(HAD) => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_read_back_as_they_were_written() {
        let mut relayed = request(7, Duration::from_millis(1_500), b"ask");
        assert_eq!(relayed.get_u8(), RELAY);
        let expected = (7, Duration::from_millis(1_500), Bytes::from_static(b"ask"));
        assert_eq!(decode(relayed), Some(expected));
        assert_eq!(decode(Bytes::from_static(&[0, 0, 0, 7, 0])), None);
        let twice = request(7, Duration::ZERO, &request(8, Duration::ZERO, b"ask"));
        assert_eq!(decode(twice.slice(1..)), None);
        let told = Bytes::from_static(b"told");
        assert_eq!(answer(answered(Some(told.clone()))), Some(told));
        assert_eq!(answer(answered(None)), None);
        assert_eq!(answer(Bytes::new()), None);
    }
}
