//! One open connection, from either side: bytes to frames and back.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::Limits;
use super::frame::{Frame, FrameError, LENGTH_BYTES, checked_length};
use super::handshake::{HANDSHAKE_BYTES_MAX, HandshakeError};

/// Room kept for reading while no large frame is under way.
const READ_BYTES: usize = 16 * 1024;

/// Frames up to this size lie in one piece and are not moved while they arrive. For larger ones memory
/// grows with what arrives, not with what is announced.
const RESERVE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Slices given to the kernel in one write: the most that Linux takes.
const WRITE_SLICES_MAX: usize = 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the other side closed the connection")]
    Closed,
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
    #[error("nothing could be written for {0:?}")]
    Stuck(Duration),
    #[error("it could not be opened within {0:?}")]
    NotOpened(Duration),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the other side refused: {0}")]
    Refused(String),
    #[error("{0} do not travel in this direction")]
    Direction(&'static str),
    #[error("more requests are under way than answers fit")]
    TooManyRequests,
    #[error("a newer connection of the same broker replaced it")]
    Replaced,
    #[error("this broker stops")]
    Stopped,
}

/// The two halves of a connection.
pub(super) fn halves(
    stream: TcpStream,
    limits: &Limits,
) -> Result<(FrameReader, FrameWriter), ConnectionError> {
    // Frames are complete when they are written; waiting for more would only delay them.
    stream.set_nodelay(true)?;
    let (reading, writing) = stream.into_split();
    let reader = FrameReader {
        stream: reading,
        received: BytesMut::new(),
        frame_bytes_max: limits.frame_bytes_max,
        silence_max: limits.silence_max,
    };
    let writer = FrameWriter {
        stream: writing,
        silence_max: limits.silence_max,
    };
    Ok((reader, writer))
}

pub(super) struct FrameReader {
    stream: OwnedReadHalf,
    received: BytesMut,
    frame_bytes_max: usize,
    silence_max: Duration,
}

impl FrameReader {
    pub async fn next(&mut self) -> Result<Frame, ConnectionError> {
        let bytes = self.next_bytes(self.frame_bytes_max).await?;
        Ok(Frame::decode(bytes)?)
    }

    /// A message of the handshake, without its length.
    pub async fn next_handshake(&mut self) -> Result<Bytes, ConnectionError> {
        self.next_bytes(HANDSHAKE_BYTES_MAX).await
    }

    async fn next_bytes(&mut self, bytes_max: usize) -> Result<Bytes, ConnectionError> {
        let length = loop {
            match self.received.first_chunk::<LENGTH_BYTES>() {
                Some(length) => break checked_length(*length, bytes_max)?,
                None => self.read(READ_BYTES).await?,
            }
        };
        while self.received.len() < LENGTH_BYTES + length {
            // No more than what is missing: asking for room beyond the frame would move it again.
            let missing = LENGTH_BYTES + length - self.received.len();
            self.read(missing.min(RESERVE_BYTES_MAX)).await?;
        }
        self.received.advance(LENGTH_BYTES);
        Ok(self.received.split_to(length).freeze())
    }

    async fn read(&mut self, reserve_bytes: usize) -> Result<(), ConnectionError> {
        self.received.reserve(reserve_bytes);
        let reading = self.stream.read_buf(&mut self.received);
        match timeout(self.silence_max, reading).await {
            Ok(Ok(0)) => Err(ConnectionError::Closed),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(ConnectionError::Silent(self.silence_max)),
        }
    }
}

pub(super) struct FrameWriter {
    stream: OwnedWriteHalf,
    silence_max: Duration,
}

impl FrameWriter {
    pub async fn write(&mut self, frames: &[Frame]) -> Result<(), ConnectionError> {
        let mut pieces = VecDeque::new();
        for frame in frames {
            pieces.extend(frame.encode()?);
        }
        self.write_pieces(pieces).await
    }

    /// Writes all pieces with as few system calls as the kernel allows, copying none.
    pub async fn write_pieces(
        &mut self,
        mut pieces: VecDeque<Bytes>,
    ) -> Result<(), ConnectionError> {
        while !pieces.is_empty() {
            let slices: Vec<IoSlice<'_>> = pieces
                .iter()
                .take(WRITE_SLICES_MAX)
                .map(|piece| IoSlice::new(piece))
                .collect();
            let writing = self.stream.write_vectored(&slices);
            // The other side may be alive and still not read: its buffers are full then.
            let mut written = match timeout(self.silence_max, writing).await {
                Ok(Ok(0)) => return Err(ConnectionError::Closed),
                Ok(written) => written?,
                Err(_) => return Err(ConnectionError::Stuck(self.silence_max)),
            };
            while let Some(first) = pieces.front_mut() {
                if written < first.len() {
                    first.advance(written);
                    break;
                }
                written -= first.len();
                pieces.pop_front();
            }
        }
        Ok(())
    }
}
