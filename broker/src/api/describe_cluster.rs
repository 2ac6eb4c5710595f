//! DescribeCluster, versions 0 to 2 (KIP-700, KIP-919).

use streamgauge_protocol::error::ErrorCode;
use streamgauge_protocol::messages::protocol::StrBytes;

use super::Context;
use super::kafka::describe_cluster_response::DescribeClusterBroker;
use super::kafka::{BrokerId, DescribeClusterRequest, DescribeClusterResponse};
use super::metadata::{CLUSTER_OPERATIONS, OPERATIONS_NOT_ASKED};
use crate::controller::image::BrokerInfo;

/// Brokers, not controllers, are asked for.
const ENDPOINT_TYPE_BROKERS: i8 = 1;

pub async fn handle(context: Context, request: DescribeClusterRequest) -> DescribeClusterResponse {
    let broker = &context.broker;
    if context.version >= 1 && request.endpoint_type != ENDPOINT_TYPE_BROKERS {
        let code = match request.endpoint_type {
            2 => ErrorCode::MismatchedEndpointType,
            _ => ErrorCode::UnsupportedEndpointType,
        };
        return DescribeClusterResponse::default()
            .with_error_code(code.code())
            .with_error_message(Some(StrBytes::from_static_str(
                "this listener is that of a broker",
            )));
    }
    let cluster_id = broker
        .controller
        .read(|image| image.cluster_id().to_owned());
    let with_fenced = context.version >= 2 && request.include_fenced_brokers;
    let known: Vec<BrokerInfo> = broker
        .controller
        .read(|image| image.brokers().cloned().collect());
    let brokers = known.into_iter().filter_map(|known| {
        let is_fenced = !broker.cluster.is_there(known.node_id);
        let answer = DescribeClusterBroker::default()
            .with_is_fenced(is_fenced)
            .with_broker_id(BrokerId(known.node_id))
            .with_host(StrBytes::from_string(known.host))
            .with_port(i32::from(known.port))
            .with_rack(known.rack.map(StrBytes::from_string));
        (with_fenced || !is_fenced).then_some(answer)
    });
    let operations = match request.include_cluster_authorized_operations {
        true => CLUSTER_OPERATIONS,
        false => OPERATIONS_NOT_ASKED,
    };
    DescribeClusterResponse::default()
        .with_endpoint_type(ENDPOINT_TYPE_BROKERS)
        .with_cluster_id(StrBytes::from_string(cluster_id))
        .with_controller_id(BrokerId(broker.controller.leader()))
        .with_brokers(brokers.collect())
        .with_cluster_authorized_operations(operations)
}
