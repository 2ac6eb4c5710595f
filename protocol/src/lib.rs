//! Kafka's wire protocol: frames, versions, guards and record batches. Pure: no I/O, no clock.
