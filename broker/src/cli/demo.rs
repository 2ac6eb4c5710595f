//! `demo`: a broker, the examples' aggregations, a shop's traffic and its results, in one process; or
//! several brokers as processes of their own.
//!
//! All parts speak to the broker as any client does: the topics are created, the declarations applied, records produced and results
//! consumed over its socket. Data stays in the directory, so a second start goes on.

mod brokers;
mod events;
mod show;

use std::path::Path;
use std::time::Duration;

use clap::Args;
use streamgauge_aggregator::declaration::Declaration;
use streamgauge_protocol::ErrorCode;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing_subscriber::EnvFilter;

use super::apply::{Applied, apply};
use super::error::CommandError;
use super::produce::now_ms;
use super::serve::{environment, finish, listener};
use super::terminal::{log_to_stderr, print, stop_signal};
use crate::client::admin::NewTopic;
use crate::client::{
    Client, ClientError, ClientOptions, Consumer, ConsumerOptions, Producer, ProducerOptions,
    ProducerRecord, StartOffset,
};
use crate::config::{BrokerConfig, ConfigLoader};
use crate::server;
use brokers::Brokers;
use events::{EventGenerator, Stream};
use show::Screen;

/// The declarations, by file name.
const EXAMPLES: [(&str, &str); 4] = [
    (
        "orders-per-minute.yaml",
        include_str!("../../../examples/orders-per-minute.yaml"),
    ),
    (
        "revenue-live.yaml",
        include_str!("../../../examples/revenue-live.yaml"),
    ),
    (
        "page-views.yaml",
        include_str!("../../../examples/page-views.yaml"),
    ),
    (
        "request-health.yaml",
        include_str!("../../../examples/request-health.yaml"),
    ),
];
/// Between two batches of events.
const TICK: Duration = Duration::from_millis(50);
const POLL_WAIT_MAX: Duration = Duration::from_millis(200);
const SOURCE_PARTITIONS: i32 = 4;

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Where the data is kept.
    #[arg(long, default_value = "./streamgauge-demo", value_name = "DIR")]
    data_dir: String,
    /// Where the broker listens.
    #[arg(long, default_value = "127.0.0.1:9092", value_name = "HOST:PORT")]
    listen: String,
    /// So many brokers, each a process of its own, that form a cluster: the others listen on the ports after
    /// that of --listen, and talk to each other on those a hundred above.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=9))]
    brokers: u16,
    /// Events a second.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Stop after so long, as 30s. Default: at Ctrl-C.
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
}

pub(super) async fn run(args: &DemoArgs) -> Result<(), CommandError> {
    log_to_stderr(EnvFilter::new("warn"));
    let mut stopped = std::pin::pin!(stop_signal());
    if args.brokers > 1 {
        let mut stopped = std::pin::pin!(async { drop(stopped.await) });
        return run_several(args, stopped.as_mut()).await;
    }
    let running = server::start(config(args)?)
        .await
        .map_err(|error| CommandError::Refused(error.to_string()))?;
    let address = running.address.to_string();
    let place = format!(
        "a broker listens on {address}, its data is in {}\n",
        args.data_dir
    );
    let result = tokio::select! {
        result = show_all(args, &address, &place) => result,
        _ = &mut stopped => Ok(()),
    };
    eprintln!("stopping");
    running.stop().await;
    result
}

async fn run_several(
    args: &DemoArgs,
    stopped: impl Future<Output = ()>,
) -> Result<(), CommandError> {
    let directory = Path::new(&args.data_dir);
    let mut stopped = std::pin::pin!(stopped);
    let mut brokers = tokio::select! {
        brokers = Brokers::start(args.brokers, &args.listen, directory) => brokers?,
        () = &mut stopped => return Ok(()),
    };
    let address = brokers.bootstrap();
    let place = format!(
        "{} brokers form a cluster, every topic is on all of them; kill one and watch:\n{}",
        args.brokers,
        brokers.describe()
    );
    let result = tokio::select! {
        result = show_all(args, &address, &place) => result,
        result = brokers.watch() => result,
        () = &mut stopped => Ok(()),
    };
    eprintln!("stopping");
    brokers.stop().await;
    result
}

fn config(args: &DemoArgs) -> Result<BrokerConfig, CommandError> {
    let mut loader = ConfigLoader::new();
    loader.program("group.initial.rebalance.delay.ms", "0");
    loader.program("offsets.topic.num.partitions", "4");
    loader.environment(environment());
    loader.flag("--data-dir", "log.dirs", &args.data_dir);
    loader.flag("--listen", "listeners", &listener(&args.listen));
    finish(loader)
}

