//! A small Kafka client: what the admin commands and the demo speak.
