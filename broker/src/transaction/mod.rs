//! Transactions (KIP-98, KIP-890): the coordinator of the producers' transactional ids, and what it and the leaders of a
//! transaction's partitions say to one another.
//!
//! [`service`] is the way in. A request goes to the [runtime](crate::coordinator::runtime) task of its id's partition of
//! `__transaction_state`, whose [`coordinator`] decides by the rules of [`state`]. When the end of a transaction is committed there,
//! [`ending`] writes its [`markers`] into its partitions, again and again until they are in.

pub mod coordinator;
mod ending;
pub mod markers;
pub mod records;
pub mod service;
pub mod state;
pub mod verify;

#[cfg(test)]
mod tests;
