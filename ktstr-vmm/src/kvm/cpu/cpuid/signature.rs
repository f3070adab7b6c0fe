//! The vendor and the model of a CPU.

use super::leaves::{BASIC, EXTENDED, Leaves};

/// Vendor names, in EBX, EDX and ECX of leaf 0.
pub(super) const AUTHENTIC_AMD: [u32; 3] = words(b"AuthenticAMD");
pub(super) const HYGON_GENUINE: [u32; 3] = words(b"HygonGenuine");

/// Family 17h, model 31h, stepping 0: a Zen 2 server CPU, "Rome".
const ZEN2: u32 = 0x0083_0f10;

/// Returns whether the CPU is AMD's, or Hygon's, which is the same with another name.
pub(super) fn is_amd(leaves: &Leaves) -> bool {
    [AUTHENTIC_AMD, HYGON_GENUINE].contains(&vendor(leaves))
}

/// Replaces the signature of an AMD CPU unless kernels read its last-level caches from leaf
/// 8000_001Dh.
///
/// Linux does so from family 17h, model 20h on. For older CPUs it uses the node, or the APIC ID
/// without its low three bits, and the latter for all of Hygon's. Then only their own layout of
/// caches can be shown (6.1 to 6.12, arch/x86/kernel/cpu/cacheinfo.c, `cacheinfo_amd_init_llc_id`,
/// `cacheinfo_hygon_init_llc_id`). QEMU's `-cpu max`, on which this engine runs nested, is of
/// family 0Fh.
///
/// The replacement is a Zen 2, the oldest sufficient one, so that kernels still mitigate all known
/// vulnerabilities of Zen 1: the list is the same for all of family 17h (bugs of the CPU itself,
/// arch/x86/kernel/cpu/common.c, `cpu_vuln_blacklist`). It adds no features, because kernels read
/// those from their bits.
pub(super) fn modernize(leaves: &mut Leaves) {
    let [signature, ..] = leaves.get(1);
    if vendor(leaves) == AUTHENTIC_AMD && reads_cache_leaf(signature) {
        return;
    }
    for function in [BASIC, EXTENDED] {
        leaves.change(function, |leaf| [leaf.ebx, leaf.edx, leaf.ecx] = AUTHENTIC_AMD);
    }
    for function in [1, 0x8000_0001] {
        leaves.change(function, |leaf| leaf.eax = ZEN2);
    }
}

fn vendor(leaves: &Leaves) -> [u32; 3] {
    let [_, ebx, ecx, edx] = leaves.get(BASIC);
    [ebx, edx, ecx]
}

fn reads_cache_leaf(signature: u32) -> bool {
    match family_and_model(signature) {
        (0x17, model) => model > 0x1f,
        (family, _) => family > 0x17,
    }
}

/// Splits a vendor's name into registers.
pub(super) const fn words(name: &[u8; 12]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *name;
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
        u32::from_le_bytes([i, j, k, l]),
    ]
}

/// Returns family and model.
///
/// Source: AMD APM vol. 3, E.3.2 ("Function 1h", EAX).
pub(super) fn family_and_model(signature: u32) -> (u32, u32) {
    let (family, model) = (signature >> 8 & 0xf, signature >> 4 & 0xf);
    match family {
        0xf => (family + (signature >> 20 & 0xff), model | signature >> 12 & 0xf0),
        _ => (family, model),
    }
}
