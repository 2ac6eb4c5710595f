//! The owner of partitions: a state machine that is given messages, time and completions.
