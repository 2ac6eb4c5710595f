//! `produce TOPIC`: a record for each line of stdin.
//!
//! Lines that are there are sent together; nothing waits for more, so one can type.

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use streamgauge_protocol::batch::Header;
use streamgauge_protocol::compression::Compression;
use tokio::sync::mpsc;

use super::ConnectArgs;
use super::error::CommandError;
use super::record_line::{ParsedRecord, parse_json, parse_plain};
use super::terminal::stop_signal;
use crate::client::{Acks, Producer, ProducerOptions, ProducerRecord};

const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;
const LINES_WAITING_MAX: usize = 1024;

#[derive(Debug, Args)]
pub(super) struct ProduceArgs {
    topic: String,
    /// What a line is.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Text between key and value of a plain line. Default: lines have no key.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key_separator: Option<String>,
    /// Send every record to this partition.
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Which copies must have a record before it counts as written.
    #[arg(long, value_parser = acks, default_value = "all", value_name = "0|1|all")]
    acks: Acks,
    #[arg(long, value_parser = compression, default_value = "none", value_name = "none|gzip|snappy|lz4|zstd")]
    compression: Compression,
    /// How long to go on trying to deliver a record.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "30s")]
    timeout: Duration,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// How records stand in lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// The value as it is.
    #[default]
    Plain,
    /// A JSON object with key, value, headers, timestamp, partition.
    Json,
}

pub(super) async fn run(args: &ProduceArgs) -> Result<(), CommandError> {
    let client = args.connect.connect_with(|options| {
        options.operation_timeout = args.timeout;
        options.allow_auto_create_topics = true;
    });
    let client = client.await?;
    let options = ProducerOptions {
        acks: args.acks,
        compression: args.compression,
        delivery_timeout: args.timeout,
        ..ProducerOptions::default()
    };
    let mut producer = Producer::new(client, options);
    let mut lines = read_lines();
    let mut stopped = std::pin::pin!(stop_signal());
    let mut number = 0u64;
    loop {
        let line = match lines.try_recv() {
            Ok(line) => Some(line),
            Err(_) => {
                producer.flush().await?;
                tokio::select! {
                    line = lines.recv() => line,
                    _ = &mut stopped => None,
                }
            }
        };
        let Some(line) = line else { break };
        number += 1;
        let sent = send(
            &mut producer,
            args,
            &line.map_err(CommandError::io("stdin"))?,
        )
        .await;
        if let Err(error) = sent {
            // What came before it is written.
            producer.flush().await?;
            return Err(match error {
                CommandError::Refused(reason) => {
                    CommandError::Refused(format!("line {number} {reason}"))
                }
                other => other,
            });
        }
    }
    producer.flush().await?;
    Ok(())
}

async fn send(
    producer: &mut Producer,
    args: &ProduceArgs,
    line: &[u8],
) -> Result<(), CommandError> {
    let parsed: ParsedRecord = match args.format {
        Format::Plain => parse_plain(line, args.key_separator.as_deref().map(str::as_bytes)),
        Format::Json => parse_json(line),
    }
    .map_err(CommandError::Refused)?;
    let headers: Vec<Header<'_>> = parsed
        .headers
        .iter()
        .map(|(key, value)| Header {
            key,
            value: value.as_deref(),
        })
        .collect();
    let record = ProducerRecord {
        topic: &args.topic,
        partition: args.partition.or(parsed.partition),
        timestamp: parsed.timestamp.unwrap_or_else(now_ms),
        key: parsed.key.as_deref(),
        value: parsed.value.as_deref(),
        headers: &headers,
    };
    Ok(producer.send(&record).await?)
}

/// The lines of stdin, read on a thread of their own: a read from a terminal cannot be called off.
fn read_lines() -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(LINES_WAITING_MAX);
    std::thread::spawn(move || {
        let mut input = BufReader::new(std::io::stdin());
        loop {
            let mut line = Vec::new();
            let read = input
                .by_ref()
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut line);
            let line = match read {
                Ok(0) => return,
                Ok(_) => {
                    if line.last() == Some(&b'\n') {
                        line.pop();
                        if line.last() == Some(&b'\r') {
                            line.pop();
                        }
                    }
                    Ok(line)
                }
                Err(error) => Err(error),
            };
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

fn acks(text: &str) -> Result<Acks, String> {
    match text {
        "0" => Ok(Acks::None),
        "1" => Ok(Acks::Leader),
        "all" | "-1" => Ok(Acks::All),
        _ => Err("must be 0, 1 or all".to_owned()),
    }
}

fn compression(text: &str) -> Result<Compression, String> {
    Compression::ALL
        .into_iter()
        .find(|codec| codec.name() == text)
        .ok_or_else(|| "must be none, gzip, snappy, lz4 or zstd".to_owned())
}
