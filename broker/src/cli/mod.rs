//! The commands of the `streamgauge` binary.
