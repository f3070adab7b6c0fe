//! The guest's side of a run: the test binary as PID 1.
//!
//! PID 1 mounts file systems, loads kernel modules, opens the wire and sends `Hello`. Then it carries
//! out one request: it checks that the machine is the requested one, starts a process for the body,
//! forwards its messages, and sends how it ended. It never blocks on the body, so a missing heartbeat
//! means that the guest is dead and not only busy.

mod body;
mod child;
mod handover;
mod machine;
mod mounts;
mod outbox;
mod output;
mod pipe;
mod port;
mod profile;
mod restored;
mod serve;
mod shell;
mod system;

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use body::{Harness, panic_message, run as run_body};
pub use profile::is_instrumented;

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use rustix::system::{RebootCommand, reboot};

use crate::linux::sys;
use crate::model::pid1::{BODY, END_MARK, ENV, FAILURE_PREFIX, MODULES};

/// Becomes PID 1 or the body of a test, and never returns, if the runner or PID 1 has started this process in a
/// guest. Returns on the host, and in programs that a body executes.
pub fn run_if_guest(harness: Harness) {
    if std::env::var_os(ENV).is_none() {
        return;
    }
    if rustix::process::getpid() == Pid::INIT {
        init(harness);
    }
    if let Some(test) = std::env::var_os(BODY) {
        body::fork(&test, harness);
    }
}

/// Runs as PID 1. Never returns: the host ends the machine, or PID 1 powers it off if it fails.
fn init(harness: Harness) -> ! {
    let began_ns = sys::since_boot_ns();
    match catch_unwind(AssertUnwindSafe(|| serve(began_ns, harness))) {
        Ok(Ok(never)) => match never {},
        Ok(Err(error)) => eprintln!("{FAILURE_PREFIX}{error:#}"),
        Err(_) => eprintln!("{FAILURE_PREFIX}it panicked; see the message above"),
    }
    rustix::fs::sync();
    loop {
        // Without ACPI, power-off fails; a reset ends the machine, too.
        let _ = reboot(RebootCommand::PowerOff);
        let _ = reboot(RebootCommand::Restart);
    }
}

fn serve(began_ns: u64, harness: Harness) -> Result<Infallible> {
    ensure!(
        std::path::Path::new(END_MARK).exists(),
        "the initramfs is truncated: its last file {END_MARK} is missing"
    );
    mounts::mount_all()?;
    system::set_up()?;
    sys::set_highest_priority().context("failed to raise the priority of PID 1")?;
    load_modules()?;
    let port = port::open(crate::model::wire::PORT)?;
    serve::Agent::new(port, harness).serve(began_ns)
}

/// Loads the modules in the order of their names, which satisfies their dependencies.
fn load_modules() -> Result<()> {
    let Ok(entries) = std::fs::read_dir(MODULES) else { return Ok(()) };
    let mut modules = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()
        .with_context(|| format!("failed to list {MODULES}"))?;
    modules.sort();
    for module in modules {
        let file = std::fs::File::open(&module)
            .with_context(|| format!("failed to open {}", module.display()))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => {
                return Err(errno).with_context(|| {
                    format!("the kernel refused module {}; see its message above", module.display())
                });
            }
        }
    }
    Ok(())
}
