//! A network link between two processes that can be cut and slowed, one direction at a time.
//!
//! A link is a TCP proxy in this process. What is cut is held back and not lost, as TCP would send it again; also the
//! end of a connection is held back, so that nobody learns of it through a cut link. A connection that is made through
//! a cut link opens and stays silent.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How soon a cut, a heal and the end of a link are noticed.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(1);
const BUFFER_BYTES: usize = 256 * 1024;

/// One direction of a link.
#[derive(Default)]
pub struct Direction {
    is_cut: AtomicBool,
    delay_ms: AtomicU64,
    bytes: AtomicU64,
}

impl Direction {
    /// How many bytes it has handed on so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
    }

    /// Whole again, and as fast as it can be.
    pub fn heal(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
        self.delay_ms.store(0, Ordering::SeqCst);
    }

    /// From now on everything takes so much longer.
    pub fn delay(&self, time: Duration) {
        let delay_ms = u64::try_from(time.as_millis()).expect("a delay of hours");
        self.delay_ms.store(delay_ms, Ordering::SeqCst);
    }
}

/// A link; its connections end when it is dropped.
pub struct Link {
    port: u16,
    /// From who connects.
    pub there: Arc<Direction>,
    /// To who connects.
    pub back: Arc<Direction>,
    ended: Arc<AtomicBool>,
}

impl Link {
    /// Listens on `port` and hands on to `target`.
    pub fn open(port: u16, target: u16) -> Link {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a link's port is free");
        let link = Link {
            port,
            there: Arc::default(),
            back: Arc::default(),
            ended: Arc::default(),
        };
        let (there, back) = (Arc::clone(&link.there), Arc::clone(&link.back));
        let ended = Arc::clone(&link.ended);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let target = SocketAddr::from((Ipv4Addr::LOCALHOST, target));
                // Nobody there: the connection is closed as soon as it is made.
                if let Ok(far) = TcpStream::connect_timeout(&target, CONNECT_TIME_MAX) {
                    carry(near, far, &there, &back, &ended);
                }
            }
        });
        link
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn carry(
    near: TcpStream,
    far: TcpStream,
    there: &Arc<Direction>,
    back: &Arc<Direction>,
    ended: &Arc<AtomicBool>,
) {
    let closed = Arc::new(AtomicU32::new(0));
    let double = |stream: &TcpStream| stream.try_clone().expect("a socket can be doubled");
    let ways = [(double(&near), double(&far), there), (far, near, back)];
    for (from, to, direction) in ways {
        let pump = Pump {
            from,
            to,
            direction: Arc::clone(direction),
            closed: Arc::clone(&closed),
            ended: Arc::clone(ended),
        };
        thread::spawn(move || pump.run());
    }
}

/// Carries the bytes of one connection in one direction.
struct Pump {
    from: TcpStream,
    to: TcpStream,
    direction: Arc<Direction>,
    /// How many of the two sides have closed.
    closed: Arc<AtomicU32>,
    ended: Arc<AtomicBool>,
}

impl Pump {
    fn run(mut self) {
        let _ = self.from.set_nodelay(true);
        let _ = self.to.set_nodelay(true);
        let _ = self.from.set_read_timeout(Some(LOOK_INTERVAL));
        let mut buffer = vec![0; BUFFER_BYTES];
        while !self.ended.load(Ordering::SeqCst) {
            match self.from.read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => {
                    if !self.pass() || self.to.write_all(&buffer[..bytes]).is_err() {
                        break;
                    }
                    self.direction
                        .bytes
                        .fetch_add(bytes as u64, Ordering::SeqCst);
                }
                Err(error) if is_timeout(error.kind()) => {}
                Err(_) => break,
            }
        }
        self.closed.fetch_add(1, Ordering::SeqCst);
        self.pass();
        let _ = self.from.shutdown(Shutdown::Both);
        let _ = self.to.shutdown(Shutdown::Both);
    }

    /// Waits as the direction asks; false if there is nobody left to wait for.
    fn pass(&self) -> bool {
        let delay_ms = self.direction.delay_ms.load(Ordering::SeqCst);
        if delay_ms > 0 {
            thread::sleep(Duration::from_millis(delay_ms));
        }
        while self.direction.is_cut.load(Ordering::SeqCst) {
            if self.ended.load(Ordering::SeqCst) || self.closed.load(Ordering::SeqCst) == 2 {
                return false;
            }
            thread::sleep(LOOK_INTERVAL);
        }
        true
    }
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
