//! The batches that stand one after another in a piece of a log or in the `records` of a message.

use bytes::Bytes;

use super::{BatchError, BatchHeader};

/// Yields each whole batch with its header, as slices without copies. After the first error it ends.
///
/// A last batch that is cut off yields `Truncated`: a reader of a fetch response stops quietly there (brokers cut at a byte limit), a
/// reader of a produce request refuses it.
#[derive(Debug, Clone)]
pub struct BatchIter {
    rest: Bytes,
}

impl BatchIter {
    pub fn new(batches: Bytes) -> BatchIter {
        BatchIter { rest: batches }
    }
}

impl Iterator for BatchIter {
    type Item = Result<(BatchHeader, Bytes), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let header = match BatchHeader::parse(&self.rest) {
            Ok(header) if header.size_in_bytes() <= self.rest.len() => header,
            Ok(header) => {
                let error = BatchError::Truncated {
                    needed: header.size_in_bytes(),
                    available: self.rest.len(),
                };
                self.rest.clear();
                return Some(Err(error));
            }
            Err(error) => {
                self.rest.clear();
                return Some(Err(error));
            }
        };
        Some(Ok((header, self.rest.split_to(header.size_in_bytes()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchBuilder;

    #[test]
    fn whole_batches_come_out_and_a_cut_one_is_an_error() {
        let one = BatchBuilder::new()
            .record(1, None, Some(b"a"))
            .build()
            .unwrap();
        let mut bytes = one.to_vec();
        bytes.extend_from_slice(&one);
        bytes.extend_from_slice(&one[..30]);
        let found: Vec<_> = BatchIter::new(bytes.into()).collect();
        assert_eq!(found.len(), 3);
        assert_eq!(found[1].as_ref().unwrap().1, one);
        assert!(matches!(found[2], Err(BatchError::Truncated { .. })));
    }
}
