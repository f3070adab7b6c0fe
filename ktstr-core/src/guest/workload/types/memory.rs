//! Loops that load caches, page tables and memory nodes.

use std::hint::black_box;
use std::io;

use crate::guest::workload::WorkerCtx;
use crate::guest::workload::affinity::SplitMix;
use crate::linux::cgroup::parse_list;
use crate::linux::sys::{self, Region};

/// 1 MiB.
const PAGES: usize = 256;

pub(super) fn cache_pressure(ctx: &WorkerCtx) {
    const WORDS_PER_LINE: usize = 8;
    /// Of 64 bytes each: 4 MiB.
    const LINES: usize = 1 << 16;
    const LINES_PER_ITERATION: u64 = 128;
    // Zero pages come from the kernel at the first access. To write all of them here would delay the first
    // iteration by 0.2 s of CPU time in an unoptimized build on an emulated CPU.
    let mut words = vec![0_u64; LINES * WORDS_PER_LINE];
    let mut random = SplitMix(ctx.own().pid.load(std::sync::atomic::Ordering::Relaxed) as u64);
    while ctx.should_continue() {
        for _ in 0..LINES_PER_ITERATION {
            words[random.next() as usize % LINES * WORDS_PER_LINE] += 1;
        }
        black_box(&words);
        ctx.record_iteration(LINES_PER_ITERATION);
    }
}

pub(super) fn page_fault_churn(ctx: &WorkerCtx) -> io::Result<()> {
    let region = Region::new(PAGES)?;
    while ctx.should_continue() {
        region.touch();
        region.discard()?;
        ctx.record_iteration(PAGES as u64);
    }
    Ok(())
}

pub(super) fn numa_sweep(ctx: &WorkerCtx) -> io::Result<()> {
    let region = Region::new(PAGES)?;
    let nodes = std::fs::read_to_string("/sys/devices/system/node/has_memory")?;
    let nodes = parse_list(&nodes).ok_or_else(|| io::Error::other("malformed list of nodes"))?;
    for node in ctx.cycle(&nodes) {
        match sys::set_mempolicy(libc::MPOL_PREFERRED, 1_u64.checked_shl(*node as u32).unwrap_or(0))
        {
            // Its cgroup has no memory on this node.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => continue,
            set => set?,
        }
        region.discard()?;
        // The first pass gets the pages, the others use them.
        for _ in 0..8 {
            region.touch();
        }
        for node in region.nodes()? {
            if let Ok(node) = usize::try_from(node) {
                ctx.telemetry().record_pages(node, 1);
            }
        }
        ctx.record_iteration(PAGES as u64);
    }
    sys::set_mempolicy(libc::MPOL_DEFAULT, 0)
}

#[cfg(test)]
mod tests {
    use crate::guest::workload::WorkType;
    use crate::guest::workload::testing::{Running, proc_number, sleeps, stat_field};

    #[test]
    fn cache_pressure_fills_its_memory_and_never_sleeps() {
        let running = Running::of(WorkType::CachePressure, 1);
        running.wait_for_units(1 << 17);
        let slept = sleeps(running.pid(0));
        // Each line a second time on average, in pages that are mapped.
        running.wait_for_units(1 << 18);
        assert!(proc_number(running.pid(0), "status", "RssAnon") >= 4 * 1024);
        assert_eq!(sleeps(running.pid(0)), slept);
    }

    #[test]
    fn page_fault_churn_counts_page_faults() {
        let faults = |pid| stat_field(pid, 10) as u64;
        let running = Running::of(WorkType::PageFaultChurn, 1);
        running.wait_for_units(1);
        // In this order: the worker continues between the two.
        let (units, before) = (running.report(0).work_units, faults(running.pid(0)));
        running.wait_for_units(units + 10_000);
        let (done, after) = (running.report(0).work_units, faults(running.pid(0)));
        // A page table was walked in part when the first was counted.
        assert!(
            after - before + 2 * 256 >= done - units,
            "{} for {}",
            after - before,
            done - units
        );
    }

    #[test]
    fn numa_sweep_gets_memory_of_each_node() {
        let nodes = std::fs::read_to_string("/sys/devices/system/node/has_memory");
        let Ok(nodes) = nodes else {
            eprintln!("skipped: a kernel without NUMA");
            return;
        };
        let nodes = crate::linux::cgroup::parse_list(&nodes).unwrap();
        let running = Running::of(WorkType::NumaSweep, 1);
        running.wait_for_units(256 * nodes.len() as u64);
        let [report] = running.stop().try_into().unwrap();
        for node in nodes {
            assert!(report.numa_pages[node] > 0, "{report:?}");
        }
        let pages: u64 = report.numa_pages.iter().sum();
        assert!((report.work_units..=report.work_units + 256).contains(&pages), "{report:?}");
    }
}
