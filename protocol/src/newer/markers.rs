//! WriteTxnMarkers 2: version 1 and one more number in each marker, the transaction's version (KIP-1228). The response is as before.
//!
//! ```text
//! markers │ tags
//!     marker:  producer id i64 │ producer epoch i16 │ committed bool │ topics │ coordinator epoch i32 │ transaction version i8 │ tags
//!     topic:   name │ partition indexes [i32] │ tags
//! ```

use anyhow::{Result, ensure};
use kafka_protocol::messages::write_txn_markers_request::WritableTxnMarkerTopic;
use kafka_protocol::messages::{TopicName, WriteTxnMarkersRequest, WriteTxnMarkersResponse};
use kafka_protocol::protocol::buf::{ByteBuf, ByteBufMut};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};

use super::{Newer, array, skip_tags, string};

/// The last version that the message crate has.
const CRATE_MAX: i16 = 1;
const TRANSACTION_VERSION_VERSION: i16 = 2;

/// A WriteTxnMarkers request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TxnMarkers {
    pub markers: Vec<TxnMarker>,
}

/// One transaction's end, and the partitions that are to know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct TxnMarker {
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub committed: bool,
    pub topics: Vec<WritableTxnMarkerTopic>,
    pub coordinator_epoch: i32,
    /// 0 before version 2.
    pub transaction_version: i8,
}

impl Decodable for TxnMarkers {
    fn decode<B: ByteBuf>(buf: &mut B, version: i16) -> Result<Self> {
        if version <= CRATE_MAX {
            let request = WriteTxnMarkersRequest::decode(buf, version)?;
            let markers = request.markers.into_iter().map(|marker| TxnMarker {
                producer_id: marker.producer_id.0,
                producer_epoch: marker.producer_epoch,
                committed: marker.transaction_result,
                topics: marker.topics,
                coordinator_epoch: marker.coordinator_epoch,
                transaction_version: 0,
            });
            return Ok(Self {
                markers: markers.collect(),
            });
        }
        ensure!(
            version == TRANSACTION_VERSION_VERSION,
            "no WriteTxnMarkers {version}"
        );
        let markers = array(buf, marker)?;
        skip_tags(buf)?;
        Ok(Self { markers })
    }
}

fn marker<B: ByteBuf>(buf: &mut B) -> Result<TxnMarker> {
    let marker = TxnMarker {
        producer_id: buf.try_get_i64()?,
        producer_epoch: buf.try_get_i16()?,
        committed: buf.try_get_u8()? != 0,
        topics: array(buf, topic)?,
        coordinator_epoch: buf.try_get_i32()?,
        transaction_version: buf.try_get_i8()?,
    };
    skip_tags(buf)?;
    Ok(marker)
}

fn topic<B: ByteBuf>(buf: &mut B) -> Result<WritableTxnMarkerTopic> {
    let topic = WritableTxnMarkerTopic::default()
        .with_name(TopicName(string(buf)?))
        .with_partition_indexes(array(buf, |buf| Ok(buf.try_get_i32()?))?);
    skip_tags(buf)?;
    Ok(topic)
}

impl HeaderVersion for Newer<WriteTxnMarkersResponse> {
    fn header_version(version: i16) -> i16 {
        WriteTxnMarkersResponse::header_version(version.min(CRATE_MAX))
    }
}

impl Encodable for Newer<WriteTxnMarkersResponse> {
    fn encode<B: ByteBufMut>(&self, buf: &mut B, version: i16) -> Result<()> {
        self.0.encode(buf, version.min(CRATE_MAX))
    }

    fn compute_size(&self, version: i16) -> Result<usize> {
        self.0.compute_size(version.min(CRATE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    /// As Kafka's own clients write them.
    const ONE: &[u8] =
        b"\x02\0\0\0\0\0\0\0\x07\0\x03\x01\x02\x02t\x03\0\0\0\0\0\0\0\x05\0\0\0\0\x09\0\0";

    #[test]
    fn version_2_has_the_transaction_version_and_version_1_has_not() {
        let request = TxnMarkers::decode(&mut Bytes::from_static(ONE), 1).unwrap();
        let marker = &request.markers[0];
        assert_eq!((marker.producer_id, marker.producer_epoch), (7, 3));
        assert_eq!((marker.committed, marker.coordinator_epoch), (true, 9));
        assert_eq!(marker.topics[0].partition_indexes, [0, 5]);
        assert_eq!(marker.transaction_version, 0);

        let mut two = ONE.to_vec();
        // Before the tags of the marker and of the request.
        two.insert(two.len() - 2, 2);
        let mut bytes = Bytes::from(two.clone());
        let newer = TxnMarkers::decode(&mut bytes, 2).unwrap();
        assert!(bytes.is_empty());
        assert_eq!(newer.markers[0].transaction_version, 2);
        assert_eq!(newer.markers[0].topics, marker.topics);
        for length in 0..two.len() {
            let cut = Bytes::copy_from_slice(&two[..length]);
            assert!(TxnMarkers::decode(&mut cut.clone(), 2).is_err(), "{length}");
        }
    }
}
