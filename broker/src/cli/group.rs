//! `group list|describe`.

use clap::{Args, Subcommand};

use super::ConnectArgs;
use super::error::CommandError;
use super::terminal::{print, table};
use super::topic::row;
use crate::client::{Consumer, ConsumerOptions};

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// Print all consumer groups.
    List(ListArgs),
    /// Print a group's members, offsets and lag.
    Describe(DescribeArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
pub(super) struct DescribeArgs {
    group: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(command: GroupCommand) -> Result<(), CommandError> {
    match command {
        GroupCommand::List(args) => list(&args).await,
        GroupCommand::Describe(args) => describe(&args).await,
    }
}

async fn list(args: &ListArgs) -> Result<(), CommandError> {
    let mut client = args.connect.connect_briefly().await?;
    let mut rows = vec![row(["GROUP", "STATE", "PROTOCOL TYPE"])];
    for group in client.list_groups().await? {
        rows.push(vec![group.group, group.state, group.protocol_type]);
    }
    print(&table(&rows))
}

async fn describe(args: &DescribeArgs) -> Result<(), CommandError> {
    let mut client = args.connect.connect_briefly().await?;
    let group = client.describe_group(&args.group).await?;
    let committed = client.committed_offsets(&args.group).await?;
    if group.state == "Dead" && committed.is_empty() {
        return Err(CommandError::Refused(format!(
            "group {} does not exist",
            args.group
        )));
    }
    let mut text = format!("group: {}\nstate: {}\n", group.group, group.state);
    if !group.protocol.is_empty() {
        text.push_str(&format!("assignor: {}\n", group.protocol));
    }
    let mut consumer = Consumer::new(client, ConsumerOptions::default());
    let mut rows = vec![row([
        "TOPIC",
        "PARTITION",
        "COMMITTED",
        "END",
        "LAG",
        "MEMBER",
    ])];
    let mut partitions: Vec<_> = committed
        .iter()
        .map(|(partition, _)| partition.clone())
        .collect();
    partitions.extend(group.members.iter().flat_map(|m| m.partitions.clone()));
    partitions.sort();
    partitions.dedup();
    for partition in partitions {
        let offset = committed.iter().find(|(known, _)| *known == partition);
        // A topic that was deleted has no end.
        let end = consumer.end_offset(&partition).await.ok();
        let lag = offset
            .zip(end)
            .map(|((_, offset), end)| (end - offset).max(0));
        let member = group
            .members
            .iter()
            .find(|member| member.partitions.contains(&partition));
        let shown =
            |number: Option<i64>| number.map_or("-".to_owned(), |number| number.to_string());
        rows.push(vec![
            partition.topic,
            partition.partition.to_string(),
            shown(offset.map(|(_, offset)| *offset)),
            shown(end),
            shown(lag),
            member.map_or("-".to_owned(), |member| {
                format!("{} {}", member.member_id, member.host)
            }),
        ]);
    }
    text.push_str(&table(&rows));
    print(&text)
}
