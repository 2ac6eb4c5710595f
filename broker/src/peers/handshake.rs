//! How a connection between two brokers opens.
//!
//! ```text
//! hello   length u32 │ magic u32 │ version u8 │ crc u32 │ sender i32 │ target i32 │ directory id 16 bytes │ cluster id
//! answer  length u32 │ magic u32 │ version u8 │ crc u32 │ verdict u8 │ why not
//! ```
//!
//! The verdict is 0 for refused, 1 for accepted, 2 for disowned. Numbers are big-endian; the length counts what follows it, the CRC-32 covers what follows it and
//! texts go to the end. What comes before the checksum stays the same in all versions, so that
//! brokers of two versions can at least tell each other so.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use uuid::Uuid;

/// "SGPR".
const MAGIC: u32 = 0x5347_5052;
const VERSION: u8 = 1;

/// Handshakes are small: nobody has proven anything before them.
pub const HANDSHAKE_BYTES_MAX: usize = 4 * 1024;

/// A cluster id is 22 characters long when we made it; texts beyond this are cut.
const TEXT_BYTES_MAX: usize = 1024;

/// Why bytes are not a handshake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("it does not speak the protocol between brokers")]
    Magic,
    #[error("its handshake ends early")]
    Short,
    #[error("its handshake's checksum does not fit")]
    Checksum,
    #[error("its handshake holds a text that is not UTF-8")]
    Text,
}

/// Who a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub node_id: i32,
    /// Of the log directory: tells a wiped broker from the one that it was.
    pub directory_id: Uuid,
    /// `None` until the broker has learned it.
    pub cluster_id: Option<String>,
}

/// What the one who dials says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub sender: Identity,
    /// Whom the sender believes to have dialled.
    pub target: i32,
}

/// A first message: of our version, or of one whose content we cannot know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received<T> {
    Known(T),
    OtherVersion(u8),
}

/// What is said to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    Refused(String),
    /// Refused whenever it comes: its id belongs to another directory.
    Disowned(String),
}

/// Why a hello is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this broker speaks version {VERSION} of the protocol between brokers, not {0}")]
    Version(u8),
    #[error("this is broker {own}, not {target}")]
    WrongTarget { own: i32, target: i32 },
    #[error("{0} is this broker's own id")]
    OwnId(i32),
    #[error("{0} is not the id of a broker")]
    NoId(i32),
    #[error("this broker is of cluster '{own}', not '{other}'")]
    OtherCluster { own: String, other: String },
    #[error(
        "broker {0} is known with another data directory; if its disk is lost, give the new broker another node.id"
    )]
    OtherDirectory(i32),
}

/// Decides on a hello; `known` is the directory with which the cluster knows the sender's id. Two
/// brokers of which one does not know its cluster yet may talk: that is how it gets to know it.
///
/// One that comes with another directory has forgotten its votes and what it acknowledged, and with
/// its help a majority could forget it, too. So it is not listened to at all.
pub fn judge(
    hello: &Received<Hello>,
    own: &Identity,
    known: impl FnOnce(i32) -> Option<Uuid>,
) -> Result<(), Refusal> {
    let hello = match hello {
        Received::Known(hello) => hello,
        Received::OtherVersion(version) => return Err(Refusal::Version(*version)),
    };
    if hello.target != own.node_id {
        return Err(Refusal::WrongTarget {
            own: own.node_id,
            target: hello.target,
        });
    }
    if hello.sender.node_id == own.node_id {
        return Err(Refusal::OwnId(own.node_id));
    }
    if hello.sender.node_id < 0 {
        return Err(Refusal::NoId(hello.sender.node_id));
    }
    if let (Some(own), Some(other)) = (&own.cluster_id, &hello.sender.cluster_id)
        && own != other
    {
        return Err(Refusal::OtherCluster {
            own: own.clone(),
            other: other.clone(),
        });
    }
    match known(hello.sender.node_id) {
        Some(known) if known != hello.sender.directory_id => {
            Err(Refusal::OtherDirectory(hello.sender.node_id))
        }
        _ => Ok(()),
    }
}

impl Hello {
    /// The whole message, with its length.
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        body.put_i32(self.sender.node_id);
        body.put_i32(self.target);
        body.put_slice(self.sender.directory_id.as_bytes());
        put_text(&mut body, self.sender.cluster_id.as_deref().unwrap_or(""));
        seal(&body)
    }

    /// Reads a message without its length.
    pub fn decode(bytes: Bytes) -> Result<Received<Hello>, HandshakeError> {
        let mut body = match open(bytes)? {
            Received::Known(body) => body,
            Received::OtherVersion(version) => return Ok(Received::OtherVersion(version)),
        };
        let short = |_| HandshakeError::Short;
        let node_id = body.try_get_i32().map_err(short)?;
        let target = body.try_get_i32().map_err(short)?;
        let directory_id = Uuid::from_u128(body.try_get_u128().map_err(short)?);
        let cluster_id = text(&body)?;
        Ok(Received::Known(Hello {
            sender: Identity {
                node_id,
                directory_id,
                cluster_id: (!cluster_id.is_empty()).then_some(cluster_id),
            },
            target,
        }))
    }
}

impl Verdict {
    /// The whole message, with its length.
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        match self {
            Verdict::Accepted => body.put_u8(1),
            Verdict::Refused(reason) => {
                body.put_u8(0);
                put_text(&mut body, reason);
            }
            Verdict::Disowned(reason) => {
                body.put_u8(2);
                put_text(&mut body, reason);
            }
        }
        seal(&body)
    }

    /// Reads a message without its length. A broker of another version has refused.
    pub fn decode(bytes: Bytes) -> Result<Verdict, HandshakeError> {
        let mut body = match open(bytes)? {
            Received::Known(body) => body,
            Received::OtherVersion(version) => {
                let refused = format!("it speaks version {version} of the protocol");
                return Ok(Verdict::Refused(refused));
            }
        };
        let verdict = body.try_get_u8().map_err(|_| HandshakeError::Short)?;
        // It goes to the log, where it must not look like other lines.
        let reason = text(&body)?.escape_debug().to_string();
        Ok(match verdict {
            1 => Verdict::Accepted,
            2 => Verdict::Disowned(reason),
            _ => Verdict::Refused(reason),
        })
    }
}

