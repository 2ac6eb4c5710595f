//! The brokers of the demonstration, as processes of this very program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::cli::error::CommandError;
use crate::cli::terminal::print;

/// Brokers talk to each other on ports so much above those for clients.
const PEER_PORT_DISTANCE: u16 = 100;

const START_TIME_MAX: Duration = Duration::from_secs(60);
const STOP_TIME_MAX: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

struct Node {
    id: u16,
    address: String,
    log: PathBuf,
    child: Child,
    has_ended: bool,
}

/// Several brokers that run.
pub(super) struct Brokers {
    nodes: Vec<Node>,
}

impl Brokers {
    /// Starts them and waits until each listens. Clients reach them at `listen` and the ports after it.
    pub(super) async fn start(
        count: u16,
        listen: &str,
        directory: &Path,
    ) -> Result<Self, CommandError> {
        let (host, first) = host_and_port(listen)?;
        let port = |distance: u16| {
            first.checked_add(distance).ok_or_else(|| {
                CommandError::Refused(format!("--listen {listen}: there are no ports after it"))
            })
        };
        let mut peers = Vec::new();
        for id in 1..=count {
            let peer_port = port(PEER_PORT_DISTANCE + id - 1)?;
            peers.push(format!("{id}@{host}:{peer_port}"));
        }
        let peers = peers.join(",");
        let mut brokers = Self { nodes: Vec::new() };
        for id in 1..=count {
            let address = format!("{host}:{}", port(id - 1)?);
            let node = start_node(id, count, address, &peers, directory)?;
            brokers.nodes.push(node);
        }
        brokers.wait_until_listening().await?;
        Ok(brokers)
    }

    /// For clients: all of them.
    pub(super) fn bootstrap(&self) -> String {
        let addresses = self.nodes.iter().map(|node| node.address.as_str());
        addresses.collect::<Vec<_>>().join(",")
    }

    /// What a reader wants to know of them, a line each.
    pub(super) fn describe(&self) -> String {
        let lines = self.nodes.iter().map(|node| {
            let pid = node.child.id().unwrap_or_default();
            let log = node.log.display();
            format!(
                "  broker {} on {} is process {pid}, its log {log}\n",
                node.id, node.address
            )
        });
        lines.collect()
    }

    async fn wait_until_listening(&mut self) -> Result<(), CommandError> {
        let deadline = Instant::now() + START_TIME_MAX;
        for node in &mut self.nodes {
            while TcpStream::connect(&node.address).await.is_err() {
                let ended = node.child.try_wait().ok().flatten();
                if ended.is_some() || Instant::now() > deadline {
                    return Err(CommandError::Refused(format!(
                        "broker {} does not start; {} says why",
                        node.id,
                        node.log.display()
                    )));
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Tells of brokers that end. Returns when fewer than a majority are left.
    pub(super) async fn watch(&mut self) -> Result<(), CommandError> {
        loop {
            for node in &mut self.nodes {
                if node.has_ended {
                    continue;
                }
                if let Ok(Some(status)) = node.child.try_wait() {
                    node.has_ended = true;
                    let log = node.log.display();
                    print(&format!(
                        "broker {} has ended ({status}); its log: {log}\n",
                        node.id
                    ))?;
                }
            }
            let left = self.nodes.iter().filter(|node| !node.has_ended).count();
            if left <= self.nodes.len() / 2 {
                return Err(CommandError::Refused(format!(
                    "{left} of {} brokers are left, and a majority is needed",
                    self.nodes.len()
                )));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Asks all to stop and waits until they have; those that take too long are killed.
    pub(super) async fn stop(mut self) {
        for node in &self.nodes {
            let pid = node.child.id().and_then(|id| i32::try_from(id).ok());
            if let Some(pid) = pid.and_then(Pid::from_raw) {
                // One that has ended meanwhile is none to ask.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let deadline = Instant::now() + STOP_TIME_MAX;
        for node in &mut self.nodes {
            if tokio::time::timeout_at(deadline, node.child.wait())
                .await
                .is_err()
            {
                eprintln!("broker {} does not stop and is killed", node.id);
                drop(node.child.kill().await);
            }
        }
    }
}

fn host_and_port(listen: &str) -> Result<(&str, u16), CommandError> {
    let parts = listen.rsplit_once(':');
    parts
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
        .ok_or_else(|| CommandError::Refused(format!("--listen {listen} is not host:port")))
}

fn start_node(
    id: u16,
    count: u16,
    address: String,
    peers: &str,
    directory: &Path,
) -> Result<Node, CommandError> {
    let directory = directory.join(format!("broker-{id}"));
    let log = directory.join("broker.log");
    let failed = |name: &Path| CommandError::io(name.display().to_string());
    fs::create_dir_all(&directory).map_err(failed(&directory))?;
    let mut options = fs::OpenOptions::new();
    let output = options
        .create(true)
        .append(true)
        .open(&log)
        .map_err(failed(&log))?;
    let program = std::env::current_exe().map_err(CommandError::io("this program".to_owned()))?;
    let mut command = Command::new(program);
    command
        .arg("serve")
        .args(["--node-id", &id.to_string()])
        .arg("--data-dir")
        .arg(directory.join("data"))
        .args(["--listen", &address])
        .args(["--peers", peers])
        .args(["--set", &format!("default.replication.factor={count}")])
        .args(["--set", "group.initial.rebalance.delay.ms=0"])
        .args(["--set", "offsets.topic.num.partitions=4"])
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(failed(&log))?)
        .stderr(output)
        // Ctrl-C is for the demonstration, which stops its brokers itself.
        .process_group(0)
        .kill_on_drop(true);
    let child = command.spawn().map_err(failed(&log))?;
    Ok(Node {
        id,
        address,
        log,
        child,
        has_ended: false,
    })
}
