//! Measures which part of the body's time the host kept each vCPU from running.

use std::time::{Duration, Instant};

use ktstr_vmm::Vm;

/// The steal time of the vCPUs since a moment.
#[derive(Debug)]
pub(super) struct StealMeter {
    began: Instant,
    delays: Vec<Duration>,
}

impl StealMeter {
    /// Starts to measure; returns `None` if the kernel of the host does not count run delays.
    pub(super) fn start(vm: &mut dyn Vm) -> Option<Self> {
        let delays = vm.run_delays().ok()?;
        Some(Self { began: Instant::now(), delays })
    }

    /// Returns the part of the time since the start for each vCPU, 0.0 to 1.0; nothing if the engine is gone.
    pub(super) fn read(&self, vm: &mut dyn Vm) -> Vec<f64> {
        let wall = self.began.elapsed().as_secs_f64();
        let Ok(delays) = vm.run_delays() else { return Vec::new() };
        let taken =
            self.delays.iter().zip(delays).map(|(before, after)| after.saturating_sub(*before));
        // Delays and wall time come from two clocks: the quotient may be a little larger than 1.
        taken.map(|taken| (taken.as_secs_f64() / wall).min(1.0)).collect()
    }
}
