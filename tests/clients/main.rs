//! Real clients, none written by us, each against a broker that the tests of this file share.

mod acks;
mod dump_log;
mod java;
mod kcat;
mod python;
mod tools;
mod transactions;
