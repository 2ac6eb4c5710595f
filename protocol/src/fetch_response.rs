//! Fetch responses, versions 4 to 18, written as header bytes with the record slices between them: records are never copied.
//!
//! ```text
//! piece 0: size │ correlation id │ … │ first partition's fields │ length of its records
//! piece 1…: its records, as the log gave them
//! next piece: the fields from there to the next records, and so on
//! ```
//! Flexible from 12, topic ids from 13 (KIP-516), the leader's whereabouts from 12 and 16 (KIP-595, KIP-951).

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

const FLEXIBLE_FROM: i16 = 12;

/// The answer to one Fetch request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchResponse {
    pub throttle_time_ms: i32,
    pub error_code: i16,
    pub session_id: i32,
    pub topics: Vec<FetchTopic>,
    /// Sent from version 16 on, and only when there are any.
    pub node_endpoints: Vec<NodeEndpoint>,
}

/// `name` is written up to version 12, `topic_id` from 13 on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchTopic {
    pub name: StrBytes,
    pub topic_id: Uuid,
    pub partitions: Vec<FetchPartition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchPartition {
    pub partition_index: i32,
    pub error_code: i16,
    pub high_watermark: i64,
    pub last_stable_offset: i64,
    pub log_start_offset: i64,
    /// `None` for a read_uncommitted reader.
    pub aborted_transactions: Option<Vec<AbortedTransaction>>,
    /// -1 for none.
    pub preferred_read_replica: i32,
    pub diverging_epoch: Option<DivergingEpoch>,
    pub current_leader: Option<CurrentLeader>,
    /// Whole batches one after another; empty for no records.
    pub records: Vec<Bytes>,
}