fn seal(body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(13 + body.len());
    // Texts are cut, so this is far below the limit.
    out.put_u32((9 + body.len()) as u32);
    out.put_u32(MAGIC);
    out.put_u8(VERSION);
    out.put_u32(crc32fast::hash(body));
    out.put_slice(body);
    out.freeze()
}

fn open(mut bytes: Bytes) -> Result<Received<Bytes>, HandshakeError> {
    if bytes.try_get_u32().map_err(|_| HandshakeError::Magic)? != MAGIC {
        return Err(HandshakeError::Magic);
    }
    let version = bytes.try_get_u8().map_err(|_| HandshakeError::Short)?;
    if version != VERSION {
        return Ok(Received::OtherVersion(version));
    }
    let crc = bytes.try_get_u32().map_err(|_| HandshakeError::Short)?;
    match crc32fast::hash(&bytes) == crc {
        true => Ok(Received::Known(bytes)),
        false => Err(HandshakeError::Checksum),
    }
}

fn put_text(body: &mut BytesMut, text: &str) {
    body.put_slice(&text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES_MAX)]);
}

fn text(bytes: &[u8]) -> Result<String, HandshakeError> {
    let text = std::str::from_utf8(bytes).map_err(|_| HandshakeError::Text)?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node_id: i32, cluster_id: Option<&str>) -> Identity {
        Identity {
            node_id,
            directory_id: Uuid::from_u128(5),
            cluster_id: cluster_id.map(str::to_owned),
        }
    }

    fn hello(sender: i32, target: i32, cluster_id: Option<&str>) -> Hello {
        Hello {
            sender: identity(sender, cluster_id),
            target,
        }
    }

    #[test]
    fn handshakes_read_back() {
        for cluster_id in [None, Some("a cluster")] {
            let hello = hello(1, 2, cluster_id);
            let read = Hello::decode(hello.encode().slice(4..));
            assert_eq!(read, Ok(Received::Known(hello)));
        }
        for verdict in [
            Verdict::Accepted,
            Verdict::Refused("no".to_owned()),
            Verdict::Disowned("not you".to_owned()),
        ] {
            assert_eq!(Verdict::decode(verdict.encode().slice(4..)), Ok(verdict));
        }
    }

    #[test]
    fn cut_or_changed_handshakes_are_errors() {
        let bytes = hello(1, 2, Some("a cluster")).encode().slice(4..);
        for length in 0..bytes.len() {
            assert!(Hello::decode(bytes.slice(..length)).is_err());
        }
        for place in (0..bytes.len()).filter(|place| *place != 4) {
            let mut changed = bytes.to_vec();
            changed[place] ^= 1;
            assert!(Hello::decode(changed.into()).is_err());
        }
    }

    #[test]
    fn long_texts_are_cut_to_fit() {
        let verdict = Verdict::Refused("ü".repeat(10_000)).encode();
        assert!(verdict.len() <= HANDSHAKE_BYTES_MAX);
        assert!(Verdict::decode(verdict.slice(4..)).is_ok());
    }

    #[test]
    fn a_hello_is_judged_by_its_ids() {
        let own = identity(2, Some("ours"));
        let judged = |hello: Hello| judge(&Received::Known(hello), &own, |_| None);
        assert_eq!(judged(hello(1, 2, Some("ours"))), Ok(()));
        assert_eq!(judged(hello(1, 2, None)), Ok(()));
        assert_eq!(
            judged(hello(1, 3, Some("ours"))),
            Err(Refusal::WrongTarget { own: 2, target: 3 })
        );
        assert_eq!(judged(hello(2, 2, None)), Err(Refusal::OwnId(2)));
        assert_eq!(judged(hello(-1, 2, None)), Err(Refusal::NoId(-1)));
        assert!(matches!(
            judged(hello(1, 2, Some("theirs"))),
            Err(Refusal::OtherCluster { .. })
        ));
        assert_eq!(
            judge(&Received::OtherVersion(9), &own, |_| None),
            Err(Refusal::Version(9))
        );
        let unknowing = identity(2, None);
        let theirs = Received::Known(hello(1, 2, Some("theirs")));
        assert_eq!(judge(&theirs, &unknowing, |_| None), Ok(()));
    }

    #[test]
    fn a_broker_with_another_directory_than_it_is_known_with_is_refused() {
        let known = |broker| (broker == 1).then_some(Uuid::from_u128(5));
        let own = identity(2, Some("ours"));
        let judged = |sender, directory| {
            let mut hello = hello(sender, 2, None);
            hello.sender.directory_id = Uuid::from_u128(directory);
            judge(&Received::Known(hello), &own, known)
        };
        assert_eq!(judged(1, 5), Ok(()));
        assert_eq!(judged(1, 6), Err(Refusal::OtherDirectory(1)));
        assert_eq!(judged(3, 6), Ok(()), "a new broker");
    }

    #[test]
    fn another_version_is_told_apart_from_garbage() {
        let mut bytes = hello(1, 2, None).encode().slice(4..).to_vec();
        bytes[4] = 9;
        bytes.truncate(6);
        let read = Hello::decode(bytes.into());
        assert_eq!(read, Ok(Received::OtherVersion(9)));
    }
}
