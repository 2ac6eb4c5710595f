//! `consume TOPIC`: a line for each record, alone or as a member of a group.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::ConnectArgs;
use super::error::CommandError;
use super::produce::Format;
use super::record_line::{write_json, write_plain};
use super::terminal::stop_signal;
use crate::client::{
    ClientError, ConsumedRecord, Consumer, ConsumerOptions, GroupConsumer, GroupOptions,
    StartOffset, TopicPartition,
};

const POLL_WAIT_MAX: Duration = Duration::from_millis(500);
/// How long a consumer bears with brokers that do not answer.
const OPERATION_TIME_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct ConsumeArgs {
    topic: String,
    /// What to print for a record.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Print each key and this text before the value.
    #[arg(long, value_name = "TEXT")]
    key_separator: Option<String>,
    /// Share the topic with the other members of this group, and go on where it was.
    #[arg(short, long)]
    group: Option<String>,
    /// Begin with the oldest record; with --group, where nothing was committed. Default: what comes from now on.
    #[arg(long, conflicts_with = "offset")]
    from_beginning: bool,
    /// Only this partition.
    #[arg(long, conflicts_with = "group", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Where to begin: an offset, earliest or latest.
    #[arg(long, requires = "partition", value_parser = start_offset)]
    offset: Option<StartOffset>,
    /// Stop after so many records.
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u64).range(1..))]
    max_messages: Option<u64>,
    /// Stop when no record has come for so long, as 10s. A failure if --max-messages were asked for.
    #[arg(long, value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Where records come from.
enum Source {
    Alone(Consumer),
    Member(GroupConsumer),
}

pub(super) async fn run(args: &ConsumeArgs) -> Result<(), CommandError> {
    let client = args.connect.connect(OPERATION_TIME_MAX).await?;
    let start = match (args.offset, args.from_beginning) {
        (Some(offset), _) => offset,
        (None, true) => StartOffset::Earliest,
        (None, false) => StartOffset::Latest,
    };
    let mut source = match &args.group {
        Some(group) => {
            let options = GroupOptions::new(group, vec![args.topic.clone()], start);
            Source::Member(GroupConsumer::new(client, options))
        }
        None => {
            let options = ConsumerOptions {
                reset: Some(start).filter(|start| !matches!(start, StartOffset::At(_))),
                ..ConsumerOptions::default()
            };
            let mut client = client;
            // A topic or partition that is not there is said at once.
            let topic = client.describe_topic(&args.topic).await?;
            if let Some(partition) = args.partition
                && !topic.partitions.contains_key(&partition)
            {
                let count = topic.partitions.len();
                return Err(CommandError::Refused(format!(
                    "topic {} has no partition {partition}, only {count}",
                    args.topic
                )));
            }
            let mut consumer = Consumer::new(client, options);
            match args.partition {
                Some(partition) => {
                    let partition = TopicPartition::new(&args.topic, partition);
                    consumer.assign(partition, start).await?;
                }
                None => consumer.assign_topic(&args.topic, start).await?,
            }
            Source::Alone(consumer)
        }
    };
    let printed = print_records(args, &mut source).await;
    if let Source::Member(member) = source {
        let closed = member.close().await;
        printed?;
        closed?;
        return Ok(());
    }
    printed
}

async fn print_records(args: &ConsumeArgs, source: &mut Source) -> Result<(), CommandError> {
    let mut left = args.max_messages.unwrap_or(u64::MAX);
    let mut last_record_at = Instant::now();
    let mut stopped = std::pin::pin!(stop_signal());
    let mut out = Vec::new();
    while left > 0 {
        let idle = last_record_at.elapsed();
        let wait = match args.timeout {
            Some(timeout) if idle >= timeout => return ended_idle(args, left, timeout),
            Some(timeout) => POLL_WAIT_MAX.min(timeout - idle),
            None => POLL_WAIT_MAX,
        };
        let records = tokio::select! {
            records = source.poll(wait) => records?,
            _ = &mut stopped => return Ok(()),
        };
        if records.is_empty() {
            continue;
        }
        let wanted = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(records.len());
        out.clear();
        for record in records.iter().take(wanted) {
            match args.format {
                Format::Plain => {
                    let separator = args.key_separator.as_deref().map(str::as_bytes);
                    write_plain(&mut out, record, separator);
                }
                Format::Json => write_json(&mut out, record),
            }
        }
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(&out).and_then(|()| stdout.flush());
        drop(stdout);
        written.map_err(CommandError::output)?;
        left -= wanted as u64;
        source
            .written(records.get(..wanted).unwrap_or_default())
            .await?;
        last_record_at = Instant::now();
    }
    Ok(())
}

fn ended_idle(args: &ConsumeArgs, left: u64, timeout: Duration) -> Result<(), CommandError> {
    match args.max_messages {
        None => Ok(()),
        Some(wanted) => Err(CommandError::Refused(format!(
            "{} of {wanted} records had come when none came for {}",
            wanted - left,
            humantime::format_duration(timeout)
        ))),
    }
}

impl Source {
    async fn poll(&mut self, wait: Duration) -> Result<Vec<ConsumedRecord>, ClientError> {
        match self {
            Source::Alone(consumer) => consumer.poll(wait).await,
            Source::Member(member) => member.poll(wait).await,
        }
    }

    /// A group's offsets follow what was really written out.
    async fn written(&mut self, records: &[ConsumedRecord]) -> Result<(), ClientError> {
        let Source::Member(member) = self else {
            return Ok(());
        };
        for record in records {
            member.processed(record);
        }
        member.commit().await
    }
}

fn start_offset(text: &str) -> Result<StartOffset, String> {
    match text {
        "earliest" => Ok(StartOffset::Earliest),
        "latest" => Ok(StartOffset::Latest),
        number => match number.parse() {
            Ok(offset) if offset >= 0 => Ok(StartOffset::At(offset)),
            _ => Err("must be an offset, earliest or latest".to_owned()),
        },
    }
}
