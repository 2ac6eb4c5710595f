//! Damage to good bytes, the same on every machine for the same seed.

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Less than `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// Lengths and counts as the protocol writes them, most of them lies.
const CLAIMS: [&[u8]; 10] = [
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\x00\x0f\xff\xff",
    b"\x7f\xff",
    b"\xff\xff",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\x07",
    b"\x80\x80\x04",
    b"\x00",
];

/// Does one to four kinds of harm to `bytes`, none of it before `from`.
pub fn damage(bytes: &mut Vec<u8>, from: usize, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.len() <= from {
            return;
        }
        let at = from + random.below(bytes.len() - from);
        match random.below(7) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => {
                let claim = CLAIMS[random.below(CLAIMS.len())];
                let end = (at + claim.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&claim[..end - at]);
            }
            4 => {
                let noise = random.below(16);
                let noise = random.bytes(noise);
                bytes.splice(at..at, noise);
            }
            5 => {
                let end = at + random.below(bytes.len() - at);
                bytes.drain(at..end);
            }
            _ => {
                let end = at + random.below((bytes.len() - at).min(64));
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
}
