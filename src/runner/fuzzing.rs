//! Runs the host side of a run without files. Only the fuzzers use it; it is not a public interface.

use std::time::Duration;

use ktstr_core::machine::MachineSpec;
use ktstr_core::record::RunRecord;
use ktstr_core::registry::TestEntry;
use ktstr_core::wire::{Request, RunRequest};
use ktstr_vmm::{Engine, VmConfig};

use super::echo::Echo;
use super::session::{self, Live, RunLimits};
use super::template::Plan;
use super::{keep_outcome, record};
use crate::report::{self, Style};

pub use super::initramfs::read_elf;

/// Everything that is shown of a run, and its record.
#[derive(Debug)]
pub struct Shown {
    /// The facts.
    pub record: RunRecord,
    /// The output of the body.
    pub output: String,
    /// The report.
    pub report: String,
}

/// Runs a test on a machine of `engine`.
pub fn run_on(engine: &dyn Engine, config: &VmConfig) -> Shown {
    let (test, machine) = ("test".to_owned(), MachineSpec::DEFAULT);
    let request = Request::Run(RunRequest { test, machine, env: Vec::new(), restored: None });
    let second = Duration::from_secs(1);
    let limits = RunLimits { duration: Some(second), watchdog: second };
    let (mut echo, mut output) = (Echo::default(), String::new());
    let outcome = session::run(engine, config, Plan::Boot(None), request, limits, &mut |live| {
        if let Live::Output(_, bytes) = live {
            output += &echo.take(bytes);
        }
        None
    });
    let mut record = record::begin(&TestEntry { name: "test", ..TestEntry::DEFAULT });
    keep_outcome(outcome, Duration::ZERO, &mut record);
    let report = report::render(&record, Style::PLAIN);
    Shown { record, output, report }
}
