//! Order: proposals become one log, flushed by a quorum, applied by everybody.
//!
//! Sync, sans-IO, deterministic: [`sequencer::Sequencer::step`] takes an [`sequencer::Event`] and
//! the time, and fills [`sequencer::Actions`]. Real life (net's `seq.rs`) runs the actions on
//! devices and rings; the simulator runs them from a seeded queue. The order of the `mod` lines is
//! the layer order.
#![forbid(unsafe_code)]

pub mod log;
pub mod node;
pub mod read;
pub mod sequencer;
pub mod boot;
