//! Black-box tests of the real binary: what clients are told must be true after any end of the
//! process, on devices that are full, fail or lie.
//!
//! Each test runs servers of its own, on ports and in a data directory of its own, speaks to them
//! with a client that shares no code with them, and ends them by their process id. Every wait is
//! for something to happen and has a time after which the test fails. Tests that need a device of
//! their own make one in a mount namespace ([`volume`]); where that is not permitted they say so
//! and pass.
//!
//! Not here: what each API call answers in all its cases (the judges), and crashes of the machine
//! (the simulation): a killed process loses nothing that the kernel has.

#[path = "process/client.rs"]
mod client;
#[path = "process/load.rs"]
mod load;
#[path = "process/server.rs"]
mod server;
#[path = "process/volume.rs"]
mod volume;

#[path = "process/crash.rs"]
mod crash;
#[path = "process/damage.rs"]
mod damage;
#[path = "process/device.rs"]
mod device;
#[path = "process/history.rs"]
mod history;
#[path = "process/leases.rs"]
mod leases;
#[path = "process/refuse.rs"]
mod refuse;
#[path = "process/smoke.rs"]
mod smoke;
