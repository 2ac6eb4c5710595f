//! The way in: sockets, connections, limits, shutdown.
