//! The bodies of the fuzz targets, as plain functions. Tests of the protocol crate take this file in by its path, so that stable Rust
//! and every run of the tests drive them too.

pub mod layout;
pub mod mutation;
pub mod records;
pub mod request;
pub mod seeds;
