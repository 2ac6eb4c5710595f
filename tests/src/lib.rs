//! What crosses crates: real clients, whole processes, faults.
//!
//! Every test starts a broker process of its own (or shares one with its file), on a port and in a directory of its own,
//! and runs clients that others wrote against it. The first run fetches those clients (`fetch`) and keeps them under
//! `target/e2e-cache`. Environment:
//!
//! - `STREAMGAUGE_BIN`: a binary to test instead of the one that `cargo build` gives;
//! - `STREAMGAUGE_TEST_PEER=kafka`: run the same tests against Apache Kafka, to see that a test is right;
//! - `STREAMGAUGE_TEST_JAVA_LOG`: what Kafka's clients write to their logs: `error` (the default), `info`, `debug`;
//! - `STREAMGAUGE_TEST_CACHE`: where fetched clients are kept;
//! - `CLUSTER_SECONDS`: how long the cluster's histories go on with drawn faults; `CLUSTER_SEED` draws them;
//! - `CLUSTER_FAULTS`: the names of those to draw from, as the output has them, with commas;
//! - `CLUSTER_CLIENTS`: `librdkafka`, `java`, `librdkafka-transactions` or `java-transactions`, whatever a history would take;
//! - `CI`: a missing runtime (Java, Python, kcat, a mount namespace) is then a failure, not a skipped test.

pub mod broker;
pub mod cluster;
pub mod fetch;
pub mod history;
pub mod link;
pub mod process;
pub mod replica;
pub mod seed_case;
pub mod small_disk;
pub mod transactions;
pub mod wire;
