//! The state of a vCPU before its first instruction.

pub(super) mod cpuid;
pub(super) mod regs;
