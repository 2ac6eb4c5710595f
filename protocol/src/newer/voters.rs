//! AddRaftVoter 1: version 0 and one more field, whether the answer waits until the new voters are committed (KIP-1186). The response
//! is as before.
//!
//! ```text
//! cluster id? │ timeout i32 │ voter id i32 │ voter directory id │ listeners │ wait bool │ tags
//!     listener:  name │ host │ port u16 │ tags
//! ```

use anyhow::{Result, ensure};
use kafka_protocol::messages::add_raft_voter_request::Listener;
use kafka_protocol::messages::{AddRaftVoterRequest, AddRaftVoterResponse};
use kafka_protocol::protocol::buf::{ByteBuf, ByteBufMut};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};

use super::{Newer, array, nullable_string, skip_tags, string, uuid};

/// The last version that the message crate has.
const CRATE_MAX: i16 = 0;
const ACK_VERSION: i16 = 1;

/// An AddRaftVoter request.
#[derive(Debug, Clone, PartialEq)]
pub struct VoterAddition {
    pub request: AddRaftVoterRequest,
    /// Answered when the new voters are committed, as always before version 1; else once the change is logged.
    pub ack_when_committed: bool,
}

impl Decodable for VoterAddition {
    fn decode<B: ByteBuf>(buf: &mut B, version: i16) -> Result<Self> {
        if version <= CRATE_MAX {
            return Ok(Self {
                request: AddRaftVoterRequest::decode(buf, version)?,
                ack_when_committed: true,
            });
        }
        ensure!(version == ACK_VERSION, "no AddRaftVoter {version}");
        let request = AddRaftVoterRequest::default()
            .with_cluster_id(nullable_string(buf)?)
            .with_timeout_ms(buf.try_get_i32()?)
            .with_voter_id(buf.try_get_i32()?)
            .with_voter_directory_id(uuid(buf)?)
            .with_listeners(array(buf, listener)?);
        let ack_when_committed = buf.try_get_u8()? != 0;
        skip_tags(buf)?;
        Ok(Self {
            request,
            ack_when_committed,
        })
    }
}

fn listener<B: ByteBuf>(buf: &mut B) -> Result<Listener> {
    let listener = Listener::default()
        .with_name(string(buf)?)
        .with_host(string(buf)?)
        .with_port(buf.try_get_u16()?);
    skip_tags(buf)?;
    Ok(listener)
}

impl HeaderVersion for Newer<AddRaftVoterResponse> {
    fn header_version(version: i16) -> i16 {
        AddRaftVoterResponse::header_version(version.min(CRATE_MAX))
    }
}

impl Encodable for Newer<AddRaftVoterResponse> {
    fn encode<B: ByteBufMut>(&self, buf: &mut B, version: i16) -> Result<()> {
        self.0.encode(buf, version.min(CRATE_MAX))
    }

    fn compute_size(&self, version: i16) -> Result<usize> {
        self.0.compute_size(version.min(CRATE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    /// As Kafka's clients write version 0: cluster "c", 5 s, voter 4 with directory 9, one listener.
    const ZERO: &[u8] =
        b"\x02c\0\0\x13\x88\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x09\x02\x02C\x02h\x23\xea\0\0";

    #[test]
    fn version_1_says_whether_to_wait_and_version_0_waits() {
        let zero = VoterAddition::decode(&mut Bytes::from_static(ZERO), 0).unwrap();
        assert!(zero.ack_when_committed);
        assert_eq!((zero.request.voter_id, zero.request.timeout_ms), (4, 5000));
        assert_eq!(zero.request.listeners[0].port, 9194);
        for wait in [false, true] {
            let mut one = ZERO.to_vec();
            // Before the request's tags.
            one.insert(one.len() - 1, u8::from(wait));
            let mut bytes = Bytes::from(one.clone());
            let read = VoterAddition::decode(&mut bytes, 1).unwrap();
            assert!(bytes.is_empty());
            assert_eq!(read.ack_when_committed, wait);
            assert_eq!(read.request, zero.request);
            for length in 0..one.len() {
                let mut cut = Bytes::copy_from_slice(&one[..length]);
                assert!(VoterAddition::decode(&mut cut, 1).is_err(), "{length}");
            }
        }
    }
}
