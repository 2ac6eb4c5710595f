//! What changes and describes topics and groups.

use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, DescribeConfigsRequest,
    DescribeGroupsRequest, GroupId, IncrementalAlterConfigsRequest, ListGroupsRequest,
    OffsetFetchRequest,
};
use streamgauge_protocol::ErrorCode;

use super::TopicPartition;
use super::cluster::{ANY_VERSION, Client, name_of, text};
use super::error::{ClientError, check};
use super::range_assignor::decode_assignment;

const RESOURCE_TOPIC: i8 = 2;
/// Later versions ask by topic id.
const DELETE_TOPICS_VERSION_MAX: i16 = 5;
/// Later versions ask for several groups at once.
const OFFSET_FETCH_VERSION_MAX: i16 = 7;
const CONFIG_SET: i8 = 0;
const CONFIG_DELETE: i8 = 1;
/// `ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG`.
const SOURCE_TOPIC: i8 = 1;

/// A topic to be created.
#[derive(Clone, Debug, Default)]
pub struct NewTopic {
    pub name: String,
    /// `None`: the broker's default.
    pub partitions: Option<i32>,
    /// `None`: the broker's default.
    pub replication_factor: Option<i16>,
    pub configs: Vec<(String, String)>,
}

/// A topic's setting.
#[derive(Clone, Debug)]
pub struct ConfigEntry {
    pub name: String,
    pub value: Option<String>,
    /// Set on the topic itself.
    pub is_own: bool,
}

#[derive(Clone, Debug)]
pub struct ListedGroup {
    pub group: String,
    pub state: String,
    pub protocol_type: String,
}

#[derive(Clone, Debug)]
pub struct DescribedGroup {
    pub group: String,
    pub state: String,
    pub protocol: String,
    pub members: Vec<GroupMember>,
}

#[derive(Clone, Debug)]
pub struct GroupMember {
    pub member_id: String,
    pub client_id: String,
    pub host: String,
    pub partitions: Vec<TopicPartition>,
}

impl Client {
    /// Creates a topic, or with `validate_only` says whether it could be.
    pub async fn create_topic(
        &mut self,
        topic: &NewTopic,
        validate_only: bool,
    ) -> Result<(), ClientError> {
        let configs = topic.configs.iter().map(|(name, value)| {
            CreatableTopicConfig::default()
                .with_name(text(name))
                .with_value(Some(text(value)))
        });
        let creatable = CreatableTopic::default()
            .with_name(name_of(&topic.name))
            .with_num_partitions(topic.partitions.unwrap_or(-1))
            .with_replication_factor(topic.replication_factor.unwrap_or(-1))
            .with_configs(configs.collect());
        let request = CreateTopicsRequest::default()
            .with_topics(vec![creatable])
            .with_timeout_ms(self.timeout_ms())
            .with_validate_only(validate_only);
        let response = self.call_controller(&request, ANY_VERSION).await?;
        for result in response.topics {
            let message = result.error_message.map(|message| message.to_string());
            check(
                result.error_code,
                || format!("topic {}", topic.name),
                message,
            )?;
        }
        Ok(())
    }

    pub async fn delete_topic(&mut self, topic: &str) -> Result<(), ClientError> {
        let request = DeleteTopicsRequest::default()
            .with_topic_names(vec![name_of(topic)])
            .with_timeout_ms(self.timeout_ms());
        let response = self
            .call_controller(&request, DELETE_TOPICS_VERSION_MAX)
            .await?;
        for result in response.responses {
            let message = result.error_message.map(|message| message.to_string());
            check(result.error_code, || format!("topic {topic}"), message)?;
        }
        self.forget(topic);
        Ok(())
    }

    /// Raises a topic's number of partitions to `count`.
    pub async fn create_partitions(&mut self, topic: &str, count: i32) -> Result<(), ClientError> {
        let partitions = CreatePartitionsTopic::default()
            .with_name(name_of(topic))
            .with_count(count)
            .with_assignments(None);
        let request = CreatePartitionsRequest::default()
            .with_topics(vec![partitions])
            .with_timeout_ms(self.timeout_ms());
        let response = self.call_controller(&request, ANY_VERSION).await?;
        for result in response.results {
            let message = result.error_message.map(|message| message.to_string());
            check(result.error_code, || format!("topic {topic}"), message)?;
        }
        self.forget(topic);
        Ok(())
    }

    /// Every setting of a topic, in the broker's order.
    pub async fn describe_topic_configs(
        &mut self,
        topic: &str,
    ) -> Result<Vec<ConfigEntry>, ClientError> {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(RESOURCE_TOPIC)
            .with_resource_name(text(topic))
            .with_configuration_keys(None);
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        let response = self.call_any(&request, ANY_VERSION).await?;
        let mut entries = Vec::new();
        for result in response.results {
            let message = result.error_message.map(|message| message.to_string());
            check(result.error_code, || format!("topic {topic}"), message)?;
            entries.extend(result.configs.into_iter().map(|config| ConfigEntry {
                name: config.name.to_string(),
                value: config.value.map(|value| value.to_string()),
                is_own: config.config_source == SOURCE_TOPIC,
            }));
        }
        Ok(entries)
    }

