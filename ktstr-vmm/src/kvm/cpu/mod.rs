//! What a vCPU is before its first instruction.

pub(super) mod cpuid;
pub(super) mod regs;
