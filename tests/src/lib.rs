//! Support code shared by the black-box and simulation tests.
#![forbid(unsafe_code)]

pub mod sim;
