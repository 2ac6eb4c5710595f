//! One file an API: validate, do, answer. The table of versions is `streamgauge_protocol::versions`.

pub mod add_offsets_to_txn;
pub mod add_partitions_to_txn;
pub mod add_raft_voter;
pub mod alter_configs;
pub mod alter_partition_reassignments;
pub mod api_versions;
pub mod configs;
pub mod create_partitions;
pub mod create_topics;
pub mod delete_groups;
pub mod delete_records;
pub mod delete_topics;
pub mod describe_cluster;
pub mod describe_configs;
pub mod describe_groups;
pub mod describe_log_dirs;
pub mod describe_producers;
pub mod describe_quorum;
pub mod describe_topic_partitions;
pub mod describe_transactions;
pub mod elect_leaders;
pub mod end_txn;
pub mod fetch;
pub mod find_coordinator;
pub mod groups;
pub mod heartbeat;
pub mod init_producer_id;
pub mod join_group;
pub mod leave_group;
pub mod list_groups;
pub mod list_offsets;
pub mod list_partition_reassignments;
pub mod list_transactions;
pub mod metadata;
pub mod offset_commit;
pub mod offset_delete;
pub mod offset_fetch;
pub mod offset_for_leader_epoch;
pub mod produce;
pub mod sync_group;
pub mod txn_offset_commit;
pub mod unregister_broker;
pub mod write_txn_markers;

#[cfg(test)]
mod config_fixture;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use streamgauge_protocol::frame::{self, FrameError, RequestHeader};
use streamgauge_protocol::messages::messages as kafka;
use streamgauge_protocol::messages::messages::ApiKey;
use streamgauge_protocol::messages::protocol::{Decodable, Encodable, HeaderVersion};
use streamgauge_protocol::newer::Newer;
use streamgauge_protocol::versions::Api;

use crate::broker::Broker;
use crate::cluster::ClusterRequest;
use crate::server::connection::Peer;

