//! Clients: tasks on a runtime of their own that speak Kafka's protocol with the simulated brokers.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use streamgauge_protocol::frame::{FRAME_SIZE_BYTES, decode_response, encode_request};
use streamgauge_protocol::messages::protocol::{Request, StrBytes};

use crate::network::Network;
use crate::node::sleep_ms;
use crate::random::Random;

/// A client that has no answer by then takes its connection for lost.
const PATIENCE: Duration = Duration::from_secs(40);

/// What all clients know.
#[derive(Default)]
pub struct Everybody {
    stopping: AtomicBool,
    at_work: AtomicUsize,
    violations: Mutex<Vec<String>>,
    /// Counts the moments at which two brokers took themselves for the controller.
    controllers_doubted: AtomicU64,
    /// The same of the leaders of partitions, coordinators among them.
    leaders_doubted: AtomicU64,
}

impl Everybody {
    /// Clients finish what they have begun.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub fn is_done(&self) -> bool {
        self.at_work.load(Ordering::Relaxed) == 0
    }

    /// Two brokers take themselves for the controller. One of them is deposed and does not know it yet; what it says without
    /// writing anything may be out of date, as with Kafka's.
    pub fn doubt_controller(&self) {
        self.controllers_doubted.fetch_add(1, Ordering::Relaxed);
    }

    /// The same of the leaders of a partition.
    pub fn doubt_leader(&self) {
        self.leaders_doubted.fetch_add(1, Ordering::Relaxed);
    }

    /// A promise that was not kept.
    pub fn first_violation(&self) -> Option<String> {
        let violations = self.violations.lock();
        let violations = violations.unwrap_or_else(PoisonError::into_inner);
        violations.first().cloned()
    }
}

pub struct Client {
    number: u32,
    network: Network,
    nodes: usize,
    pub random: Random,
    everybody: Arc<Everybody>,
}

impl Client {
    pub fn new(
        number: u32,
        network: Network,
        nodes: usize,
        seed: u64,
        everybody: &Arc<Everybody>,
    ) -> Self {
        everybody.at_work.fetch_add(1, Ordering::Relaxed);
        Self {
            number,
            network,
            nodes,
            random: Random::new(seed.wrapping_add(u64::from(number) << 32)),
            everybody: Arc::clone(everybody),
        }
    }

    pub fn number(&self) -> u32 {
        self.number
    }

    pub fn is_to_stop(&self) -> bool {
        self.everybody.stopping.load(Ordering::Relaxed)
    }

    /// As long as this is the same number, there was one controller at most, and it was not asked twice: a broker whose connection to
    /// the controller is lost asks once more if it has become the controller itself, as Kafka's do whoever it is.
    pub fn controllers_doubted(&self) -> u64 {
        let doubted = self.everybody.controllers_doubted.load(Ordering::Relaxed);
        doubted + self.network.connections_lost()
    }

    /// As long as this is the same number, each partition had one leader at most.
    pub fn leaders_doubted(&self) -> u64 {
        self.everybody.leaders_doubted.load(Ordering::Relaxed)
    }

    pub fn any_broker(&mut self) -> usize {
        self.random.below(self.nodes as u64) as usize
    }

    pub async fn pause(&mut self, ms_max: u64) {
        sleep_ms(1 + self.random.below(ms_max)).await;
    }

    /// Asks a broker; `None` if the connection was lost, and nobody knows whether it was done.
    pub async fn call<R: Request>(
        &mut self,
        broker: usize,
        version: i16,
        request: &R,
    ) -> Option<R::Response> {
        let frame = encode_request(1, "client", version, request).expect("a valid request");
        let call = self
            .network
            .ask(self.number, broker, frame.slice(FRAME_SIZE_BYTES..))?;
        let answer = tokio::time::timeout(PATIENCE, call.answer()).await.ok()??;
        let answer = answer.slice(FRAME_SIZE_BYTES..);
        let (_, response) =
            decode_response::<R::Response>(answer, version).expect("a broker's answer");
        Some(response)
    }

    /// Says that a promise was not kept.
    pub fn violation(&self, what: String) {
        let mut violations = self
            .everybody
            .violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        violations.push(what);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.everybody.at_work.fetch_sub(1, Ordering::Relaxed);
    }
}

pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A number as bytes of a message.
pub fn numbers(values: &[i32]) -> Bytes {
    values
        .iter()
        .flat_map(|value| value.to_be_bytes())
        .collect()
}

pub fn read_numbers(bytes: &[u8]) -> Vec<i32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|chunk| i32::from_be_bytes(*chunk))
        .collect()
}
