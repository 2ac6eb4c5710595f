//! The load: blocking sockets, requests encoded beforehand, several in flight. It must never be the limit.
//!
//! Produce version 7 and Fetch version 4 are spoken, the newest that both brokers serve whose bodies have no tagged fields:
//!
//! ```text
//! produce  transactional id -1 | acks | timeout | 1 topic: name | 1 partition: index | records
//! answer   correlation | topics: name | partitions: index | error | ...
//! ```

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use streamgauge_protocol::batch::BatchBuilder;
use streamgauge_tests::wire::frame;

const PRODUCE: (i16, i16) = (0, 7);
const FETCH: (i16, i16) = (1, 4);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
const FETCH_BYTES_MAX: i32 = 1 << 20;
const FETCH_WAIT_MAX_MS: i32 = 500;

/// A batch of `count` records, of which `value` writes each one's value.
pub fn batch(count: usize, timestamp: i64, mut value: impl FnMut(usize) -> Vec<u8>) -> Bytes {
    let mut builder = BatchBuilder::new();
    for index in 0..count {
        builder.push(timestamp, None, Some(&value(index)), &[]);
    }
    builder.build().expect("a small batch can be built")
}

/// A produce request, acks=all, of one batch.
pub fn produce_request(topic: &str, partition: i32, batch: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(batch.len() + 64);
    body.extend((-1_i16).to_be_bytes());
    body.extend((-1_i16).to_be_bytes());
    body.extend(30_000_i32.to_be_bytes());
    put_partition(&mut body, topic, partition);
    body.extend((batch.len() as i32).to_be_bytes());
    body.extend(batch);
    frame(PRODUCE.0, PRODUCE.1, 0, &body)
}

fn put_partition(body: &mut Vec<u8>, topic: &str, partition: i32) {
    body.extend(1_i32.to_be_bytes());
    body.extend((topic.len() as i16).to_be_bytes());
    body.extend(topic.as_bytes());
    body.extend(1_i32.to_be_bytes());
    body.extend(partition.to_be_bytes());
}

/// One connection; answers are read into a buffer that is used again.
pub struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    /// # Panics
    /// As everything here: if the broker does not do what it should.
    pub fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).expect("the broker accepts connections");
        stream.set_nodelay(true).expect("a socket option");
        stream
            .set_read_timeout(Some(ANSWER_TIME_MAX))
            .expect("a socket option");
        Connection {
            stream,
            answer: Vec::new(),
        }
    }

    fn read_answer(&mut self) -> &[u8] {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).expect("an answer");
        let length = u32::from_be_bytes(length) as usize;
        if self.answer.len() < length {
            self.answer.resize(length, 0);
        }
        let answer = &mut self.answer[..length];
        self.stream.read_exact(answer).expect("a whole answer");
        answer
    }

    /// Sends `requests` (produce, of `topic`), `in_flight` at a time, and checks every answer.
    pub fn produce<'a>(
        &mut self,
        topic: &str,
        requests: impl IntoIterator<Item = &'a [u8]>,
        in_flight: usize,
    ) {
        let mut waiting = 0;
        for request in requests {
            if waiting == in_flight {
                self.check_produced(topic);
                waiting -= 1;
            }
            self.stream.write_all(request).expect("a request is taken");
            waiting += 1;
        }
        for _ in 0..waiting {
            self.check_produced(topic);
        }
    }

    fn check_produced(&mut self, topic: &str) {
        let at = 4 + 4 + 2 + topic.len() + 4 + 4;
        let error = i16_at(self.read_answer(), at);
        assert_eq!(error, 0, "a produce request failed");
    }

    /// Reads a partition from `offset` until `end`; gives the bytes of batches that came.
    pub fn fetch(&mut self, topic: &str, partition: i32, mut offset: i64, end: i64) -> u64 {
        let mut bytes = 0;
        while offset < end {
            let (error, records) = self.fetch_once(topic, partition, offset, FETCH_WAIT_MAX_MS);
            assert_eq!(error, 0, "a fetch request failed");
            bytes += records.len() as u64;
            offset = offset_after(records).unwrap_or(offset);
        }
        bytes
    }

    /// Whether the broker serves this partition already: a new topic's leader may be known before it has taken up its work.
    pub fn serves(&mut self, topic: &str, partition: i32) -> bool {
        self.fetch_once(topic, partition, 0, 0).0 == 0
    }

    fn fetch_once(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        wait_max_ms: i32,
    ) -> (i16, &[u8]) {
        let mut body = Vec::with_capacity(64);
        body.extend((-1_i32).to_be_bytes());
        body.extend(wait_max_ms.to_be_bytes());
        body.extend(1_i32.to_be_bytes());
        body.extend(FETCH_BYTES_MAX.to_be_bytes());
        body.push(0);
        put_partition(&mut body, topic, partition);
        body.extend(offset.to_be_bytes());
        body.extend(FETCH_BYTES_MAX.to_be_bytes());
        let request = frame(FETCH.0, FETCH.1, 0, &body);
        self.stream.write_all(&request).expect("a request is taken");
        // Correlation, throttle time, topics, name, partitions, index; then error, high watermark, last stable offset.
        let at = 4 + 4 + 4 + 2 + topic.len() + 4 + 4;
        let answer = self.read_answer();
        // No aborted transactions: a count of 0 or -1.
        (i16_at(answer, at), &answer[at + 2 + 8 + 8 + 4 + 4..])
    }
}

/// The offset after the last whole batch: base offset at 0, length at 8, last offset delta at 23.
fn offset_after(mut records: &[u8]) -> Option<i64> {
    let mut next = None;
    while records.len() >= 61 {
        let size = 12 + i32_at(records, 8) as usize;
        if size > records.len() {
            break;
        }
        next = Some(i64_at(records, 0) + i64::from(i32_at(records, 23)) + 1);
        records = &records[size..];
    }
    next
}

/// Times of `count` produce requests, one in flight, after `warm_up` that do not count; in order of size.
pub fn latencies(
    address: SocketAddr,
    topic: &str,
    request: &[u8],
    warm_up: usize,
    count: usize,
) -> Vec<Duration> {
    let mut connection = Connection::open(address);
    connection.produce(topic, (0..warm_up).map(|_| request), 1);
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            let start = Instant::now();
            connection.produce(topic, [request], 1);
            start.elapsed()
        })
        .collect();
    times.sort();
    times
}

fn i16_at(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
