//! Settings of the broker and of topics, with the names, types and defaults of Kafka.
