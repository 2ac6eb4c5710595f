//! `apply -f`: makes the cluster's derived topics what their declarations say.
//!
//! A declaration is its derived topic's config `aggregation`, word for word, so any Kafka admin client could do the same. Side topics
//! and the derived topic's other settings come with it.

use std::path::PathBuf;

use clap::Args;
use streamgauge_aggregator::declaration::Declaration;
use streamgauge_protocol::ErrorCode;

use super::ConnectArgs;
use super::error::CommandError;
use super::files::read_declarations;
use super::terminal::print;
use crate::client::admin::NewTopic;
use crate::client::{Client, ClientError};
use crate::config::AGGREGATION;

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    /// A file, a directory of *.yaml files, or - for stdin; may be repeated.
    #[arg(short, long = "file", required = true, num_args = 1.., value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// Let the broker check everything and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What became of a declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    Created,
    Changed,
    Unchanged,
}

impl Applied {
    pub fn as_str(self) -> &'static str {
        match self {
            Applied::Created => "created",
            Applied::Changed => "changed",
            Applied::Unchanged => "unchanged",
        }
    }
}

pub(super) async fn run(args: &ApplyArgs) -> Result<(), CommandError> {
    let declarations = read_declarations(&args.files)?;
    let mut client = args.connect.connect_briefly().await?;
    let mut refused = false;
    for declaration in declarations {
        match apply(&mut client, &declaration, args.dry_run).await {
            Ok(applied) => {
                let dry = if args.dry_run { " (dry run)" } else { "" };
                let applied = applied.as_str();
                print(&format!("{}: {applied}{dry}\n", declaration.topic))?;
            }
            Err(error) => {
                eprintln!("{}: {error}", declaration.topic);
                refused = true;
            }
        }
    }
    if refused {
        return Err(CommandError::Told);
    }
    Ok(())
}

/// Creates or changes one derived topic; with `dry_run` the broker only checks.
pub(super) async fn apply(
    client: &mut Client,
    declaration: &Declaration,
    dry_run: bool,
) -> Result<Applied, ClientError> {
    let mut configs: Vec<(String, String)> = declaration
        .configs
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    configs.push((AGGREGATION.to_owned(), declaration.text.clone()));
    match client.describe_topic(&declaration.topic).await {
        Ok(_) => {}
        Err(error) if error.code() == Some(ErrorCode::UnknownTopicOrPartition) => {
            let topic = NewTopic {
                name: declaration.topic.clone(),
                partitions: declaration.partitions,
                replication_factor: None,
                configs,
            };
            client.create_topic(&topic, dry_run).await?;
            return Ok(Applied::Created);
        }
        Err(error) => return Err(error),
    }
    let present = client.describe_topic_configs(&declaration.topic).await?;
    let changes: Vec<_> = configs
        .into_iter()
        .filter(|(name, value)| {
            let found = present.iter().find(|config| config.name == *name);
            found.and_then(|config| config.value.as_ref()) != Some(value)
        })
        .map(|(name, value)| (name, Some(value)))
        .collect();
    if changes.is_empty() {
        return Ok(Applied::Unchanged);
    }
    client
        .alter_topic_configs(&declaration.topic, &changes, dry_run)
        .await?;
    Ok(Applied::Changed)
}
