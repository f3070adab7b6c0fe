//! What the project measures about itself.

mod boot;
mod cgroup;
mod output;
mod process;
mod vmm;
mod worker;

use anyhow::Result;
use clap::Subcommand;

/// Measures.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// How long each phase of a run takes, beside a plain QEMU with the same kernel and initramfs.
    Boot(boot::Boot),
    /// What writing a knob costs in the guest, beside a bare write and a thread per write.
    Cgroup(cgroup::Cgroup),
    /// How fast a body's output reaches the host, in a crate outside of this workspace.
    Output(output::Output),
    /// What a job costs, beside std and a crate that groups processes, on this host.
    Process(process::Process),
    /// The KVM engine beside QEMU's machines, all on the KVM of one nested machine.
    Vmm(vmm::Vmm),
    /// What `vmm` runs in that machine.
    #[command(hide = true)]
    VmmInside(vmm::Inside),
    /// How long iterations are, and what measuring them costs a worker.
    Worker(worker::Worker),
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Boot(boot) => boot.run(),
            Self::Cgroup(cgroup) => cgroup.run(),
            Self::Output(output) => output.run(),
            Self::Process(process) => process.run(),
            Self::Vmm(vmm) => vmm.run(),
            Self::VmmInside(inside) => inside.run(),
            Self::Worker(worker) => worker.run(),
        }
    }
}
