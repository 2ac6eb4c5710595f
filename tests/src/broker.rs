//! A broker as a process: ours or, to prove the tests, Apache Kafka's.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::fetch::{java, profile_dir, target_dir};
use crate::process::{poll, run, spawn, wait};

const START_TIME_MAX: Duration = Duration::from_secs(60);
const STOP_TIME_MAX: Duration = Duration::from_secs(30);
const BUILD_TIME_MAX: Duration = Duration::from_secs(1800);

/// Both brokers get these: four partitions as client test suites assume, and no wait for a group's first members.
const SETTINGS: [&str; 2] = ["num.partitions=4", "group.initial.rebalance.delay.ms=0"];

/// Which broker the tests run against.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    Streamgauge,
    Kafka,
}

impl Peer {
    /// As `STREAMGAUGE_TEST_PEER` says; ours by default.
    pub fn chosen() -> Peer {
        match std::env::var("STREAMGAUGE_TEST_PEER").as_deref() {
            Ok("kafka") => Peer::Kafka,
            Ok("streamgauge") | Err(_) => Peer::Streamgauge,
            Ok(other) => panic!("STREAMGAUGE_TEST_PEER is {other}; it can be streamgauge or kafka"),
        }
    }
}

/// True, with a note, when the tests run against Apache Kafka and this one is of something that only Streamgauge has.
pub fn only_streamgauge(what: &str) -> bool {
    let skip = Peer::chosen() == Peer::Kafka;
    if skip {
        eprintln!("not run against Apache Kafka: {what}");
    }
    skip
}

/// A broker process with a port and a directory of its own; killed when dropped.
pub struct Broker {
    peer: Peer,
    settings: Vec<String>,
    directory: PathBuf,
    port: u16,
    child: Child,
}

impl Broker {
    /// Starts the broker that the environment asks for, waits until it listens.
    pub fn start(name: &str) -> Broker {
        Broker::start_with(name, &[])
    }

    /// As [`Broker::start`], with settings (`key=value`, Kafka's names) on top of the common ones.
    pub fn start_with(name: &str, settings: &[&str]) -> Broker {
        Broker::start_peer(Peer::chosen(), name, settings)
    }

    /// As [`Broker::start_with`], but the broker that is named.
    pub fn start_peer(peer: Peer, name: &str, settings: &[&str]) -> Broker {
        Broker::start_prepared(peer, name, settings, |_| ())
    }

    /// As [`Broker::start_peer`]; `prepare` is given the data directory, which it may make, before the broker starts.
    pub fn start_prepared(
        peer: Peer,
        name: &str,
        settings: &[&str],
        prepare: impl FnOnce(&Path),
    ) -> Broker {
        let directory = target_dir()
            .join("e2e")
            .join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).expect("a directory for the broker can be made");
        let port = free_port();
        let settings: Vec<String> = SETTINGS
            .iter()
            .chain(settings)
            .map(|&setting| setting.to_owned())
            .collect();
        prepare(&directory.join("data"));
        if peer == Peer::Kafka {
            format_kafka(&directory, port, &settings);
        }
        let child = launch(peer, &directory, port, &settings);
        let mut broker = Broker {
            peer,
            settings,
            directory,
            port,
            child,
        };
        broker.wait_until_listening();
        broker
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Host and port for a client.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The directory with the partitions' directories in it.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// A directory that goes away with the broker, for a test's own files.
    pub fn scratch_dir(&self) -> &Path {
        &self.directory
    }

