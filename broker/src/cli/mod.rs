//! The command line: `serve` runs a broker, the rest are clients of one.
//!
//! Data goes to stdout and diagnostics to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage. A reader that closes our stdout, as
//! `head` does, and Ctrl-C end a command well.

mod apply;
mod consume;
mod demo;
mod error;
mod files;
mod group;
mod produce;
mod record_line;
mod schema;
mod serve;
mod terminal;
mod topic;
mod validate;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::client::{Client, ClientError, ClientOptions};
use error::CommandError;

/// A Kafka-compatible broker with built-in windowed aggregation.
#[derive(Debug, Parser)]
#[command(name = "streamgauge", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker until Ctrl-C.
    Serve(serve::ServeArgs),
    /// Run a broker with the examples, made-up traffic and the results.
    Demo(demo::DemoArgs),
    /// Check declarations and tell every mistake in them.
    Validate(validate::ValidateArgs),
    /// Create or change derived topics as their declarations say.
    Apply(apply::ApplyArgs),
    /// Print the JSON Schema of declarations, for editors.
    Schema,
    /// List, create, describe, change and delete topics.
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// Write lines from stdin to a topic.
    Produce(produce::ProduceArgs),
    /// Print a topic's records to stdout.
    Consume(consume::ConsumeArgs),
    /// List and describe consumer groups.
    #[command(subcommand)]
    Group(group::GroupCommand),
}

/// How a command finds its cluster.
#[derive(Clone, Debug, Args)]
struct ConnectArgs {
    /// Brokers to begin with, host:port, several with commas between.
    #[arg(
        short = 'b',
        long = "bootstrap-server",
        env = "STREAMGAUGE_BOOTSTRAP_SERVER",
        default_value = "127.0.0.1:9092",
        value_name = "HOST:PORT"
    )]
    bootstrap_server: String,
    /// Say on stderr what goes on; twice for more.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

impl ConnectArgs {
    /// Connects; operations give up after `operation_timeout`.
    async fn connect(&self, operation_timeout: Duration) -> Result<Client, ClientError> {
        self.connect_with(|options| options.operation_timeout = operation_timeout)
            .await
    }

    async fn connect_with(
        &self,
        set: impl FnOnce(&mut ClientOptions),
    ) -> Result<Client, ClientError> {
        let level = match self.verbose {
            0 => "warn",
            1 => "info",
            _ => "debug",
        };
        terminal::log_to_stderr(EnvFilter::new(level));
        let mut options = ClientOptions::new(&self.bootstrap_server);
        set(&mut options);
        Client::connect(options).await
    }

    /// For commands that ask once: a broker that is not there is told soon.
    async fn connect_briefly(&self) -> Result<Client, ClientError> {
        self.connect(Duration::from_secs(10)).await
    }
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("streamgauge: starting threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(cli.command));
    // A thread that waits for stdin must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) | Err(CommandError::OutputClosed) => ExitCode::SUCCESS,
        Err(CommandError::Told) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("streamgauge: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<(), CommandError> {
    match command {
        Command::Serve(args) => serve::run(&args).await,
        Command::Demo(args) => demo::run(&args).await,
        Command::Validate(args) => validate::run(&args),
        Command::Apply(args) => apply::run(&args).await,
        Command::Schema => schema::run(),
        Command::Topic(command) => topic::run(command).await,
        Command::Produce(args) => produce::run(&args).await,
        Command::Consume(args) => consume::run(&args).await,
        Command::Group(command) => group::run(command).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }
}