impl Default for FetchPartition {
    /// All offsets and the preferred replica -1: what an answer with an error says.
    fn default() -> FetchPartition {
        FetchPartition {
            partition_index: 0,
            error_code: 0,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start_offset: -1,
            aborted_transactions: None,
            preferred_read_replica: -1,
            diverging_epoch: None,
            current_leader: None,
            records: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AbortedTransaction {
    pub producer_id: i64,
    pub first_offset: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DivergingEpoch {
    pub epoch: i32,
    pub end_offset: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CurrentLeader {
    pub leader_id: i32,
    pub leader_epoch: i32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeEndpoint {
    pub node_id: i32,
    pub host: StrBytes,
    pub port: i32,
    pub rack: Option<StrBytes>,
}

/// A response does not fit the protocol's length fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("fetch response of {0} bytes or elements does not fit its length field")]
pub struct TooLong(pub usize);

impl FetchResponse {
    /// The whole frame, size field included, in the pieces to write one after another.
    pub fn encode(&self, correlation_id: i32, version: i16) -> Result<Vec<Bytes>, TooLong> {
        let mut writer = Writer {
            flexible: version >= FLEXIBLE_FROM,
            out: BytesMut::new(),
            cuts: Vec::new(),
            records_bytes: 0,
        };
        writer.out.put_i32(0);
        writer.out.put_i32(correlation_id);
        writer.no_tags();
        writer.out.put_i32(self.throttle_time_ms);
        if version >= 7 {
            writer.out.put_i16(self.error_code);
            writer.out.put_i32(self.session_id);
        }
        writer.length(self.topics.len())?;
        for topic in &self.topics {
            if version >= 13 {
                writer.out.put_slice(topic.topic_id.as_bytes());
            } else {
                writer.text(Some(&topic.name))?;
            }
            writer.length(topic.partitions.len())?;
            for partition in &topic.partitions {
                writer.partition(partition, version)?;
            }
            writer.no_tags();
        }
        if version >= 16 && !self.node_endpoints.is_empty() {
            writer.node_endpoints(&self.node_endpoints)?;
        } else {
            writer.no_tags();
        }
        writer.finish()
    }
}

struct Writer<'a> {
    flexible: bool,
    out: BytesMut,
    /// Positions in `out` at which records belong.
    cuts: Vec<(usize, &'a [Bytes])>,
    records_bytes: usize,
}

impl<'a> Writer<'a> {
    fn partition(&mut self, partition: &'a FetchPartition, version: i16) -> Result<(), TooLong> {
        self.out.put_i32(partition.partition_index);
        self.out.put_i16(partition.error_code);
        self.out.put_i64(partition.high_watermark);
        self.out.put_i64(partition.last_stable_offset);
        if version >= 5 {
            self.out.put_i64(partition.log_start_offset);
        }
        match &partition.aborted_transactions {
            None if self.flexible => self.out.put_u8(0),
            None => self.out.put_i32(-1),
            Some(aborted) => {
                self.length(aborted.len())?;
                for transaction in aborted {
                    self.out.put_i64(transaction.producer_id);
                    self.out.put_i64(transaction.first_offset);
                    self.no_tags();
                }
            }
        }
        if version >= 11 {
            self.out.put_i32(partition.preferred_read_replica);
        }
        let bytes = partition.records.iter().map(Bytes::len).sum();
        self.length(bytes)?;
        if bytes > 0 {
            self.cuts.push((self.out.len(), &partition.records));
            self.records_bytes += bytes;
        }
        if self.flexible {
            let tags = u8::from(partition.diverging_epoch.is_some())
                + u8::from(partition.current_leader.is_some());
            self.out.put_u8(tags);
            if let Some(diverging) = partition.diverging_epoch {
                self.out.put_slice(&[0, 13]);
                self.out.put_i32(diverging.epoch);
                self.out.put_i64(diverging.end_offset);
                self.no_tags();
            }
            if let Some(leader) = partition.current_leader {
                self.out.put_slice(&[1, 9]);
                self.out.put_i32(leader.leader_id);
                self.out.put_i32(leader.leader_epoch);
                self.no_tags();
            }
        }
        Ok(())
    }

    fn node_endpoints(&mut self, endpoints: &[NodeEndpoint]) -> Result<(), TooLong> {
        let mut field = Writer {
            flexible: true,
            out: BytesMut::new(),
            cuts: Vec::new(),
            records_bytes: 0,
        };
        field.length(endpoints.len())?;
        for endpoint in endpoints {
            field.out.put_i32(endpoint.node_id);
            field.text(Some(&endpoint.host))?;
            field.out.put_i32(endpoint.port);
            field.text(endpoint.rack.as_deref())?;
            field.no_tags();
        }
        self.out.put_slice(&[1, 0]);
        self.unsigned(u32::try_from(field.out.len()).map_err(|_| TooLong(field.out.len()))?);
        self.out.put_slice(&field.out);
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Bytes>, TooLong> {
        let total = self.out.len() - 4 + self.records_bytes;
        let size = i32::try_from(total).map_err(|_| TooLong(total))?;
        self.out[..4].copy_from_slice(&size.to_be_bytes());
        let mut pieces = Vec::with_capacity(2 * self.cuts.len() + 1);
        let mut written = 0;
        let out = self.out.freeze();
        for (at, records) in self.cuts {
            pieces.push(out.slice(written..at));
            pieces.extend(records.iter().filter(|slice| !slice.is_empty()).cloned());
            written = at;
        }
        if written < out.len() {
            pieces.push(out.slice(written..));
        }
        Ok(pieces)
    }

    /// The length of an array or of bytes.
    fn length(&mut self, length: usize) -> Result<(), TooLong> {
        let value = i32::try_from(length).map_err(|_| TooLong(length))?;
        if self.flexible {
            self.unsigned(value as u32 + 1);
        } else {
            self.out.put_i32(value);
        }
        Ok(())
    }

    fn text(&mut self, text: Option<&str>) -> Result<(), TooLong> {
        match text {
            None if self.flexible => self.out.put_u8(0),
            None => self.out.put_i16(-1),
            Some(text) => {
                let length = i16::try_from(text.len()).map_err(|_| TooLong(text.len()))?;
                if self.flexible {
                    self.unsigned(length as u32 + 1);
                } else {
                    self.out.put_i16(length);
                }
                self.out.put_slice(text.as_bytes());
            }
        }
        Ok(())
    }

    fn no_tags(&mut self) {
        if self.flexible {
            self.out.put_u8(0);
        }
    }

    fn unsigned(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.out.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.put_u8(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::encode_response;
    use kafka_protocol::messages::fetch_response as theirs;
    use kafka_protocol::messages::{BrokerId, ProducerId, TopicName};

    #[test]
    fn every_version_is_byte_for_byte_the_message_crates_and_copies_no_records() {
        let records = Bytes::from(vec![7; 300]);
        for version in 4..=18 {
            let partition = FetchPartition {
                partition_index: 3,
                high_watermark: 10,
                last_stable_offset: 9,
                log_start_offset: if version >= 5 { 1 } else { -1 },
                aborted_transactions: Some(vec![AbortedTransaction {
                    producer_id: 5,
                    first_offset: 6,
                }]),
                preferred_read_replica: if version >= 11 { 2 } else { -1 },
                diverging_epoch: (version >= 12).then_some(DivergingEpoch {
                    epoch: 4,
                    end_offset: 8,
                }),
                current_leader: (version >= 12).then_some(CurrentLeader {
                    leader_id: 1,
                    leader_epoch: 7,
                }),
                records: vec![records.slice(..100), records.slice(100..)],
                ..FetchPartition::default()
            };
            let empty = FetchPartition {
                error_code: 6,
                ..FetchPartition::default()
            };
            let ours = FetchResponse {
                throttle_time_ms: 11,
                error_code: 0,
                session_id: if version >= 7 { 77 } else { 0 },
                topics: vec![FetchTopic {
                    name: StrBytes::from_static_str("orders"),
                    topic_id: Uuid::from_u128(99),
                    partitions: vec![partition.clone(), empty],
                }],
                node_endpoints: vec![NodeEndpoint {
                    node_id: 1,
                    host: StrBytes::from_static_str("localhost"),
                    port: 9092,
                    rack: None,
                }],
            };

            let mut first = theirs::PartitionData::default()
                .with_partition_index(3)
                .with_high_watermark(10)
                .with_last_stable_offset(9)
                .with_log_start_offset(partition.log_start_offset)
                .with_aborted_transactions(Some(vec![
                    theirs::AbortedTransaction::default()
                        .with_producer_id(ProducerId(5))
                        .with_first_offset(6),
                ]))
                .with_preferred_read_replica(BrokerId(partition.preferred_read_replica))
                .with_records(Some(records.clone()));
            if version >= 12 {
                first = first
                    .with_diverging_epoch(
                        theirs::EpochEndOffset::default()
                            .with_epoch(4)
                            .with_end_offset(8),
                    )
                    .with_current_leader(
                        theirs::LeaderIdAndEpoch::default()
                            .with_leader_id(BrokerId(1))
                            .with_leader_epoch(7),
                    );
            }
            let second = theirs::PartitionData::default()
                .with_error_code(6)
                .with_high_watermark(-1)
                .with_last_stable_offset(-1)
                .with_log_start_offset(-1)
                .with_aborted_transactions(None)
                .with_preferred_read_replica(BrokerId(-1))
                .with_records(Some(Bytes::new()));
            let mut response = kafka_protocol::messages::FetchResponse::default()
                .with_throttle_time_ms(11)
                .with_session_id(ours.session_id)
                .with_responses(vec![
                    theirs::FetchableTopicResponse::default()
                        .with_topic(TopicName(StrBytes::from_static_str("orders")))
                        .with_topic_id(Uuid::from_u128(99))
                        .with_partitions(vec![first, second]),
                ]);
            if version >= 16 {
                response = response.with_node_endpoints(vec![
                    theirs::NodeEndpoint::default()
                        .with_node_id(BrokerId(1))
                        .with_host(StrBytes::from_static_str("localhost"))
                        .with_port(9092),
                ]);
            }

            let pieces = ours.encode(42, version).unwrap();
            assert_eq!(pieces[1].as_ptr(), records.as_ptr());
            assert_eq!(
                pieces.concat(),
                encode_response(42, version, &response).unwrap(),
                "version {version}"
            );
        }
    }
}
