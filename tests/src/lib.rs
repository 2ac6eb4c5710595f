//! What crosses crates: real clients, whole processes, faults.
