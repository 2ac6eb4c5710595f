//! Child processes that cannot outlive the tests, and waits that always end.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, set_parent_process_death_signal};

/// As `/proc/net/tcp` writes it.
const TCP_ESTABLISHED: &str = "01";

/// What a finished program left behind.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Panics with all that the program said unless it ended well; hands back its standard output.
    pub fn expect_success(self, what: &str) -> String {
        assert!(
            self.status.success(),
            "{what} ended with {}\n--- stdout\n{}\n--- stderr\n{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self.stdout
    }
}

/// Runs a program to its end, or kills it and panics once `time_max` has passed.
pub fn run(command: Command, time_max: Duration) -> Finished {
    run_with_input(command, b"", time_max)
}

/// As [`run`], with `input` on the program's standard input.
pub fn run_with_input(mut command: Command, input: &[u8], time_max: Duration) -> Finished {
    let what = format!("{command:?}");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn(command);
    let mut stdin = child.stdin.take().expect("stdin was piped");
    let input = input.to_vec();
    // A program may end without reading its input; that is its own affair.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let stdout = read_aside(child.stdout.take().expect("stdout was piped"));
    let stderr = read_aside(child.stderr.take().expect("stderr was piped"));
    let status = wait(&mut child, time_max);
    if status.is_none() {
        child.kill().expect("a child can be killed");
        child.wait().expect("a killed child can be reaped");
    }
    let (stdout, stderr) = (
        stdout.join().expect("reader"),
        stderr.join().expect("reader"),
    );
    writer.join().expect("writer");
    let Some(status) = status else {
        panic!(
            "{what} had not ended after {time_max:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        );
    };
    Finished {
        status,
        stdout,
        stderr,
    }
}

/// Waits for a child's end for at most `time_max`.
pub fn wait(child: &mut Child, time_max: Duration) -> Option<ExitStatus> {
    poll(time_max, || {
        child.try_wait().expect("a child can be waited for")
    })
}

/// Asks again and again until there is an answer or `time_max` has passed.
pub fn poll<T>(time_max: Duration, mut question: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + time_max;
    loop {
        if let Some(answer) = question() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Starts a program that the kernel kills when this test process ends, however it ends.
///
/// The kernel's death signal follows the *thread* that made the child, and test threads come and go, so one thread that
/// lives as long as the process starts them all.
pub fn spawn(mut command: Command) -> Child {
    type Order = (Command, Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    // SAFETY: between fork and exec the closure makes one system call and touches no memory of ours.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let what = format!("{command:?}");
    let (answer, child) = channel();
    spawner
        .lock()
        .expect("spawner")
        .send((command, answer))
        .expect("the spawner lives as long as the process");
    child
        .recv()
        .expect("the spawner answers")
        .unwrap_or_else(|error| panic!("cannot start {what}: {error}"))
}

/// The remote ports of a process's established connections over IPv4.
pub fn connected_ports(pid: u32) -> BTreeSet<u16> {
    // A file may be closed while the list is read.
    let sockets: BTreeSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a live process has files")
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .filter_map(|target| {
            let inode = target.to_str()?.strip_prefix("socket:[")?;
            Some(inode.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").expect("the system lists its connections");
    let remote_port = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (remote, state, inode) = (words.get(2)?, *words.get(3)?, *words.get(9)?);
        if state != TCP_ESTABLISHED || !sockets.contains(inode) {
            return None;
        }
        u16::from_str_radix(remote.split_once(':')?.1, 16).ok()
    };
    table.lines().skip(1).filter_map(remote_port).collect()
}

fn read_aside(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
