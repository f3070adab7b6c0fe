//! A virtio console on PCI.
//!
//! [`ConsoleFunction`] is the PCI function with its capabilities and BAR, [`common`] the registers
//! by which a driver negotiates and sets up queues, [`queue`] a virtqueue, [`console`] the device
//! with its ports. Data from the guest is checked where it is used. If a driver violates the rules
//! of a queue, the device needs a reset; nothing else is affected.
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

pub(super) use pci::{ConsoleFunction, ConsoleFunctionState};