    /// Sets settings of a topic; `None` puts one back to its default.
    pub async fn alter_topic_configs(
        &mut self,
        topic: &str,
        changes: &[(String, Option<String>)],
        validate_only: bool,
    ) -> Result<(), ClientError> {
        let configs = changes.iter().map(|(name, value)| {
            let operation = if value.is_some() {
                CONFIG_SET
            } else {
                CONFIG_DELETE
            };
            AlterableConfig::default()
                .with_name(text(name))
                .with_config_operation(operation)
                .with_value(value.as_deref().map(text))
        });
        let resource = AlterConfigsResource::default()
            .with_resource_type(RESOURCE_TOPIC)
            .with_resource_name(text(topic))
            .with_configs(configs.collect());
        let request = IncrementalAlterConfigsRequest::default()
            .with_resources(vec![resource])
            .with_validate_only(validate_only);
        let response = self.call_controller(&request, ANY_VERSION).await?;
        for result in response.responses {
            let message = result.error_message.map(|message| message.to_string());
            check(result.error_code, || format!("topic {topic}"), message)?;
        }
        Ok(())
    }

    /// The groups of every broker, by name.
    pub async fn list_groups(&mut self) -> Result<Vec<ListedGroup>, ClientError> {
        self.refresh(Some(&[])).await?;
        let mut groups = Vec::new();
        for broker in self.broker_ids() {
            let response = self
                .call_broker(broker, &ListGroupsRequest::default(), ANY_VERSION)
                .await?;
            check(
                response.error_code,
                || "the list of groups".to_owned(),
                None,
            )?;
            groups.extend(response.groups.into_iter().map(|group| ListedGroup {
                group: group.group_id.to_string(),
                state: group.group_state.to_string(),
                protocol_type: group.protocol_type.to_string(),
            }));
        }
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(groups)
    }

    pub async fn describe_group(&mut self, group: &str) -> Result<DescribedGroup, ClientError> {
        let mut retry = self.retry();
        loop {
            match self.ask_group(group).await {
                Ok(described) => return Ok(described),
                Err(error) => retry.after(error).await?,
            }
        }
    }

    async fn ask_group(&mut self, group: &str) -> Result<DescribedGroup, ClientError> {
        let coordinator = self.find_group_coordinator(group).await?;
        let request = DescribeGroupsRequest::default().with_groups(vec![GroupId(text(group))]);
        let response = self.call_broker(coordinator, &request, ANY_VERSION).await?;
        let Some(described) = response.groups.into_iter().next() else {
            return Err(ClientError::Refused {
                what: format!("group {group}"),
                code: ErrorCode::GroupIdNotFound,
                message: None,
            });
        };
        let message = described.error_message.map(|message| message.to_string());
        check(described.error_code, || format!("group {group}"), message)?;
        let members = described.members.into_iter().map(|member| GroupMember {
            member_id: member.member_id.to_string(),
            client_id: member.client_id.to_string(),
            host: member.client_host.to_string(),
            partitions: decode_assignment(member.member_assignment).unwrap_or_default(),
        });
        Ok(DescribedGroup {
            group: group.to_owned(),
            state: described.group_state.to_string(),
            protocol: described.protocol_data.to_string(),
            members: members.collect(),
        })
    }

    /// Every offset that a group has committed.
    pub async fn committed_offsets(
        &mut self,
        group: &str,
    ) -> Result<Vec<(TopicPartition, i64)>, ClientError> {
        let mut retry = self.retry();
        loop {
            match self.ask_committed(group).await {
                Ok(offsets) => return Ok(offsets),
                Err(error) => retry.after(error).await?,
            }
        }
    }

    async fn ask_committed(
        &mut self,
        group: &str,
    ) -> Result<Vec<(TopicPartition, i64)>, ClientError> {
        let coordinator = self.find_group_coordinator(group).await?;
        let request = OffsetFetchRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_topics(None)
            .with_require_stable(true);
        let response = self
            .call_broker(coordinator, &request, OFFSET_FETCH_VERSION_MAX)
            .await?;
        check(response.error_code, || format!("group {group}"), None)?;
        let mut offsets = Vec::new();
        for topic in response.topics {
            for partition in topic.partitions {
                let id = TopicPartition::new(topic.name.as_str(), partition.partition_index);
                check(
                    partition.error_code,
                    || format!("group {group}, {id}"),
                    None,
                )?;
                if partition.committed_offset >= 0 {
                    offsets.push((id, partition.committed_offset));
                }
            }
        }
        offsets.sort();
        Ok(offsets)
    }

    fn timeout_ms(&self) -> i32 {
        i32::try_from(self.options.request_timeout.as_millis()).unwrap_or(i32::MAX)
    }
}