/// Why a request ends its connection. Kafka closes it too: what the client sent cannot be answered
/// in a form that it would understand.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("unreadable request: {0}")]
    Frame(#[from] FrameError),
    #[error("API {name} in version {version} is not served")]
    Unsupported { name: &'static str, version: i16 },
    #[error("{name} request, version {version}: {source}")]
    Body {
        name: &'static str,
        version: i16,
        source: FrameError,
    },
    #[error("the answer to a {name} request could not be encoded: {reason}")]
    Encode { name: &'static str, reason: String },
    #[error("{0}")]
    FetchTooLong(#[from] streamgauge_protocol::fetch_response::TooLong),
}

/// An answer as it goes to the socket; no pieces for a request that gets none.
#[derive(Debug, Default)]
pub struct Answer {
    pub pieces: Vec<Bytes>,
    /// Close the connection afterwards: how a client that wants no answer learns of an error.
    pub close_after: bool,
}

pub type RequestFuture = Pin<Box<dyn Future<Output = Result<Answer, RequestError>> + Send>>;

/// A request that has been started.
pub struct Handling {
    pub answer: RequestFuture,
}

/// What a handler knows besides its request.
#[derive(Clone)]
pub struct Context {
    pub broker: Arc<Broker>,
    pub peer: Peer,
    pub version: i16,
    pub correlation_id: i32,
    pub client_id: Option<String>,
}

/// Whether a frame holds a produce request: those may follow each other without waiting.
pub fn is_produce(frame: &Bytes) -> bool {
    frame::peek_api(frame).is_ok_and(|(api_key, _)| api_key == ApiKey::Produce as i16)
}

/// How long a request waits that found no controller, before it is tried again.
const ASK_CONTROLLER_RETRY: Duration = Duration::from_millis(50);

/// Starts a request. A produce request has reached its partitions when this returns; one that changes
/// the metadata is handed to the controller if that is another broker (as with KIP-590).
pub fn handle(broker: &Arc<Broker>, peer: &Peer, frame: Bytes) -> Result<Handling, RequestError> {
    let is_for_controller = frame::peek_api(&frame).is_ok_and(|(key, version)| {
        ApiKey::try_from(key).is_ok_and(is_controllers)
            && streamgauge_protocol::versions::is_served(key, version)
    });
    if is_for_controller && !broker.controller.is_active() {
        return Ok(hand_on(broker, peer, frame));
    }
    handle_here(broker, peer, frame)
}

/// The requests that the controller alone decides.
fn is_controllers(key: ApiKey) -> bool {
    matches!(
        key,
        ApiKey::CreateTopics
            | ApiKey::DeleteTopics
            | ApiKey::CreatePartitions
            | ApiKey::AlterConfigs
            | ApiKey::IncrementalAlterConfigs
            | ApiKey::DescribeQuorum
            | ApiKey::AddRaftVoter
            | ApiKey::RemoveRaftVoter
            | ApiKey::AlterPartitionReassignments
            | ApiKey::ListPartitionReassignments
            | ApiKey::UnregisterBroker
    )
}

/// Asks whoever is the controller until one answers, as Kafka's `NodeToControllerRequestThread` does: while
/// a controller is elected clients wait. One that was lost while it was asked may have done what was asked; the client
/// hears then what its request finds.
fn hand_on(broker: &Arc<Broker>, peer: &Peer, frame: Bytes) -> Handling {
    let (broker, peer) = (Arc::clone(broker), peer.clone());
    // Half of it, for clients that wait just as long: they are to have an answer.
    let patience_ms = broker.config.request_timeout_ms.unsigned_abs() / 2;
    let patience = Duration::from_millis(patience_ms);
    let answer = async move {
        let request = ClusterRequest::Kafka(frame.clone());
        let asking = async {
            while !broker.controller.is_active() {
                match broker.ask_controller(&request).await {
                    Ok(answer) => return Some(answer),
                    Err(refusal) => {
                        tracing::debug!(%refusal, "a request did not reach the controller");
                    }
                }
                tokio::select! {
                    biased;
                    () = broker.stopping() => return None,
                    () = tokio::time::sleep(ASK_CONTROLLER_RETRY) => {}
                }
            }
            None
        };
        if let Ok(Some(answer)) = tokio::time::timeout(patience, asking).await {
            return Ok(Answer {
                pieces: vec![answer],
                close_after: false,
            });
        }
        // Here it is refused in the form that the client expects, or this broker is the controller now.
        handle_here(&broker, &peer, frame)?.answer.await
    };
    Handling {
        answer: Box::pin(answer),
    }
}

/// As [`handle`], and whatever this broker is asked it decides itself.
pub fn handle_here(
    broker: &Arc<Broker>,
    peer: &Peer,
    frame: Bytes,
) -> Result<Handling, RequestError> {
    let mut body = frame;
    let (header, api) = frame::take_request_header(&mut body)?;
    let version = header.api_version;
    if !api.serves(version) {
        // A client that is newer than we are asks again with what this answer tells it (KIP-511).
        if api.key == ApiKey::ApiVersions as i16 {
            return api_versions::unsupported_version(header.correlation_id).map(Handling::done);
        }
        return Err(RequestError::Unsupported {
            name: api.name,
            version,
        });
    }
    let request = Request {
        api,
        body,
        context: context(broker, peer, header),
    };
    dispatch(request)
}

fn context(broker: &Arc<Broker>, peer: &Peer, header: RequestHeader) -> Context {
    Context {
        broker: Arc::clone(broker),
        peer: peer.clone(),
        version: header.api_version,
        correlation_id: header.correlation_id,
        client_id: header.client_id.map(|id| id.to_string()),
    }
}

/// A request whose body has not been looked at.
pub struct Request {
    pub api: &'static Api,
    pub body: Bytes,
    pub context: Context,
}

impl Request {
    /// Guards and decodes the body.
    pub fn decode<R: Decodable>(&self) -> Result<R, RequestError> {
        let version = self.context.version;
        frame::decode_request(self.api, version, self.body.clone()).map_err(|source| {
            RequestError::Body {
                name: self.api.name,
                version,
                source,
            }
        })
    }

    /// Decodes, runs the handler and encodes what it answers.
    fn answer<R, S, H, F>(self, handler: H) -> Result<Handling, RequestError>
    where
        R: Decodable,
        S: Encodable + HeaderVersion,
        H: FnOnce(Context, R) -> F,
        F: Future<Output = S> + Send + 'static,
    {
        let request = self.decode::<R>()?;
        let (name, correlation_id) = (self.api.name, self.context.correlation_id);
        let codec_version = self.api.codec_version(self.context.version);
        let response = handler(self.context, request);
        Ok(Handling {
            answer: Box::pin(async move {
                encode(name, correlation_id, codec_version, &response.await)
            }),
        })
    }
}

/// Frames a response.
pub fn encode<S: Encodable + HeaderVersion>(
    name: &'static str,
    correlation_id: i32,
    version: i16,
    response: &S,
) -> Result<Answer, RequestError> {
    let bytes = frame::encode_response(correlation_id, version, response).map_err(|error| {
        RequestError::Encode {
            name,
            reason: error.to_string(),
        }
    })?;
    Ok(Answer {
        pieces: vec![bytes],
        close_after: false,
    })
}

impl Handling {
    /// Has the client look elsewhere if it is so once there is an answer: a client asks whom it is connected to, for ever, even if that
    /// broker has lost all others and knows of no coordinator.
    fn ending_connection_if(self, is_so: impl FnOnce() -> bool + Send + 'static) -> Self {
        Self {
            answer: Box::pin(async move {
                let mut answer = self.answer.await?;
                answer.close_after = is_so();
                Ok(answer)
            }),
        }
    }

    fn done(answer: Answer) -> Self {
        Self {
            answer: Box::pin(std::future::ready(Ok(answer))),
        }
    }
}

/// One line an API; the keys are those of the version table, which a test holds against this.
fn dispatch(request: Request) -> Result<Handling, RequestError> {
    let unsupported = RequestError::Unsupported {
        name: request.api.name,
        version: request.context.version,
    };
    let Ok(key) = ApiKey::try_from(request.api.key) else {
        return Err(unsupported);
    };
    match key {
        ApiKey::Produce => produce::handle(request),
        ApiKey::Fetch => fetch::handle(request),
        ApiKey::ListOffsets => request.answer(list_offsets::handle),
        ApiKey::Metadata => request.answer(metadata::handle),
        ApiKey::OffsetCommit => {
            request.answer(|context, Newer(commit)| groups::offset_commit(context, commit))
        }
        ApiKey::OffsetFetch => {
            request.answer(|context, Newer(fetch)| groups::offset_fetch(context, fetch))
        }
        ApiKey::FindCoordinator => {
            let broker = Arc::clone(&request.context.broker);
            let handling = request.answer(groups::find_coordinator)?;
            Ok(handling.ending_connection_if(move || !broker.reaches_majority()))
        }
        ApiKey::JoinGroup => request.answer(groups::join_group),
        ApiKey::Heartbeat => request.answer(groups::heartbeat),
        ApiKey::LeaveGroup => request.answer(groups::leave_group),
        ApiKey::SyncGroup => request.answer(groups::sync_group),
        ApiKey::DescribeGroups => request.answer(groups::describe_groups),
        ApiKey::ListGroups => request.answer(groups::list_groups),
        ApiKey::DeleteGroups => request.answer(groups::delete_groups),
        ApiKey::OffsetDelete => request.answer(groups::offset_delete),
        ApiKey::ApiVersions => request.answer(api_versions::handle),
        ApiKey::CreateTopics => request.answer(create_topics::handle),
        ApiKey::DeleteTopics => request.answer(delete_topics::handle),
        ApiKey::DeleteRecords => request.answer(delete_records::handle),
        ApiKey::CreatePartitions => request.answer(create_partitions::handle),
        ApiKey::InitProducerId => request.answer(init_producer_id::handle),
        ApiKey::OffsetForLeaderEpoch => request.answer(offset_for_leader_epoch::handle),
        ApiKey::AddPartitionsToTxn => request.answer(add_partitions_to_txn::handle),
        ApiKey::AddOffsetsToTxn => request.answer(add_offsets_to_txn::handle),
        ApiKey::EndTxn => request.answer(end_txn::handle),
        ApiKey::TxnOffsetCommit => request.answer(txn_offset_commit::handle),
        ApiKey::DescribeTransactions => request.answer(describe_transactions::handle),
        ApiKey::ListTransactions => request.answer(list_transactions::handle),
        ApiKey::WriteTxnMarkers => request.answer(write_txn_markers::handle),
        ApiKey::DescribeConfigs => request.answer(configs::describe),
        ApiKey::AlterConfigs => request.answer(configs::alter),
        ApiKey::IncrementalAlterConfigs => request.answer(configs::incremental_alter),
        ApiKey::DescribeCluster => request.answer(describe_cluster::handle),
        ApiKey::DescribeTopicPartitions => request.answer(describe_topic_partitions::handle),
        ApiKey::DescribeLogDirs => request.answer(describe_log_dirs::handle),
        ApiKey::DescribeProducers => request.answer(describe_producers::handle),
        ApiKey::AlterPartitionReassignments => {
            request.answer(alter_partition_reassignments::handle)
        }
        ApiKey::ListPartitionReassignments => request.answer(list_partition_reassignments::handle),
        ApiKey::ElectLeaders => request.answer(elect_leaders::handle),
        ApiKey::DescribeQuorum => request.answer(describe_quorum::handle),
        ApiKey::UnregisterBroker => request.answer(unregister_broker::handle),
        ApiKey::AddRaftVoter => request.answer(add_raft_voter::add),
        ApiKey::RemoveRaftVoter => request.answer(add_raft_voter::remove),
        _ => Err(unsupported),
    }
}
