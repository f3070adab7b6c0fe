//! The devices of the KVM engine, driven by drivers that are correct, hostile or random.

mod board;
mod driver;
mod hostile;
mod random;
mod regular;
mod saved;
