//! Support code shared by the black-box and simulation tests.

pub mod sim;
