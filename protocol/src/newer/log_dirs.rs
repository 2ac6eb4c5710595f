//! DescribeLogDirs 5: the request of version 4, and one more field in each result, whether the directory is cordoned (KIP-1066).

use anyhow::Result;
use kafka_protocol::messages::{DescribeLogDirsRequest, DescribeLogDirsResponse};
use kafka_protocol::protocol::buf::{ByteBuf, ByteBufMut};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};

use super::{Newer, put_unsigned_varint};

/// The last version that the message crate has.
const CRATE_MAX: i16 = 4;

impl Decodable for Newer<DescribeLogDirsRequest> {
    fn decode<B: ByteBuf>(buf: &mut B, version: i16) -> Result<Self> {
        DescribeLogDirsRequest::decode(buf, version.min(CRATE_MAX)).map(Newer)
    }
}

/// A DescribeLogDirs response with what version 5 says of its directories.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cordonable {
    pub response: DescribeLogDirsResponse,
    /// Of every directory in the response: it takes no new partitions.
    pub is_cordoned: bool,
}

impl HeaderVersion for Cordonable {
    fn header_version(version: i16) -> i16 {
        DescribeLogDirsResponse::header_version(version.min(CRATE_MAX))
    }
}

impl Encodable for Cordonable {
    fn encode<B: ByteBufMut>(&self, buf: &mut B, version: i16) -> Result<()> {
        let response = &self.response;
        if version <= CRATE_MAX {
            return response.encode(buf, version);
        }
        buf.put_i32(response.throttle_time_ms);
        buf.put_i16(response.error_code);
        put_length(buf, response.results.len())?;
        for result in &response.results {
            buf.put_i16(result.error_code);
            put_length(buf, result.log_dir.len())?;
            buf.put_slice(result.log_dir.as_bytes());
            put_length(buf, result.topics.len())?;
            for topic in &result.topics {
                topic.encode(buf, CRATE_MAX)?;
            }
            buf.put_i64(result.total_bytes);
            buf.put_i64(result.usable_bytes);
            buf.put_u8(u8::from(self.is_cordoned));
            put_unsigned_varint(buf, 0);
        }
        put_unsigned_varint(buf, 0);
        Ok(())
    }

    fn compute_size(&self, version: i16) -> Result<usize> {
        let size = self.response.compute_size(version.min(CRATE_MAX))?;
        if version <= CRATE_MAX {
            return Ok(size);
        }
        // A boolean for each directory.
        Ok(size + self.response.results.len())
    }
}

/// A compact length is one more than what it counts.
fn put_length<B: ByteBufMut>(buf: &mut B, length: usize) -> Result<()> {
    let length = u32::try_from(length)?.saturating_add(1);
    put_unsigned_varint(buf, length);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::describe_log_dirs_response::{
        DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
    };
    use kafka_protocol::protocol::StrBytes;

    fn response() -> DescribeLogDirsResponse {
        let partition = DescribeLogDirsPartition::default()
            .with_partition_index(3)
            .with_partition_size(1 << 33);
        let topic = DescribeLogDirsTopic::default()
            .with_name(StrBytes::from_static_str("orders").into())
            .with_partitions(vec![partition]);
        let result = DescribeLogDirsResult::default()
            .with_log_dir(StrBytes::from_static_str("/data"))
            .with_topics(vec![topic])
            .with_total_bytes(100)
            .with_usable_bytes(7);
        DescribeLogDirsResponse::default().with_results(vec![result])
    }

    #[test]
    fn version_5_says_of_each_directory_whether_it_is_cordoned() {
        for is_cordoned in [false, true] {
            let answer = Cordonable {
                response: response(),
                is_cordoned,
            };
            let (mut five, mut four) = (Vec::new(), Vec::new());
            answer.encode(&mut five, 5).unwrap();
            answer.encode(&mut four, 4).unwrap();
            assert_eq!(five.len(), answer.compute_size(5).unwrap());
            assert_eq!(four.len(), answer.compute_size(4).unwrap());
            // Before the two empty lists of tagged fields that end the result and the response.
            four.insert(four.len() - 2, u8::from(is_cordoned));
            assert_eq!(five, four);
        }
    }

    #[test]
    fn version_5_is_written_as_kafka_writes_it() {
        let answer = Cordonable {
            response: response(),
            is_cordoned: true,
        };
        let mut written = Vec::new();
        answer.encode(&mut written, 5).unwrap();
        let kafkas = [
            &[0; 6][..],
            b"\x02\x00\x00\x06/data\x02\x07orders\x02\x00\x00\x00\x03\x00\x00\x00\x02",
            &[0; 22],
            &[100],
            &[0; 7],
            b"\x07\x01\x00\x00",
        ];
        assert_eq!(written, kafkas.concat());
    }
}
