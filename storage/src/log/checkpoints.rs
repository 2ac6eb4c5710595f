//! The two small files beside a log: where it begins, and up to where it is known to be durable.
//!
//! ```text
//! log-start-checkpoint            0 | index, term and offset before the first entry, log start offset,
//!                                 offset of the producers it came with or -1, 1 while the log is replaced | crc32
//! recovery-point-checkpoint       0 | base offset of a segment, position in its file |
//!                                 term, first index, start offset: a line for each term in it | crc32
//! ```
//!
//! Lines of text; the checksum, in hexadecimal, covers the lines before it. The terms are there
//! because a batch's epoch lies outside its checksum.

use std::io;
use std::path::Path;

use super::{Log, LogStart, SyncedPoint};
use crate::disk::Disk;
use crate::epochs::{EpochEntry, EpochTable};
use crate::error::{Corruption, StorageError};
use crate::ids::{RaftIndex, Term};
use crate::segment::{read_whole, replace_file};

const START_FILE: &str = "log-start-checkpoint";
pub(super) const RECOVERY_POINT_FILE: &str = "recovery-point-checkpoint";

impl Log {
    /// Up to where the last segment of a log that is not open is known to have been synced.
    pub fn recovery_point(disk: &dyn Disk, directory: &Path) -> SyncedPoint {
        read_recovery_point(disk, directory).synced
    }

    pub(super) fn write_start(
        &self,
        start: LogStart,
        log_start_offset: i64,
    ) -> Result<(), StorageError> {
        let checkpoint = StartCheckpoint {
            start,
            log_start_offset,
            producers_offset: self.producers_offset,
            replacing: false,
        };
        checkpoint.write(&*self.disk, &self.directory)
    }

    /// Writes the recovery point. An old one that says less only makes recovery more lenient, so it
    /// is synced only where it goes back; the caller then syncs the directory, too.
    pub(super) fn replace_recovery_point(&mut self, sync: bool) -> Result<(), StorageError> {
        let SyncedPoint {
            base_offset,
            position,
        } = self.synced;
        let mut body = format!("0\n{base_offset} {position}\n");
        for epoch in self.epochs.since(self.active.first_index()) {
            let (term, index) = (epoch.term.0, epoch.first_index.0);
            body += &format!("{term} {index} {}\n", epoch.start_offset);
        }
        let text = with_checksum(body);
        if sync {
            let path = self.directory.join(RECOVERY_POINT_FILE);
            replace_file(&*self.disk, &path, text.as_bytes())
                .map_err(|error| StorageError::io("write", &path, error))?;
        } else {
            self.replace_unsynced(RECOVERY_POINT_FILE, text.as_bytes())?;
        }
        self.recovery_point = self.synced;
        Ok(())
    }
}

fn with_checksum(body: String) -> String {
    format!("{body}{:08x}\n", crc32fast::hash(body.as_bytes()))
}

/// The lines before the checksum, if that is right.
fn checked(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (body, crc) = text.split_at_checked(text.trim_end().rfind('\n')? + 1)?;
    (u32::from_str_radix(crc.trim(), 16) == Ok(crc32fast::hash(body.as_bytes()))).then_some(body)
}

/// Where a log begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StartCheckpoint {
    pub start: LogStart,
    pub log_start_offset: i64,
    /// Offset of the producer snapshot that a leader sent with the start; -1 if none did. It may be
    /// past the log's end for a while.
    pub producers_offset: i64,
    /// The log that was there is being replaced by an empty one that begins here: what segments
    /// are found belong to the old one.
    pub replacing: bool,
}

impl StartCheckpoint {
    pub fn of(start: LogStart) -> Self {
        Self {
            start,
            log_start_offset: start.offset,
            producers_offset: -1,
            replacing: false,
        }
    }

    /// Writes it; durable when this returns.
    pub fn write(&self, disk: &dyn Disk, directory: &Path) -> Result<(), StorageError> {
        let path = directory.join(START_FILE);
        let text = with_checksum(format!(
            "0\n{} {} {} {} {} {}\n",
            self.start.index.0,
            self.start.term.0,
            self.start.offset,
            self.log_start_offset,
            self.producers_offset,
            u8::from(self.replacing)
        ));
        replace_file(disk, &path, text.as_bytes())
            .and_then(|()| disk.sync_dir(directory))
            .map_err(|error| StorageError::io("write", &path, error))
    }

    pub fn read(disk: &dyn Disk, directory: &Path) -> Result<Self, StorageError> {
        let path = directory.join(START_FILE);
        let bytes = match read_whole(disk, &path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::of(LogStart::of_new_partition()));
            }
            Err(error) => return Err(StorageError::io("read", &path, error)),
        };
        Self::parse(&bytes).ok_or_else(|| {
            StorageError::Corrupt(Corruption {
                file: path,
                position: 0,
                reason: "the log start checkpoint is not what was written".into(),
            })
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let body = checked(bytes)?;
        let mut fields = body.lines().nth(1)?.split(' ');
        let start = LogStart {
            index: RaftIndex(fields.next()?.parse().ok()?),
            term: Term(fields.next()?.parse().ok()?),
            offset: fields.next()?.parse().ok()?,
        };
        Some(Self {
            start,
            log_start_offset: fields.next()?.parse().ok()?,
            producers_offset: fields.next().map_or(Some(-1), |field| field.parse().ok())?,
            replacing: fields.next() == Some("1"),
        })
    }
}

/// What is known of the last segment: [`Log::write_recovery_point`] wrote it.
#[derive(Default)]
pub(super) struct RecoveryPoint {
    /// Up to where it was synced.
    pub synced: SyncedPoint,
    /// The terms that wrote to it, as far as it was synced.
    pub epochs: EpochTable,
}

pub(super) fn read_recovery_point(disk: &dyn Disk, directory: &Path) -> RecoveryPoint {
    read_whole(disk, &directory.join(RECOVERY_POINT_FILE))
        .ok()
        .and_then(|bytes| parse_recovery_point(&bytes))
        .unwrap_or_default()
}

fn parse_recovery_point(bytes: &[u8]) -> Option<RecoveryPoint> {
    let mut lines = checked(bytes)?.lines().skip(1);
    let (base_offset, position) = lines.next()?.split_once(' ')?;
    let mut epochs = EpochTable::default();
    for line in lines {
        let mut fields = line.split(' ');
        epochs.extend(&[EpochEntry {
            term: Term(fields.next()?.parse().ok()?),
            first_index: RaftIndex(fields.next()?.parse().ok()?),
            start_offset: fields.next()?.parse().ok()?,
        }])?;
    }
    Some(RecoveryPoint {
        synced: SyncedPoint {
            base_offset: base_offset.parse().ok()?,
            position: position.parse().ok()?,
        },
        epochs,
    })
}
