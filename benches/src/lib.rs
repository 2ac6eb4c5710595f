//! Measurements of whole processes, side by side with their peers.
