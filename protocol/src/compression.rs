//! The four codecs of record batches, each with a limit on what it may unpack.
//!
//! No claimed length is trusted: output grows as it is produced and stops at the limit, so a few bytes cannot claim memory.
//! Snappy comes in two shapes: xerial frames (Java, librdkafka), which we write, and one raw block, which some clients send.
//!
//! ```text
//! xerial: 82 'SNAPPY' 00 │ version i32 1 │ compatible i32 1 │ ( block length i32 │ raw snappy block )…
//! ```

use std::io::{Read, Write};

/// Codec of a batch's records, by its number in the batch's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compression {
    None = 0,
    Gzip = 1,
    Snappy = 2,
    Lz4 = 3,
    Zstd = 4,
}

impl Compression {
    pub const ALL: [Compression; 5] = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];

    pub fn from_code(code: i16) -> Option<Compression> {
        Compression::ALL
            .into_iter()
            .find(|codec| codec.code() == code)
    }

    pub fn code(self) -> i16 {
        self as i16
    }

    /// The name in producer and topic configs (`compression.type`).
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }
}

/// Why bytes could not be packed or unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    #[error("{} data unpacks to more than {limit} bytes", codec.name())]
    TooLarge { codec: Compression, limit: usize },
    #[error("{} data is malformed: {reason}", codec.name())]
    Malformed { codec: Compression, reason: String },
    #[error("{} failed to compress: {reason}", codec.name())]
    Compress { codec: Compression, reason: String },
}

const XERIAL_MAGIC: &[u8; 8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_BYTES: usize = 16;
/// The block size of xerial's `SnappyOutputStream`.
const XERIAL_BLOCK_BYTES: usize = 32 * 1024;
/// A snappy copy yields 64 bytes from 3 at best.
const SNAPPY_EXPANSION_MAX: usize = 22;
/// zstd's own limit for decoders; the highest level that Kafka allows (22) needs it.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Unpacks `input` to at most `bytes_max` bytes.
pub fn decompress(
    codec: Compression,
    input: &[u8],
    bytes_max: usize,
) -> Result<Vec<u8>, CompressionError> {
    match codec {
        Compression::None if input.len() > bytes_max => Err(CompressionError::TooLarge {
            codec,
            limit: bytes_max,
        }),
        Compression::None => Ok(input.to_vec()),
        Compression::Gzip => read_limited(
            codec,
            flate2::read::MultiGzDecoder::new(input),
            input.len(),
            bytes_max,
        ),
        Compression::Snappy => decompress_snappy(input, bytes_max),
        Compression::Lz4 => read_limited(
            codec,
            lz4_flex::frame::FrameDecoder::new(input),
            input.len(),
            bytes_max,
        ),
        Compression::Zstd => {
            let malformed = |error: std::io::Error| CompressionError::Malformed {
                codec,
                reason: error.to_string(),
            };
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(malformed)?;
            decoder
                .window_log_max(ZSTD_WINDOW_LOG_MAX)
                .map_err(malformed)?;
            read_limited(codec, decoder, input.len(), bytes_max)
        }
    }
}

/// Packs `input` as Kafka's own clients read it.
pub fn compress(codec: Compression, input: &[u8]) -> Result<Vec<u8>, CompressionError> {
    let failed = |reason: String| CompressionError::Compress { codec, reason };
    match codec {
        Compression::None => Ok(input.to_vec()),
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder
                .write_all(input)
                .and_then(|()| encoder.finish())
                .map_err(|error| failed(error.to_string()))
        }
        Compression::Snappy => compress_snappy(input),
        Compression::Lz4 => {
            // Independent 64 KiB blocks without content checksum are what Kafka's own Java codec writes.
            let frame = lz4_flex::frame::FrameInfo::new()
                .block_size(lz4_flex::frame::BlockSize::Max64KB)
                .block_mode(lz4_flex::frame::BlockMode::Independent);
            let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(frame, Vec::new());
            encoder
                .write_all(input)
                .map_err(|error| failed(error.to_string()))?;
            encoder.finish().map_err(|error| failed(error.to_string()))
        }
        Compression::Zstd => zstd::stream::encode_all(input, zstd::DEFAULT_COMPRESSION_LEVEL)
            .map_err(|error| failed(error.to_string())),
    }
}

fn read_limited(
    codec: Compression,
    decoder: impl Read,
    input_bytes: usize,
    bytes_max: usize,
) -> Result<Vec<u8>, CompressionError> {
    let mut out = Vec::with_capacity(input_bytes.saturating_mul(3).min(bytes_max));
    decoder
        .take((bytes_max as u64).saturating_add(1))
        .read_to_end(&mut out)
        .map_err(|error| CompressionError::Malformed {
            codec,
            reason: error.to_string(),
        })?;
    if out.len() > bytes_max {
        return Err(CompressionError::TooLarge {
            codec,
            limit: bytes_max,
        });
    }
    Ok(out)
}

