//! Benchmarks of the project.

mod boot;
mod cgroup;
mod fork;
mod output;
mod process;
mod vmm;
mod worker;

use anyhow::Result;
use clap::Subcommand;

/// Benchmarks.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Measure each phase of a run, against a plain QEMU with the same kernel and initramfs
    Boot(boot::Boot),
    /// Measure a write of a knob in the guest, against a bare write and a thread per write
    Cgroup(cgroup::Cgroup),
    /// Measure copies of a booted guest against boots, on the engine of this host
    Fork(fork::Fork),
    /// Measure how fast a body's output reaches the host, in a crate outside of this workspace
    Output(output::Output),
    /// Measure a job on this host, against std and a crate that groups processes
    Process(process::Process),
    /// Measure the KVM engine against QEMU's machines, all on the KVM of one nested machine
    Vmm(vmm::Vmm),
    /// Run the measurements of `vmm` inside that machine
    #[command(hide = true)]
    VmmInside(vmm::Inside),
    /// Measure how long iterations of workers are, and what measuring them costs
    Worker(worker::Worker),
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Boot(boot) => boot.run(),
            Self::Cgroup(cgroup) => cgroup.run(),
            Self::Fork(fork) => fork.run(),
            Self::Output(output) => output.run(),
            Self::Process(process) => process.run(),
            Self::Vmm(vmm) => vmm.run(),
            Self::VmmInside(inside) => inside.run(),
            Self::Worker(worker) => worker.run(),
        }
    }
}
