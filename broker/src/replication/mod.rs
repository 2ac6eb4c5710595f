//! A partition as a Raft group over its log.
