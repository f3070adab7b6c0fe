//! What the project measures about itself.

mod boot;
mod cgroup;
mod output;
mod process;
mod scenario;
mod vmm;

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
    /// What measuring workers costs, what the scenario engine adds, and how soon the verdict is there.
    Scenario(scenario::Scenario),
    /// The KVM engine beside QEMU's machines, all on the KVM of one nested machine.
    Vmm(vmm::Vmm),
    /// What `vmm` runs in that machine.
    #[command(hide = true)]
    VmmInside(vmm::Inside),
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Boot(boot) => boot.run(),
            Self::Cgroup(cgroup) => cgroup.run(),
            Self::Output(output) => output.run(),
            Self::Process(process) => process.run(),
            Self::Scenario(scenario) => scenario.run(),
            Self::Vmm(vmm) => vmm.run(),
            Self::VmmInside(inside) => inside.run(),
        }
    }
}
