//! The runtime of the aggregator: feeds jobs from partitions and appends what they make.
