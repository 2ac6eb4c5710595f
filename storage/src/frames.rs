//! Frames in a segment's file.

use std::io;

use bytes::Bytes;
use streamgauge_protocol::batch::{BATCH_HEADER_BYTES, BatchHeader};

use crate::segment::Segment;

/// Largest piece read at once where a file is not mapped.
const READ_BYTES: usize = 256 * 1024;

/// The bytes of the frame at a position.
pub fn frame_at(segment: &Segment, position: u64) -> io::Result<Bytes> {
    let bytes = segment.bytes(position, READ_BYTES)?;
    let size = frame_size(&bytes)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no frame at this position"))?;
    let whole = if size <= bytes.len() {
        bytes
    } else {
        segment.bytes(position, size)?
    };
    if whole.len() < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(whole.slice(..size))
}

fn frame_size(bytes: &[u8]) -> Option<usize> {
    BatchHeader::parse(bytes)
        .ok()
        .map(|header| header.size_in_bytes())
}

/// Walks the frames of a segment from a position to its published end.
pub struct Frames<'a> {
    segment: &'a Segment,
    position: u64,
    /// Bytes of the file from `chunk_position`.
    chunk: Bytes,
    chunk_position: u64,
    read_bytes: usize,
}

/// One frame.
pub struct Frame {
    pub position: u64,
    pub header: BatchHeader,
    /// The memory that holds the frame, and usually its neighbours.
    chunk: Bytes,
    from: usize,
}

impl Frame {
    pub fn size(&self) -> usize {
        self.header.size_in_bytes()
    }

    pub fn bytes(&self) -> Bytes {
        self.chunk.slice(self.from..self.from + self.size())
    }
}

/// Joins frames that follow each other in one piece of memory, so that a response has few pieces.
#[derive(Default)]
pub struct Run {
    chunk: Bytes,
    from: usize,
    to: usize,
}

impl Run {
    /// Adds a frame; gives out the run before it if it does not follow on that.
    pub fn add(&mut self, frame: Frame) -> Option<Bytes> {
        let size = frame.size();
        if frame.chunk.as_ptr() == self.chunk.as_ptr() && frame.from == self.to {
            self.to += size;
            return None;
        }
        let before = self.take();
        *self = Self {
            to: frame.from + size,
            from: frame.from,
            chunk: frame.chunk,
        };
        before
    }

    /// Gives out the run.
    pub fn take(&mut self) -> Option<Bytes> {
        let run = std::mem::take(self);
        (run.from < run.to).then(|| run.chunk.slice(run.from..run.to))
    }
}

impl<'a> Frames<'a> {
    /// `read_bytes` is how much to read at once where the file is not mapped.
    pub fn new(segment: &'a Segment, position: u64, read_bytes: usize) -> Self {
        Self {
            segment,
            position,
            chunk: Bytes::new(),
            chunk_position: position,
            read_bytes: read_bytes.clamp(BATCH_HEADER_BYTES, READ_BYTES),
        }
    }

    /// The next frame, `None` at the end. The bytes were checked when they were written and when
    /// the log was opened, so a frame that cannot be parsed is an error.
    pub fn next(&mut self) -> io::Result<Option<Frame>> {
        if self.position >= self.segment.end() {
            return Ok(None);
        }
        if let Some(frame) = self.in_chunk() {
            return Ok(Some(frame));
        }
        self.load(self.read_bytes)?;
        if let Some(frame) = self.in_chunk() {
            return Ok(Some(frame));
        }
        let unreadable = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "no whole batch at position {} of {}",
                    self.position,
                    self.segment.path("log").display()
                ),
            )
        };
        let size = frame_size(&self.chunk).ok_or_else(unreadable)?;
        self.load(size)?;
        self.in_chunk().map(Some).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("batch cut off in {}", self.segment.path("log").display()),
            )
        })
    }

    fn load(&mut self, bytes_max: usize) -> io::Result<()> {
        self.chunk = self.segment.bytes(self.position, bytes_max)?;
        self.chunk_position = self.position;
        Ok(())
    }

    fn in_chunk(&mut self) -> Option<Frame> {
        let from = usize::try_from(self.position - self.chunk_position).ok()?;
        let rest = self.chunk.get(from..)?;
        let header = BatchHeader::parse(rest).ok()?;
        let size = header.size_in_bytes();
        if size > rest.len() {
            return None;
        }
        let frame = Frame {
            position: self.position,
            chunk: self.chunk.clone(),
            from,
            header,
        };
        self.position += size as u64;
        Some(frame)
    }
}