    /// Kills the process as `kill -9` does and starts it again on the same port and directory.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    /// Kills the process as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().expect("the broker can be killed");
        self.child.wait().expect("the broker can be reaped");
    }

    /// Asks the broker to stop (SIGTERM) and waits until it has.
    pub fn stop(&mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("the broker can be signalled");
        let Some(status) = wait(&mut self.child, STOP_TIME_MAX) else {
            panic!(
                "the broker had not stopped {STOP_TIME_MAX:?} after SIGTERM\n{}",
                self.log_tail()
            );
        };
        // A JVM that a signal stops reports 143.
        let well = status.success() || self.peer == Peer::Kafka && status.code() == Some(143);
        assert!(
            well,
            "the broker ended with {status} after SIGTERM\n{}",
            self.log_tail()
        );
    }

    /// Starts a stopped broker again on the same port and directory.
    pub fn restart(&mut self) {
        self.child = launch(self.peer, &self.directory, self.port, &self.settings);
        self.wait_until_listening();
    }

    /// Panics with the log unless the process is still the one that was started.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("the broker can be asked for") {
            panic!("the broker ended with {status}\n{}", self.log_tail());
        }
    }

    /// Resident memory now, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most memory that was ever resident, in bytes.
    pub fn resident_bytes_max(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .expect("a live broker has a status");
        let line = status
            .lines()
            .find(|line| line.starts_with(field))
            .expect("the status has this field");
        let kibibytes: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|text| text.parse().ok())
            .expect("a number of kB");
        kibibytes * 1024
    }

    /// The end of what the broker said, and where the rest is.
    pub fn log_tail(&self) -> String {
        let path = self.directory.join("broker.log");
        let log = fs::read(&path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(60)..];
        format!("--- end of {}\n{}\n---", path.display(), tail.join("\n"))
    }

    fn wait_until_listening(&mut self) {
        let address = self.address();
        let listening = poll(START_TIME_MAX, || {
            self.assert_alive();
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()
        });
        assert!(
            listening.is_some(),
            "the broker was not listening after {START_TIME_MAX:?}\n{}",
            self.log_tail()
        );
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        } else {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// A broker that the tests of one file share while any of them runs.
pub struct SharedBroker(Arc<Broker>);

/// The broker of this test binary; started by the first test that asks, stopped with the last.
pub fn shared(name: &str) -> SharedBroker {
    static SHARED: Mutex<Weak<Broker>> = Mutex::new(Weak::new());
    // A test that failed while it held the lock leaves nothing half done.
    let mut slot = SHARED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let broker = slot.upgrade().unwrap_or_else(|| {
        let broker = Arc::new(Broker::start(name));
        *slot = Arc::downgrade(&broker);
        broker
    });
    SharedBroker(broker)
}

impl Deref for SharedBroker {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        &self.0
    }
}

impl Drop for SharedBroker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.log_tail());
        }
    }
}

/// The binary under test; built by cargo once unless `STREAMGAUGE_BIN` names one.
pub fn streamgauge() -> Command {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let binary = BINARY.get_or_init(|| {
        if let Some(binary) = std::env::var_os("STREAMGAUGE_BIN") {
            return PathBuf::from(binary);
        }
        let profile = profile_dir();
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args([
                "build",
                "-q",
                // The same features as `cargo test --workspace` chose: nothing is built twice.
                "--workspace",
                "--bins",
                "--target-dir",
            ])
            .arg(target_dir());
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        run(cargo, BUILD_TIME_MAX).expect_success("building the broker");
        profile.join("streamgauge")
    });
    let mut command = Command::new(binary);
    // The program reads its settings from variables of this prefix; those of the tests are not.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"STREAMGAUGE_") {
            command.env_remove(name);
        }
    }
    command
}

fn launch(peer: Peer, directory: &Path, port: u16, settings: &[String]) -> Child {
    let mut command = match peer {
        Peer::Streamgauge => {
            let mut command = streamgauge();
            command
                .arg("serve")
                .arg("--data-dir")
                .arg(directory.join("data"))
                .arg("--listen")
                .arg(format!("127.0.0.1:{port}"));
            for setting in settings {
                command.arg("--set").arg(setting);
            }
            command
        }
        Peer::Kafka => {
            let mut command = java().expect("STREAMGAUGE_TEST_PEER=kafka needs Java");
            command
                .arg("kafka.Kafka")
                .arg(directory.join("server.properties"));
            command
        }
    };
    let log = File::options()
        .create(true)
        .append(true)
        .open(directory.join("broker.log"))
        .expect("a log can be opened");
    command
        .stdin(Stdio::null())
        .stderr(log.try_clone().expect("a file handle can be doubled"))
        .stdout(log);
    spawn(command)
}

/// Writes Kafka's properties for one combined node and formats its directory.
fn format_kafka(directory: &Path, port: u16, settings: &[String]) {
    let controller = free_port();
    let properties = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\nlog.dirs={}\n\
         offsets.topic.replication.factor=1\noffsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n{}\n",
        directory.join("data").display(),
        settings.join("\n")
    );
    let path = directory.join("server.properties");
    fs::write(&path, properties).expect("the properties can be written");
    let mut format = java().expect("STREAMGAUGE_TEST_PEER=kafka needs Java");
    format
        .args([
            "kafka.tools.StorageTool",
            "format",
            "-t",
            "AAAAAAAAAAAAAAAAAAAAAQ",
            "-c",
        ])
        .arg(path);
    run(format, START_TIME_MAX).expect_success("formatting Kafka's directory");
}

/// A port that nothing listens on, below the range from which the kernel takes ports for outgoing connections, so that it
/// is still free when a killed broker starts again.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// The first of so many such ports in a row.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 600) as u16 * 20;
    for _ in 0..12_000 {
        let first = 20_000 + (start + NEXT.fetch_add(count, Ordering::Relaxed)) % 12_000;
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if (first..first + count).all(is_free) {
            return first;
        }
    }
    panic!("no free port between 20000 and 32000");
}
