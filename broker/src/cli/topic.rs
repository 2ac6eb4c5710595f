//! `topic list|create|describe|alter|delete`.

use std::fmt::Write;

use clap::{Args, Subcommand};

use super::ConnectArgs;
use super::error::CommandError;
use super::terminal::{print, table};
use crate::client::admin::NewTopic;

#[derive(Debug, Subcommand)]
pub(super) enum TopicCommand {
    /// Print the names of all topics.
    List(ListArgs),
    /// Create a topic.
    Create(CreateArgs),
    /// Print a topic's partitions and settings.
    Describe(DescribeArgs),
    /// Change a topic's settings or raise its number of partitions.
    Alter(AlterArgs),
    /// Delete a topic and all its records.
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Include topics of the broker's own, like __consumer_offsets.
    #[arg(long)]
    internal: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    topic: String,
    /// Default: the broker's num.partitions.
    #[arg(short, long, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,
    /// Default: the broker's default.replication.factor.
    #[arg(long, value_parser = clap::value_parser!(i16).range(1..))]
    replication_factor: Option<i16>,
    /// A topic setting by Kafka's name, as retention.ms=3600000; may be repeated.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    config: Vec<(String, String)>,
    /// Do nothing if the topic exists.
    #[arg(long)]
    if_not_exists: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
pub(super) struct DescribeArgs {
    topic: String,
    /// Print every setting, not only the topic's own.
    #[arg(long)]
    all_configs: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub(super) struct AlterArgs {
    topic: String,
    /// Set a setting; may be repeated.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value, group = "change")]
    config: Vec<(String, String)>,
    /// Put a setting back to its default; may be repeated.
    #[arg(long, value_name = "KEY", group = "change")]
    delete_config: Vec<String>,
    /// The new number of partitions.
    #[arg(short, long, value_parser = clap::value_parser!(i32).range(1..), group = "change")]
    partitions: Option<i32>,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    #[arg(required = true)]
    topics: Vec<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(command: TopicCommand) -> Result<(), CommandError> {
    match command {
        TopicCommand::List(args) => list(&args).await,
        TopicCommand::Create(args) => create(args).await,
        TopicCommand::Describe(args) => describe(&args).await,
        TopicCommand::Alter(args) => alter(args).await,
        TopicCommand::Delete(args) => delete(&args).await,
    }
}

async fn list(args: &ListArgs) -> Result<(), CommandError> {
    let mut client = args.connect.connect_briefly().await?;
    let mut text = String::new();
    for topic in client.list_topics().await? {
        if args.internal || !topic.is_internal {
            text.push_str(&topic.name);
            text.push('\n');
        }
    }
    print(&text)
}

async fn create(args: CreateArgs) -> Result<(), CommandError> {
    let mut client = args.connect.connect_briefly().await?;
    let topic = NewTopic {
        name: args.topic,
        partitions: args.partitions,
        replication_factor: args.replication_factor,
        configs: args.config,
    };
    match client.create_topic(&topic, false).await {
        Err(error)
            if args.if_not_exists
                && error.code() == Some(streamgauge_protocol::ErrorCode::TopicAlreadyExists) =>
        {
            eprintln!("topic {} exists", topic.name);
            Ok(())
        }
        result => {
            result?;
            eprintln!("created topic {}", topic.name);
            Ok(())
        }
    }
}

async fn describe(args: &DescribeArgs) -> Result<(), CommandError> {
    let mut client = args.connect.connect_briefly().await?;
    let topic = client.describe_topic(&args.topic).await?;
    let configs = client.describe_topic_configs(&args.topic).await?;
    let mut text = format!(
        "topic: {}\npartitions: {}\n",
        topic.name,
        topic.partitions.len()
    );
    let mut configs: Vec<_> = configs
        .into_iter()
        .filter(|config| args.all_configs || config.is_own)
        .collect();
    configs.sort_by(|a, b| a.name.cmp(&b.name));
    if !configs.is_empty() {
        text.push_str("configs:\n");
    }
    for config in configs {
        let value = config.value.unwrap_or_default();
        if value.contains('\n') {
            let indented = value.trim_end().replace('\n', "\n    ");
            let _ = writeln!(text, "  {}: |\n    {indented}", config.name);
        } else {
            let _ = writeln!(text, "  {}: {value}", config.name);
        }
    }
    let mut rows = vec![row(["PARTITION", "LEADER", "REPLICAS", "IN SYNC"])];
    for (id, partition) in &topic.partitions {
        let ids = |ids: &[i32]| {
            let ids: Vec<String> = ids.iter().map(i32::to_string).collect();
            ids.join(",")
        };
        let leader = match partition.leader {
            -1 => "none".to_owned(),
            leader => leader.to_string(),
        };
        rows.push(vec![
            id.to_string(),
            leader,
            ids(&partition.replicas),
            ids(&partition.in_sync),
        ]);
    }
    text.push_str(&table(&rows));
    print(&text)
}

async fn alter(args: AlterArgs) -> Result<(), CommandError> {
    let mut client = args.connect.connect_briefly().await?;
    let set = args
        .config
        .into_iter()
        .map(|(key, value)| (key, Some(value)));
    let unset = args.delete_config.into_iter().map(|key| (key, None));
    let changes: Vec<_> = set.chain(unset).collect();
    if !changes.is_empty() {
        client
            .alter_topic_configs(&args.topic, &changes, false)
            .await?;
    }
    if let Some(partitions) = args.partitions {
        client.create_partitions(&args.topic, partitions).await?;
    }
    eprintln!("altered topic {}", args.topic);
    Ok(())
}

async fn delete(args: &DeleteArgs) -> Result<(), CommandError> {
    let mut client = args.connect.connect_briefly().await?;
    for topic in &args.topics {
        client.delete_topic(topic).await?;
        eprintln!("deleted topic {topic}");
    }
    Ok(())
}

pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// `key=value`; the value may hold further equals signs.
pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be written key=value".to_owned()),
    }
}
