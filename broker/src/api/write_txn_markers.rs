//! WriteTxnMarkers, versions 1 and 2 (KIP-98, KIP-1228): ends transactions in partitions that are led here.
//!
//! Brokers of this cluster have a way of their own (`transaction::markers`); this one is for Kafka's tools, which end
//! transactions that hang (`kafka-transactions --abort`, KIP-664). A partition is answered when its marker is committed.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use streamgauge_protocol::error::{ErrorCode, code_of};
use streamgauge_protocol::newer::{Newer, TxnMarker, TxnMarkers};

use super::Context;
use super::fetch::check_leader;
use super::kafka::write_txn_markers_response::{
    WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
};
use super::kafka::{ProducerId, TopicName, WriteTxnMarkersResponse};
use crate::transaction::markers::{self, Marker};

pub async fn handle(context: Context, request: TxnMarkers) -> Newer<WriteTxnMarkersResponse> {
    let mut writes = Vec::new();
    for wanted in &request.markers {
        let marker = marker(wanted);
        for topic in &wanted.topics {
            for &index in &topic.partition_indexes {
                let (context, name) = (&context, &topic.name);
                writes.push(async move {
                    let written = write(context, name, index, marker).await;
                    (marker.producer_id, name, index, written.err())
                });
            }
        }
    }
    // Each is in its log before the next is begun; they are committed together.
    let mut results: BTreeMap<i64, BTreeMap<TopicName, Vec<_>>> = BTreeMap::new();
    for (producer_id, name, index, error) in join_all(writes).await {
        let result = WritableTxnMarkerPartitionResult::default()
            .with_partition_index(index)
            .with_error_code(code_of(error));
        let topics = results.entry(producer_id).or_default();
        topics.entry(name.clone()).or_default().push(result);
    }
    let markers = results.into_iter().map(|(producer_id, topics)| {
        let topics = topics.into_iter().map(|(name, partitions)| {
            WritableTxnMarkerTopicResult::default()
                .with_name(name)
                .with_partitions(partitions)
        });
        WritableTxnMarkerResult::default()
            .with_producer_id(ProducerId(producer_id))
            .with_topics(topics.collect())
    });
    Newer(WriteTxnMarkersResponse::default().with_markers(markers.collect()))
}

fn marker(wanted: &TxnMarker) -> Marker {
    Marker {
        producer_id: wanted.producer_id,
        producer_epoch: wanted.producer_epoch,
        coordinator_epoch: wanted.coordinator_epoch,
        committed: wanted.committed,
        transaction_version: wanted.transaction_version,
    }
}

async fn write(
    context: &Context,
    topic: &TopicName,
    index: i32,
    marker: Marker,
) -> Result<(), ErrorCode> {
    let topic = context
        .broker
        .topics
        .by_name(topic)
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let partition = topic.open_partition(index)?;
    check_leader(partition.view(), -1)?;
    markers::append(&context.broker, &partition, marker).await
}
