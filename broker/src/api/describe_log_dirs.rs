//! DescribeLogDirs, versions 1 to 5 (KIP-113, KIP-827, KIP-1066): what the data directory holds.
//!
//! The one data directory can not be cordoned: no other could take its partitions.

use streamgauge_protocol::messages::protocol::StrBytes;
use streamgauge_protocol::newer::{Cordonable, Newer};

use super::Context;
use super::kafka::DescribeLogDirsRequest;
use super::kafka::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResponse, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use super::metadata::topic_name;

pub async fn handle(context: Context, Newer(request): Newer<DescribeLogDirsRequest>) -> Cordonable {
    let broker = &context.broker;
    let mut topics = Vec::new();
    for handle in broker.topics.all() {
        let wanted = request.topics.as_ref().map(|topics| {
            topics
                .iter()
                .filter(|topic| *topic.topic == *handle.name)
                .flat_map(|topic| topic.partitions.iter().copied())
                .collect::<Vec<i32>>()
        });
        let partitions: Vec<_> = handle
            .handles()
            .iter()
            .map(|partition| (partition.view().key().index, partition))
            .filter(|(index, _)| wanted.as_ref().is_none_or(|wanted| wanted.contains(index)))
            .map(|(index, partition)| {
                let reader = partition.view().reader();
                DescribeLogDirsPartition::default()
                    .with_partition_index(index)
                    .with_partition_size(i64::try_from(reader.size_in_bytes()).unwrap_or(i64::MAX))
                    .with_offset_lag(0)
            })
            .collect();
        if !partitions.is_empty() {
            topics.push(
                DescribeLogDirsTopic::default()
                    .with_name(topic_name(&handle.name))
                    .with_partitions(partitions),
            );
        }
    }
    let directory = broker.data_directory();
    let (total_bytes, usable_bytes) = space(directory);
    let result = DescribeLogDirsResult::default()
        .with_log_dir(StrBytes::from_string(directory.display().to_string()))
        .with_topics(topics)
        .with_total_bytes(total_bytes)
        .with_usable_bytes(usable_bytes);
    Cordonable {
        response: DescribeLogDirsResponse::default().with_results(vec![result]),
        is_cordoned: false,
    }
}

/// The size and the free space of the file system, -1 where it does not say.
fn space(directory: &std::path::Path) -> (i64, i64) {
    let bytes = |blocks: u64, size: u64| i64::try_from(blocks.saturating_mul(size)).unwrap_or(-1);
    match rustix::fs::statvfs(directory) {
        Ok(space) => (
            bytes(space.f_blocks, space.f_frsize),
            bytes(space.f_bavail, space.f_frsize),
        ),
        Err(_) => (-1, -1),
    }
}
