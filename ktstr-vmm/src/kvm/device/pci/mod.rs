//! PCI: the configuration space of a function, and its message-signalled interrupts.

mod config;
mod msix;

pub(super) use config::{BAR0, COMMAND, COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace, Identity};
pub(super) use msix::{MAX_VECTORS, MSIX_CAPABILITY, Msix, MsixState, NO_VECTOR};
