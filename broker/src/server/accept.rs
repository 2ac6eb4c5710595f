//! The listening socket: takes connections in, within the limits.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connection;
use crate::broker::Broker;

/// How long to wait after the system refused to hand out a connection (no file descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Connections that the kernel keeps for us until we take them.
const BACKLOG: i32 = 1024;

/// Opens the listening socket. An unspecified IPv6 address takes IPv4 as well, since clients
/// resolve `localhost` to either.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts and serves connections until told to stop; then waits for those under way.
pub async fn run(broker: Arc<Broker>, listener: TcpListener, mut stopping: watch::Receiver<bool>) {
    let admission = Admission::new(
        broker.config.max_connections,
        broker.config.max_connections_per_ip,
    );
    let mut connections = JoinSet::new();
    let stop = stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Some(place) = admission.admit(address.ip()) else {
            tracing::warn!(%address, "connection refused: too many connections");
            continue;
        };
        connections.spawn(serve(
            Arc::clone(&broker),
            stream,
            address,
            stop.clone(),
            place,
        ));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(
    broker: Arc<Broker>,
    stream: TcpStream,
    address: SocketAddr,
    stopping: watch::Receiver<bool>,
    _place: Place,
) {
    use connection::ConnectionError;
    match connection::serve(broker, stream, address, stopping).await {
        Ok(()) => {}
        // Clients come and go without goodbyes.
        Err(ConnectionError::Io(error)) => tracing::debug!(%address, %error, "connection lost"),
        Err(error) => tracing::warn!(%address, %error, "connection closed"),
    }
}

/// Counts connections against `max.connections` and `max.connections.per.ip`.
#[derive(Clone)]
struct Admission {
    counts: Arc<Mutex<Counts>>,
    total_max: usize,
    per_ip_max: usize,
}

#[derive(Default)]
struct Counts {
    total: usize,
    by_ip: HashMap<IpAddr, usize>,
}

/// A connection's place among those allowed, given back when dropped.
struct Place {
    counts: Arc<Mutex<Counts>>,
    ip: IpAddr,
}

impl Admission {
    fn new(total_max: usize, per_ip_max: usize) -> Self {
        Self {
            counts: Arc::default(),
            total_max,
            per_ip_max,
        }
    }

    fn admit(&self, ip: IpAddr) -> Option<Place> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let from_ip = counts.by_ip.get(&ip).copied().unwrap_or(0);
        if counts.total >= self.total_max || from_ip >= self.per_ip_max {
            return None;
        }
        counts.total += 1;
        counts.by_ip.insert(ip, from_ip + 1);
        Some(Place {
            counts: Arc::clone(&self.counts),
            ip,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        if let Some(from_ip) = counts.by_ip.get_mut(&self.ip) {
            *from_ip -= 1;
            if *from_ip == 0 {
                counts.by_ip.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back_when_its_connection_ends() {
        let admission = Admission::new(2, 1);
        let (a, b) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let first = admission.admit(a).unwrap();
        assert!(
            admission.admit(a).is_none(),
            "one connection for an address"
        );
        let _second = admission.admit(b).unwrap();
        drop(first);
        assert!(admission.admit(a).is_some());
    }
}
