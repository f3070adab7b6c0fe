//! Values of the files of a cgroup, checked against their ranges.

use std::collections::BTreeSet;

use super::{Error, list};

/// A value in range for one file of a cgroup, created by [`CgroupOps`](super::CgroupOps).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knob {
    file: &'static str,
    value: String,
}

impl Knob {
    /// Returns the name of the file: `cpu.max`.
    pub fn file(&self) -> &'static str {
        self.file
    }

    /// Returns the value to write.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Returns a list of CPUs or memory nodes. An empty list is a line break, because the kernel ignores
    /// an empty write.
    pub(super) fn list(file: &'static str, numbers: &BTreeSet<usize>) -> Self {
        let list = list::format(numbers);
        Self { file, value: if list.is_empty() { "\n".to_owned() } else { list } }
    }

    /// Returns whether this empties a cpuset, so that the cgroup inherits that of its parent.
    pub(super) fn empties_cpuset(&self) -> bool {
        self.file.starts_with("cpuset.") && self.value.trim().is_empty()
    }

    pub(super) fn cpu_max(quota_us: Option<u64>, period_us: u64) -> Result<Self, Error> {
        let quota = quota_us.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        let value = format!("{quota} {period_us}");
        let in_range = (1_000..=1_000_000).contains(&period_us)
            && quota_us.is_none_or(|quota| (1_000..1 << 44).contains(&quota));
        Self { file: "cpu.max", value }.only_if(
            in_range,
            "a quota of 1000 to 17592186044415 us or `max`, and a period of 1000 to 1000000 us",
            "Linux 6.12, kernel/sched/core.c, tg_set_cfs_bandwidth",
        )
    }

    pub(super) fn weight(file: &'static str, weight: u32) -> Result<Self, Error> {
        Self { file, value: weight.to_string() }.only_if(
            (1..=10_000).contains(&weight),
            "1 to 10000",
            "Linux 6.12, admin-guide/cgroup-v2.rst, Weights",
        )
    }

    pub(super) fn memory(
        file: &'static str,
        bytes: Option<u64>,
        unlimited: &str,
    ) -> Result<Self, Error> {
        let value = bytes.map_or_else(|| unlimited.to_owned(), |bytes| bytes.to_string());
        Self { file, value }.only_if(
            bytes.is_none_or(|bytes| bytes <= i64::MAX as u64),
            "0 to 9223372036854775807 bytes or `max`",
            "Linux 6.12, include/linux/page_counter.h, PAGE_COUNTER_MAX: more reads as `max`",
        )
    }

    pub(super) fn pids_max(max: Option<u64>) -> Result<Self, Error> {
        let value = max.map_or_else(|| "max".to_owned(), |max| max.to_string());
        Self { file: "pids.max", value }.only_if(
            max.is_none_or(|max| max <= 4_194_304),
            "0 to 4194304 or `max`",
            "Linux 6.12, kernel/cgroup/pids.c, PIDS_MAX; include/linux/threads.h, PID_MAX_LIMIT",
        )
    }

    fn only_if(
        self,
        in_range: bool,
        range: &'static str,
        rule: &'static str,
    ) -> Result<Self, Error> {
        if in_range {
            return Ok(self);
        }
        Err(Error::Range { knob: self.file, value: self.value, range, rule })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knobs_format_values_for_the_kernel() {
        let text = |knob: Result<Knob, Error>| knob.unwrap().value;
        assert_eq!(text(Knob::cpu_max(None, 100_000)), "max 100000");
        assert_eq!(text(Knob::cpu_max(Some(20_000), 100_000)), "20000 100000");
        assert_eq!(text(Knob::weight("cpu.weight", 10_000)), "10000");
        assert_eq!(text(Knob::memory("memory.max", None, "max")), "max");
        assert_eq!(text(Knob::memory("memory.low", None, "0")), "0");
        assert_eq!(text(Knob::pids_max(Some(0))), "0");
        assert_eq!(Knob::list("cpuset.cpus", &BTreeSet::new()).value, "\n");
    }

    #[test]
    fn knobs_refuse_values_out_of_range() {
        for (knob, value) in [
            (Knob::cpu_max(Some(999), 100_000), "999 100000"),
            (Knob::cpu_max(Some(1 << 44), 100_000), "17592186044416 100000"),
            (Knob::cpu_max(None, 999), "max 999"),
            (Knob::cpu_max(None, 1_000_001), "max 1000001"),
            (Knob::weight("cpu.weight", 0), "0"),
            (Knob::weight("io.weight", 10_001), "10001"),
            (Knob::memory("memory.high", Some(1 << 63), "max"), "9223372036854775808"),
            (Knob::pids_max(Some(4_194_305)), "4194305"),
        ] {
            let error = knob.unwrap_err().to_string();
            assert!(error.starts_with(&format!("refused to write `{value}` to ")), "{error}");
            assert!(error.contains(": it takes ") && error.contains("(Linux 6.12, "), "{error}");
        }
    }
}
