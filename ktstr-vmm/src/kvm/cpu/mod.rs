//! What a vCPU is before its first instruction.
