//! Declared windowed aggregations as pure state machines: records in, records out.
