//! Consumer groups: a state machine over `__consumer_offsets`.
