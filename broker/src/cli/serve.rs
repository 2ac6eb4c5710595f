//! `serve`: a broker in the foreground.
//!
//! Settings come from the file, then the environment (`STREAMGAUGE_LOG_DIRS`), then `--set`, then the flags of their own; later ones win.

use std::io;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::error::CommandError;
use super::topic::key_value;
use crate::config::{BrokerConfig, ConfigLoader, LogFormat, local_hostname};
use crate::server;

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Where the data is kept. Default: ./data.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where to listen, as host:port or NAME://host:port. Default: 127.0.0.1:9092.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// A YAML file of settings, by Kafka's names.
    #[arg(long, env = "STREAMGAUGE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// This broker's number in its cluster. Default: 1.
    #[arg(long, value_name = "N")]
    node_id: Option<String>,
    /// The brokers that found the cluster, and where they talk to each other; the same list on
    /// each. Sets controller.quorum.voters.
    #[arg(long, value_name = "ID@HOST:PORT,…")]
    peers: Option<String>,
    /// Where this broker talks to the others if --peers does not name it: it joins their cluster. Sets streamgauge.peer.listener.
    #[arg(long, value_name = "HOST:PORT")]
    peer_listen: Option<String>,
    /// Any setting by its name, as num.partitions=4; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// How log lines are written. Default: text.
    #[arg(long, value_enum)]
    log_format: Option<LogFormatArg>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormatArg {
    Text,
    Json,
}

pub(super) async fn run(args: &ServeArgs) -> Result<(), CommandError> {
    let config = load(args)?;
    log_as_configured(&config)?;
    server::serve(config)
        .await
        .map_err(|error| CommandError::Refused(error.to_string()))
}

fn load(args: &ServeArgs) -> Result<BrokerConfig, CommandError> {
    let mut loader = ConfigLoader::new();
    if let Some(path) = &args.config {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(CommandError::io(name.clone()))?;
        loader.yaml(&name, &text);
    }
    loader.environment(environment());
    for (key, value) in &args.set {
        loader.flag("--set", key, value);
    }
    if let Some(directory) = &args.data_dir {
        loader.flag("--data-dir", "log.dirs", directory);
    }
    if let Some(listen) = &args.listen {
        loader.flag("--listen", "listeners", &listener(listen));
    }
    if let Some(node_id) = &args.node_id {
        loader.flag("--node-id", "node.id", node_id);
    }
    if let Some(peers) = &args.peers {
        loader.flag("--peers", "controller.quorum.voters", peers);
    }
    if let Some(address) = &args.peer_listen {
        loader.flag("--peer-listen", "streamgauge.peer.listener", address);
    }
    match args.log_format {
        Some(LogFormatArg::Text) => loader.flag("--log-format", "streamgauge.log.format", "text"),
        Some(LogFormatArg::Json) => loader.flag("--log-format", "streamgauge.log.format", "json"),
        None => {}
    }
    finish(loader)
}

/// The settings, or every mistake on stderr.
pub(super) fn finish(loader: ConfigLoader) -> Result<BrokerConfig, CommandError> {
    loader.finish(&local_hostname()).map_err(|error| {
        for problem in error.problems {
            eprintln!("{problem}");
        }
        CommandError::Told
    })
}

/// `host:port` as a listener of the usual name.
pub(super) fn listener(text: &str) -> String {
    if text.contains("://") {
        text.to_owned()
    } else {
        format!("PLAINTEXT://{text}")
    }
}

/// The environment as far as it is text; settings are.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        Some((name, value.into_string().ok()?))
    })
}

/// The broker's log goes to stderr, in colour on a terminal.
fn log_as_configured(config: &BrokerConfig) -> Result<(), CommandError> {
    let filter = EnvFilter::try_new(&config.log_filter).map_err(|error| {
        CommandError::Refused(format!(
            "streamgauge.log.filter: {}: {error}",
            config.log_filter
        ))
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let set = match config.log_format {
        LogFormat::Text => {
            let colour = io::IsTerminal::is_terminal(&io::stderr());
            tracing::subscriber::set_global_default(subscriber.with_ansi(colour).finish())
        }
        LogFormat::Json => tracing::subscriber::set_global_default(subscriber.json().finish()),
    };
    // Only a program that set one before could meet this.
    set.map_err(|error| CommandError::Refused(error.to_string()))
}