async fn show_all(args: &DemoArgs, address: &str, place: &str) -> Result<(), CommandError> {
    let mut client = connect(address).await?;
    let declarations = declarations();
    let mut shown = Vec::new();
    for stream in Stream::ALL {
        create_if_missing(&mut client, stream.topic(), SOURCE_PARTITIONS).await?;
    }
    let mut new = 0;
    for declaration in &declarations {
        for side in [&declaration.late, &declaration.dead_letter]
            .into_iter()
            .flatten()
        {
            create_if_missing(&mut client, &side.topic, 1).await?;
            shown.push(side.topic.clone());
        }
        if apply(&mut client, declaration, false).await? == Applied::Created {
            new += 1;
        }
        shown.push(declaration.topic.clone());
    }
    shown.sort();
    shown.dedup();
    introduce(args, address, place, &declarations, new)?;

    let mut consumer = Consumer::new(client, ConsumerOptions::default());
    for topic in &shown {
        consumer.assign_topic(topic, StartOffset::Latest).await?;
    }
    let producer = Producer::new(connect(address).await?, ProducerOptions::default());
    let ended = async {
        match args.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = produce(producer, args.rate) => result,
        result = show(consumer, &declarations) => result,
        () = ended => Ok(()),
    }
}

fn introduce(
    args: &DemoArgs,
    address: &str,
    place: &str,
    declarations: &[Declaration],
    new: usize,
) -> Result<(), CommandError> {
    let mut text = format!(
        "{place}{} events a second go to orders, views and requests; {} aggregations {}:\n",
        args.rate,
        declarations.len(),
        if new == 0 { "go on" } else { "begin" },
    );
    for declaration in declarations {
        // The one example that is kept as short as can be has none.
        let description = declaration.description.as_deref();
        let description =
            description.unwrap_or("Paid orders and revenue per shop and country, every minute.");
        text.push_str(&format!("  {:<18} {description}\n", declaration.topic));
    }
    text.push_str(&format!(
        "try in another terminal: streamgauge consume orders -b {address}\nCtrl-C stops; started again it goes on\n\n"
    ));
    print(&text)
}

/// Produces at `rate` without end. What was missed while the machine was busy is made up for at most a second's worth.
async fn produce(mut producer: Producer, rate: u32) -> Result<(), CommandError> {
    let mut generator = EventGenerator::new(now_ms().unsigned_abs());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    let mut owed = 0.0;
    loop {
        ticks.tick().await;
        owed += last.elapsed().as_secs_f64() * f64::from(rate);
        owed = f64::min(owed, f64::from(rate));
        last = Instant::now();
        while owed >= 1.0 {
            owed -= 1.0;
            let now = now_ms();
            let event = generator.next(now);
            producer
                .send(&ProducerRecord {
                    topic: event.stream.topic(),
                    timestamp: now,
                    key: Some(event.key.as_bytes()),
                    value: Some(event.value.as_bytes()),
                    ..ProducerRecord::default()
                })
                .await?;
        }
        producer.flush().await?;
    }
}

/// Prints results as they come.
async fn show(mut consumer: Consumer, declarations: &[Declaration]) -> Result<(), CommandError> {
    let derived = declarations.iter().map(|declaration| &declaration.topic);
    let mut screen = Screen::new(derived.cloned().collect());
    loop {
        let records = consumer.poll(POLL_WAIT_MAX).await?;
        let text = screen.lines(&records, now_ms());
        if !text.is_empty() {
            print(&text)?;
        }
    }
}

async fn connect(address: &str) -> Result<Client, ClientError> {
    let mut options = ClientOptions::new(address);
    options.client_id = "streamgauge-demo".to_owned();
    Client::connect(options).await
}

async fn create_if_missing(
    client: &mut Client,
    topic: &str,
    partitions: i32,
) -> Result<(), ClientError> {
    let new = NewTopic {
        name: topic.to_owned(),
        partitions: Some(partitions),
        ..NewTopic::default()
    };
    match client.create_topic(&new, false).await {
        Err(error) if error.code() == Some(ErrorCode::TopicAlreadyExists) => Ok(()),
        result => result,
    }
}

/// The examples, which a test proves right.
fn declarations() -> Vec<Declaration> {
    let parsed = EXAMPLES.iter().filter_map(|(name, text)| {
        let parsed = Declaration::parse_all(text, name);
        parsed.ok()
    });
    parsed.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_valid_and_in_the_demonstration() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
        let mut files = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            files += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            let parsed = Declaration::parse_all(&text, name).unwrap();
            assert_eq!(format!("{}.yaml", parsed[0].topic), name);
            let embedded = EXAMPLES.iter().find(|(known, _)| *known == name);
            assert_eq!(
                embedded.map(|(_, text)| *text),
                Some(text.as_str()),
                "{name}"
            );
        }
        assert_eq!(files, EXAMPLES.len());
        assert_eq!(declarations().len(), EXAMPLES.len());
    }

    #[test]
    fn what_the_examples_read_is_what_the_demonstration_writes() {
        let streams = Stream::ALL.map(Stream::topic);
        for declaration in declarations() {
            assert!(streams.contains(&declaration.from.topic.as_str()));
        }
    }
}
