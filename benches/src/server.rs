//! A broker process under measurement: ours or Apache Kafka's, and what it has cost so far.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use streamgauge_tests::broker::{free_port, streamgauge};
use streamgauge_tests::fetch::{kafka_jars, target_dir};
use streamgauge_tests::process::{poll, run, spawn};

const START_TIME_MAX: Duration = Duration::from_secs(60);
/// What `kafka-server-start.sh` and `kafka-run-class.sh` give the broker's JVM.
pub(crate) const KAFKA_JVM_OPTIONS: [&str; 6] = [
    "-Xmx1G",
    "-Xms1G",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
];
/// `/proc/PID/stat` counts in these: `USER_HZ` is 100 on every architecture that Linux runs on today.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    Streamgauge,
    Kafka,
}

impl Peer {
    pub fn name(self) -> &'static str {
        match self {
            Peer::Streamgauge => "streamgauge",
            Peer::Kafka => "kafka",
        }
    }
}

/// A running broker; killed, and its directory removed, when dropped.
pub struct Server {
    pub peer: Peer,
    directory: PathBuf,
    port: u16,
    child: Child,
}

impl Server {
    /// Starts a broker with defaults and waits until it listens. `None`, loudly, when Kafka's runtime is missing here.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(peer: Peer) -> Option<Server> {
        let directory =
            target_dir()
                .join("benches")
                .join(format!("{}-{}", peer.name(), std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).expect("a directory for the broker can be made");
        let port = free_port();
        let mut command = match peer {
            Peer::Streamgauge => {
                let mut command = streamgauge();
                command.arg("serve").arg("--data-dir");
                command.arg(directory.join("data"));
                command.arg("--listen").arg(format!("127.0.0.1:{port}"));
                command
            }
            Peer::Kafka => kafka(&directory, port)?,
        };
        let log = File::create(directory.join("broker.log")).expect("a log can be made");
        command
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a file handle can be doubled"))
            .stdout(log);
        let server = Server {
            peer,
            directory,
            port,
            child: spawn(command),
        };
        let listening = poll(START_TIME_MAX, || {
            TcpStream::connect_timeout(&server.address(), Duration::from_secs(1)).ok()
        });
        assert!(listening.is_some(), "{} does not listen", peer.name());
        Some(server)
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// User and system time of all threads so far.
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds_of(self.child.id())
    }

    /// The most memory that was ever resident, MiB.
    pub fn resident_mib_max(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .expect("the broker is running");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .expect("a peak of resident memory");
        let kibibytes: f64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|text| text.parse().ok())
            .expect("a number of kB");
        kibibytes / 1024.0
    }
}

/// User and system time of all threads of a process so far.
pub(crate) fn cpu_seconds_of(process_id: u32) -> f64 {
    let stat =
        fs::read_to_string(format!("/proc/{process_id}/stat")).expect("the broker is running");
    // The name in parentheses may hold anything; utime and stime are fields 14 and 15, the name is field 2.
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<f64>().expect("a number of ticks"))
        .sum();
    ticks / TICKS_PER_SECOND
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// One combined node with Kafka's defaults, its directory formatted.
fn kafka(directory: &Path, port: u16) -> Option<Command> {
    let jars = kafka_jars()?.join("*");
    let controller = free_port();
    let properties = directory.join("server.properties");
    let text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\nlog.dirs={}\n\
         offsets.topic.replication.factor=1\n",
        directory.join("data").display(),
    );
    fs::write(&properties, text).expect("the properties can be written");
    let java = || {
        let mut command = Command::new("java");
        command.args(KAFKA_JVM_OPTIONS).arg("-cp").arg(&jars);
        command
    };
    let mut format = java();
    format
        .args(["kafka.tools.StorageTool", "format"])
        .args(["-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c"])
        .arg(&properties);
    run(format, START_TIME_MAX).expect_success("formatting Kafka's directory");
    let mut command = java();
    command.arg("kafka.Kafka").arg(properties);
    Some(command)
}
