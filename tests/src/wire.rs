//! Just enough of the wire to send frames that no client library would send, and to read what comes back.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// No answer that these tests wait for is longer.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A connection, with bounded waits.
pub struct Wire(TcpStream);

impl Wire {
    pub fn connect(address: SocketAddr) -> Wire {
        let stream = TcpStream::connect_timeout(&address, ANSWER_TIME_MAX)
            .expect("the broker accepts connections");
        stream
            .set_read_timeout(Some(ANSWER_TIME_MAX))
            .expect("a socket takes a timeout");
        stream
            .set_write_timeout(Some(ANSWER_TIME_MAX))
            .expect("a socket takes a timeout");
        stream.set_nodelay(true).expect("a socket takes an option");
        Wire(stream)
    }

    /// Sends bytes as they are. The broker may have hung up already: whether it has is what `answer` tells.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// Sends one length-prefixed request with a version 1 header.
    pub fn request(&mut self, key: i16, version: i16, body: &[u8]) {
        self.send(&frame(key, version, 7, body));
    }

    /// Says that no more bytes will come.
    pub fn finish(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Write);
    }

    /// The next length-prefixed answer; `None` if the broker closed the connection instead.
    ///
    /// # Panics
    /// If neither happens in ten seconds.
    pub fn answer(&mut self) -> Option<Vec<u8>> {
        match self.try_answer() {
            Ok(answer) => answer,
            Err(error) => panic!("the broker neither answered nor closed: {error}"),
        }
    }

    fn try_answer(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut length = [0; 4];
        match self.0.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if closed(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        let length = u32::from_be_bytes(length) as usize;
        assert!(length <= ANSWER_BYTES_MAX, "an answer of {length} bytes");
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(Some(body))
    }
}

/// A length-prefixed request with a version 1 header (client id "wire").
pub fn frame(key: i16, version: i16, correlation: i32, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 4];
    frame.extend(key.to_be_bytes());
    frame.extend(version.to_be_bytes());
    frame.extend(correlation.to_be_bytes());
    frame.extend(4_i16.to_be_bytes());
    frame.extend(b"wire");
    frame.extend(body);
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

fn closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
