//! From orders to results: the whole way through the broker and its command line.

mod cli;
mod demo;
mod seed_case;
