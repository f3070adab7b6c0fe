//! Devices and a driver for them, without a CPU.

mod driver;
mod hostile;
mod regular;
