//! One connection to one broker: frames out and in, one request at a time.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::Request;
use streamgauge_protocol::frame::{FRAME_SIZE_BYTES, decode_response, encode_request, frame_bytes};
use streamgauge_protocol::versions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};

use super::error::{ClientError, check};

/// Answers larger than this end the connection. Fetches ask for far less.
const RESPONSE_BYTES_MAX: usize = 256 * 1024 * 1024;
const READ_BYTES: usize = 64 * 1024;
/// A version that every Kafka broker since 0.10 answers.
const API_VERSIONS_VERSION: i16 = 0;

#[derive(Debug)]
pub(crate) struct Connection {
    address: String,
    stream: TcpStream,
    client_id: String,
    next_correlation_id: i32,
    /// Lowest and highest version of each API that the broker serves.
    served: HashMap<i16, (i16, i16)>,
    input: BytesMut,
}

impl Connection {
    /// Connects and learns which versions the broker serves, within `time_max`.
    pub async fn open(
        address: &str,
        client_id: &str,
        time_max: Duration,
    ) -> Result<Connection, ClientError> {
        let opening = async {
            let failed = |source| ClientError::Io {
                address: address.to_owned(),
                source,
            };
            let stream = TcpStream::connect(address).await.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            let mut connection = Connection {
                address: address.to_owned(),
                stream,
                client_id: client_id.to_owned(),
                next_correlation_id: 0,
                served: HashMap::new(),
                input: BytesMut::new(),
            };
            connection.negotiate(time_max).await?;
            Ok(connection)
        };
        match timeout(time_max, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(ClientError::Timeout {
                address: address.to_owned(),
                api: "the connection",
                after: time_max,
            }),
        }
    }

    async fn negotiate(&mut self, time_max: Duration) -> Result<(), ClientError> {
        let response: ApiVersionsResponse = self
            .exchange(
                "ApiVersions",
                API_VERSIONS_VERSION,
                &ApiVersionsRequest::default(),
                time_max,
            )
            .await?;
        check(
            response.error_code,
            || format!("{}: ApiVersions", self.address),
            None,
        )?;
        self.served = response
            .api_keys
            .iter()
            .map(|api| (api.api_key, (api.min_version, api.max_version)))
            .collect();
        Ok(())
    }

    /// Sends `request` in the highest version that both sides speak, at most `version_max`, and waits for its answer. After an error
    /// (or when the future is dropped) the connection is of no more use.
    pub async fn call<R: Request>(
        &mut self,
        request: &R,
        version_max: i16,
        time_max: Duration,
    ) -> Result<R::Response, ClientError> {
        let (api, version) = self.version_of::<R>(version_max)?;
        self.exchange(api, version, request, time_max).await
    }

    /// Sends a request that is not answered: a produce request with acks=0.
    pub async fn send<R: Request>(
        &mut self,
        request: &R,
        version_max: i16,
    ) -> Result<(), ClientError> {
        let (_, version) = self.version_of::<R>(version_max)?;
        self.write(version, request).await.map(|_| ())
    }

    fn version_of<R: Request>(&self, version_max: i16) -> Result<(&'static str, i16), ClientError> {
        let Some(api) = versions::lookup(R::KEY) else {
            return Err(ClientError::Unsupported {
                address: self.address.clone(),
                api: "an API",
            });
        };
        let unsupported = || ClientError::Unsupported {
            address: self.address.clone(),
            api: api.name,
        };
        let &(served_min, served_max) = self.served.get(&R::KEY).ok_or_else(unsupported)?;
        // Not `codec_max`: what this broker reads by `newer` the message crate cannot write.
        let version = served_max
            .min(api.max)
            .min(R::VERSIONS.max)
            .min(version_max);
        if version < served_min.max(api.min) {
            return Err(unsupported());
        }
        Ok((api.name, version))
    }

    async fn exchange<R: Request>(
        &mut self,
        api: &'static str,
        version: i16,
        request: &R,
        time_max: Duration,
    ) -> Result<R::Response, ClientError> {
        let deadline = tokio::time::Instant::now() + time_max;
        let exchanging = async {
            let correlation_id = self.write(version, request).await?;
            let frame = self.read_frame().await?;
            let (answered, response) =
                decode_response(frame, version).map_err(|source| ClientError::Frame {
                    address: self.address.clone(),
                    source,
                })?;
            if answered != correlation_id {
                return Err(ClientError::Protocol {
                    address: self.address.clone(),
                    reason: format!(
                        "answered request {answered} instead of {correlation_id} ({api})"
                    ),
                });
            }
            Ok(response)
        };
        let result = timeout_at(deadline, exchanging).await;
        result.unwrap_or_else(|_| {
            Err(ClientError::Timeout {
                address: self.address.clone(),
                api,
                after: time_max,
            })
        })
    }

    async fn write<R: Request>(&mut self, version: i16, request: &R) -> Result<i32, ClientError> {
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id = self.next_correlation_id.wrapping_add(1);
        let frame = encode_request(correlation_id, &self.client_id, version, request).map_err(
            |source| ClientError::Frame {
                address: self.address.clone(),
                source,
            },
        )?;
        let written = self.stream.write_all(&frame).await;
        written.map_err(|source| self.failed(source))?;
        Ok(correlation_id)
    }

    async fn read_frame(&mut self) -> Result<Bytes, ClientError> {
        self.fill(FRAME_SIZE_BYTES).await?;
        let size = self.input.split_to(FRAME_SIZE_BYTES);
        let mut size_bytes = [0; FRAME_SIZE_BYTES];
        size_bytes.copy_from_slice(&size);
        let size =
            frame_bytes(size_bytes, RESPONSE_BYTES_MAX).map_err(|source| ClientError::Frame {
                address: self.address.clone(),
                source,
            })?;
        self.fill(size).await?;
        Ok(self.input.split_to(size).freeze())
    }

    /// Reads until `bytes` are there. Memory grows with what arrives, not with what is announced.
    async fn fill(&mut self, bytes: usize) -> Result<(), ClientError> {
        while self.input.len() < bytes {
            self.input.reserve(READ_BYTES);
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => return Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
        Ok(())
    }

    fn failed(&self, source: io::Error) -> ClientError {
        ClientError::Io {
            address: self.address.clone(),
            source,
        }
    }
}
