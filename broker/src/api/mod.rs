//! One file an API: validate, do, answer.
