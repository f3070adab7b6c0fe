//! Reads the messages of a guest's kernel from its memory, without its cooperation.
//!
//! The kernel keeps its messages in a ring buffer, whether or not it prints them on a console. A
//! [`PrintkLayout`] is found once in a vmlinux. With it the ring of a guest can be read at any time
//! from the first instruction of the kernel on, and after a panic or a triple fault.
//!
//! The guest can write anything into its memory, so the work and the memory of a read are bounded
//! independently of the content.
//!
//! Source: Linux 6.1, 6.12 and 7.2, kernel/printk/printk_ringbuffer.h and printk_ringbuffer.c.

mod layout;
mod ring;
#[cfg(test)]
mod tests;

pub use layout::{LayoutError, PrintkLayout, PrintkOffsets};
pub use ring::{Message, Position, ReadError};
