//! Transactions (KIP-98, KIP-890): what a transaction's coordinator and the leaders of its partitions say to one another.

pub mod markers;
pub mod verify;

#[cfg(test)]
mod tests;
