//! Ids in the form in which Kafka writes them: 16 bytes as URL-safe base64 without padding.

use uuid::Uuid;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Formats as Kafka's `Uuid.toString`.
pub fn to_base64(id: Uuid) -> String {
    let bits = id.as_u128();
    // 128 bits are 21 groups of six and one of two, which is padded with zeros on the right.
    (0..22u32)
        .map(|group| {
            let shift = 122 - 6 * i64::from(group);
            let value = if shift >= 0 {
                (bits >> shift) & 0x3f
            } else {
                (bits << -shift) & 0x3f
            };
            char::from(ALPHABET[value as usize])
        })
        .collect()
}

/// Reads what [`to_base64`] wrote.
pub fn from_base64(text: &str) -> Option<Uuid> {
    if text.len() != 22 {
        return None;
    }
    let mut bits: u128 = 0;
    for (group, byte) in text.bytes().enumerate() {
        let value = ALPHABET.iter().position(|letter| *letter == byte)? as u128;
        bits = match group {
            21 => (bits << 2) | (value >> 4),
            _ => (bits << 6) | value,
        };
    }
    let id = Uuid::from_u128(bits);
    (to_base64(id) == text).then_some(id)
}

/// Ids in JSON, for `#[serde(with = "…")]`.
pub mod base64 {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use uuid::Uuid;

    pub fn serialize<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::to_base64(*id))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::from_base64(&text)
            .ok_or_else(|| de::Error::custom(format!("'{text}' is not an id in base64")))
    }
}

/// A new id of a topic, a directory or a cluster. Kafka never gives one whose text begins with a dash, which tools take for a flag.
pub fn new_id() -> Uuid {
    loop {
        let id = Uuid::new_v4();
        if !to_base64(id).starts_with('-') && id.as_u128() > u128::from(u32::MAX) {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_reads_back() {
        for bits in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
            let id = Uuid::from_u128(bits);
            assert_eq!(from_base64(&to_base64(id)), Some(id));
        }
        for text in [
            "",
            "AAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAAAB",
            "AAAAAAAAAAAAAAAAAAAA+A",
        ] {
            assert_eq!(from_base64(text), None, "{text}");
        }
    }

    #[test]
    fn ids_read_as_kafka_writes_them() {
        assert_eq!(to_base64(Uuid::from_u128(0)), "AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(to_base64(Uuid::from_u128(1)), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(
            to_base64(Uuid::from_u128(u128::MAX)),
            "_____________________w"
        );
    }
}
