//! The control messages by which driver and device manage the ports of a virtio console.
//!
//! The driver reports that it is ready; the device adds its ports; the driver reports that each
//! port is ready; the device names the port and opens its own end. The driver opens and closes its
//! end when programs do.
//!
//! Source: virtio 1.2, 5.3.6.2 ("Multiport Device Operation").

use crate::kvm::codec::fields;

/// Bytes of a message without the name that may follow it.
pub(super) const MESSAGE: usize = 8;

const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A message of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FromDriver {
    /// It waits for ports to be added.
    DeviceReady,
    /// It has set up this port.
    PortReady(u32),
    /// It has opened this port, or closed it.
    PortOpen(u32, bool),
}

impl FromDriver {
    /// Parses a message. `None` if it is truncated, reports a failure or is unknown.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let &[a, b, c, d, event_low, event_high, value_low, value_high] = message else {
            return None;
        };
        let id = u32::from_le_bytes([a, b, c, d]);
        let value = u16::from_le_bytes([value_low, value_high]);
        match u16::from_le_bytes([event_low, event_high]) {
            DEVICE_READY if value == 1 => Some(Self::DeviceReady),
            PORT_READY if value == 1 => Some(Self::PortReady(id)),
            PORT_OPEN => Some(Self::PortOpen(id, value != 0)),
            _ => None,
        }
    }
}

/// The messages that the driver has yet to receive for a port. As flags they are bounded, whatever
/// the driver sends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ToDriver {
    /// The port exists.
    pub(super) add: bool,
    /// The port's name.
    pub(super) name: bool,
    /// The device's end of it is open.
    pub(super) open: bool,
}

fields!(ToDriver { add, name, open });

impl ToDriver {
    /// Removes and returns the next message about the port with this ID and name.
    pub(super) fn take(&mut self, id: u32, name: &str) -> Option<Vec<u8>> {
        let (flag, event, text) = match self {
            Self { add: flag @ true, .. } => (flag, DEVICE_ADD, ""),
            // Without a NUL: the name ends with the message.
            Self { name: flag @ true, .. } => (flag, PORT_NAME, name),
            Self { open: flag @ true, .. } => (flag, PORT_OPEN, ""),
            _ => return None,
        };
        *flag = false;
        let value = 1_u16;
        let mut message = Vec::with_capacity(MESSAGE + text.len());
        message.extend(id.to_le_bytes());
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        message.extend(text.as_bytes());
        Some(message)
    }

    /// Returns whether all messages were sent.
    pub(super) fn is_empty(&self) -> bool {
        !(self.add || self.name || self.open)
    }
}
