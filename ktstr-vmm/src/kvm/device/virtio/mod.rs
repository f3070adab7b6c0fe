//! A virtio console on PCI.
//!
//! [`ConsoleFunction`] is the PCI function with its capabilities and BAR, [`common`] the registers by
//! which a driver negotiates and sets up queues, [`queue`] a virtqueue, [`console`] the device
//! behind them. All that comes from the guest is checked where it is used; a driver that breaks
//! the rules of a queue finds its device in need of a reset, and that is all.
//!
//! Source: virtio 1.2, chapters 2 ("Basic Facilities"), 4.1 ("Virtio Over PCI Bus") and 5.3
//! ("Console Device").

mod capabilities;
mod common;
mod console;
mod control;
mod interrupts;
mod pci;
mod port;
mod queue;

pub(super) use pci::ConsoleFunction;
