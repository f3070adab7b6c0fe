//! What a vCPU is before its first instruction.

pub(super) mod regs;
