//! The messages of a guest's kernel, read from its memory without its help.
//!
//! The kernel keeps its messages in a ring buffer, whether or not it prints them on a console. A
//! [`PrintkLayout`] is found once in a vmlinux; with it the ring of a guest can be read at any time
//! from the first instruction of the kernel on, also after a panic or a triple fault.
//!
//! The guest can write anything into its memory: the work and the memory of a read are bounded
//! whatever it contains.
//!
//! Source: Linux 6.1, 6.12 and 7.2, kernel/printk/printk_ringbuffer.h and printk_ringbuffer.c.

mod layout;
mod ring;
#[cfg(test)]
mod tests;

pub use layout::{LayoutError, PrintkLayout, PrintkOffsets};
pub use ring::{Message, Position, ReadError};