fn decompress_snappy(input: &[u8], bytes_max: usize) -> Result<Vec<u8>, CompressionError> {
    let mut out = Vec::new();
    if !input.starts_with(XERIAL_MAGIC) {
        append_snappy_block(&mut out, input, bytes_max)?;
        return Ok(out);
    }
    let Some(mut rest) = input.get(XERIAL_HEADER_BYTES..) else {
        return Err(malformed_snappy("xerial header is cut off"));
    };
    while !rest.is_empty() {
        let Some((length, after)) = rest.split_first_chunk::<4>() else {
            return Err(malformed_snappy("xerial block length is cut off"));
        };
        let length = u32::from_be_bytes(*length) as usize;
        let Some((block, after)) = after.split_at_checked(length) else {
            return Err(malformed_snappy("xerial block is cut off"));
        };
        append_snappy_block(&mut out, block, bytes_max)?;
        rest = after;
    }
    Ok(out)
}

fn append_snappy_block(
    out: &mut Vec<u8>,
    block: &[u8],
    bytes_max: usize,
) -> Result<(), CompressionError> {
    let claimed =
        snap::raw::decompress_len(block).map_err(|error| malformed_snappy(&error.to_string()))?;
    if claimed > block.len().saturating_mul(SNAPPY_EXPANSION_MAX) {
        return Err(malformed_snappy(
            "block claims more than its bytes can hold",
        ));
    }
    if claimed > bytes_max - out.len() {
        return Err(CompressionError::TooLarge {
            codec: Compression::Snappy,
            limit: bytes_max,
        });
    }
    let start = out.len();
    out.resize(start + claimed, 0);
    let written = snap::raw::Decoder::new()
        .decompress(block, &mut out[start..])
        .map_err(|error| malformed_snappy(&error.to_string()))?;
    out.truncate(start + written);
    Ok(())
}

fn compress_snappy(input: &[u8]) -> Result<Vec<u8>, CompressionError> {
    let mut out = Vec::with_capacity(XERIAL_HEADER_BYTES + input.len() / 2);
    out.extend_from_slice(XERIAL_MAGIC);
    out.extend_from_slice(&1i32.to_be_bytes());
    out.extend_from_slice(&1i32.to_be_bytes());
    let mut encoder = snap::raw::Encoder::new();
    for block in input.chunks(XERIAL_BLOCK_BYTES) {
        let packed = encoder
            .compress_vec(block)
            .map_err(|error| CompressionError::Compress {
                codec: Compression::Snappy,
                reason: error.to_string(),
            })?;
        out.extend_from_slice(&(packed.len() as u32).to_be_bytes());
        out.extend_from_slice(&packed);
    }
    Ok(out)
}

fn malformed_snappy(reason: &str) -> CompressionError {
    CompressionError::Malformed {
        codec: Compression::Snappy,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_codec_gives_back_what_it_took() {
        let text: Vec<u8> = (0..200_000u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        for codec in Compression::ALL {
            for input in [&[][..], b"x", &text] {
                let packed = compress(codec, input).unwrap();
                assert_eq!(
                    decompress(codec, &packed, input.len()).unwrap(),
                    input,
                    "{codec:?}"
                );
            }
        }
    }

    #[test]
    fn output_past_the_limit_is_an_error() {
        let zeros = vec![0; 1 << 20];
        for codec in Compression::ALL {
            let packed = compress(codec, &zeros).unwrap();
            let result = decompress(codec, &packed, zeros.len() - 1);
            assert_eq!(
                result,
                Err(CompressionError::TooLarge {
                    codec,
                    limit: zeros.len() - 1
                })
            );
        }
    }

    #[test]
    fn a_raw_snappy_block_is_read_and_its_claim_is_not_trusted() {
        let raw = snap::raw::Encoder::new()
            .compress_vec(b"hello hello hello")
            .unwrap();
        assert_eq!(
            decompress(Compression::Snappy, &raw, 100).unwrap(),
            b"hello hello hello"
        );
        let claims_4_gib = [0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0];
        let result = decompress(Compression::Snappy, &claims_4_gib, usize::MAX);
        assert!(matches!(result, Err(CompressionError::Malformed { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn hostile_bytes_are_errors_or_bounded(codec in 0i16..5, mut input in proptest::collection::vec(any::<u8>(), 0..200), start in any::<bool>()) {
            let codec = Compression::from_code(codec).unwrap();
            if start {
                let mut good = compress(codec, b"some bytes to begin with").unwrap();
                good.truncate(12);
                good.append(&mut input);
                input = good;
            }
            if let Ok(out) = decompress(codec, &input, 4096) {
                prop_assert!(out.len() <= 4096);
            }
        }
    }
}
