//! Sets what a restored guest must not have in common with other copies of the same guest.
//!
//! PID 1 itself keeps its hash keys and addresses. Nothing depends on them: it reads only what the host and the
//! body send, and the body is a program of its own, started after this.

use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::linux::sys;
use crate::model::wire::Restored;

const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

const URANDOM: &str = "/dev/urandom";

/// Returns the kernel's clock source.
pub(super) fn clock_source() -> Result<String> {
    let name = fs::read_to_string(CLOCK_SOURCE)
        .with_context(|| format!("failed to read {CLOCK_SOURCE}"))?;
    Ok(name.trim_end().to_owned())
}

/// Sets the wall clock, seeds the random number generator, and checks that the clock source is still `saved`.
pub(super) fn apply(restored: &Restored, saved: &str) -> Result<()> {
    let now = clock_source()?;
    // An early clock source is the same counter before its calibration is refined.
    let same = now == saved || saved.strip_suffix("-early") == Some(&*now);
    ensure!(same, "the clock source changed from {saved} to {now}");
    let entropy = <[u8; Restored::ENTROPY]>::try_from(&*restored.entropy)
        .map_err(|_| anyhow!("the host sent {} bytes of entropy", restored.entropy.len()))?;
    set_wall_clock(restored.wall_clock).context("failed to set the wall clock")?;
    let urandom = File::open(URANDOM).with_context(|| format!("failed to open {URANDOM}"))?;
    sys::reseed(urandom, entropy).with_context(|| format!("failed to reseed {URANDOM}"))
}

fn set_wall_clock(since_epoch: Duration) -> Result<()> {
    let time = Timespec::try_from(since_epoch).context("the time does not fit a timespec")?;
    Ok(clock_settime(ClockId::Realtime, time)?)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    /// Both are checked before anything is changed, here the host.
    #[test]
    fn apply_refuses_another_clock_source_and_too_little_entropy() {
        let wall_clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let restored = Restored { wall_clock, entropy: vec![1; 63] };
        let now = clock_source().unwrap();
        let error = |saved| apply(&restored, saved).unwrap_err().to_string();
        assert_eq!(error("sundial"), format!("the clock source changed from sundial to {now}"));
        assert_eq!(error(&now), "the host sent 63 bytes of entropy");
        assert_eq!(error(&format!("{now}-early")), "the host sent 63 bytes of entropy");
    }
}
