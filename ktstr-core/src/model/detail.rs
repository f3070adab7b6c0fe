//! One reason of a verdict.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a test concluded. The order is the order of [`AssertResult::merge`](super::verdict::AssertResult::merge): the greater wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The test did not apply here; it says why.
    Skip,
    /// Everything that was checked held.
    Pass,
    /// The checks could not tell; never a pass.
    Inconclusive,
    /// A check failed.
    Fail,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skip => "skip",
            Self::Pass => "pass",
            Self::Inconclusive => "inconclusive",
            Self::Fail => "fail",
        })
    }
}

/// What a detail is about. A check that has a key in the attribute is shown by the key's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DetailKind {
    /// A worker died before it was told to stop.
    WorkerDied,
    /// `not_stuck`: a worker was released and made no iteration.
    WorkerStuck,
    /// `isolation`: a worker ran outside of its cpuset.
    Isolation,
    /// `max_gap_ms`.
    Gap,
    /// `max_spread_pct`.
    Spread,
    /// `max_throughput_cv`.
    ThroughputCv,
    /// `min_iteration_rate`.
    IterationRate,
    /// `min_work_rate`.
    WorkRate,
    /// `max_migration_ratio`.
    MigrationRatio,
    /// `max_p99_wake_latency_ns`.
    WakeLatency,
    /// `max_wake_latency_cv`.
    WakeLatencyCv,
    /// `min_page_locality`.
    PageLocality,
    /// `max_throttled_pct`.
    Throttled,
    /// `max_quota_error_pct`.
    Quota,
    /// `max_weight_error_pct`.
    Weight,
    /// `no_oom_kill`.
    OomKill,
    /// `max_cpu_pressure_pct`.
    CpuPressure,
    /// `max_memory_pressure_pct`.
    MemoryPressure,
    /// `max_io_pressure_pct`.
    IoPressure,
    /// A cgroup does not hold what it should.
    Cgroup,
    /// How a payload ended.
    PayloadEnd,
    /// A metric of a payload.
    PayloadMetric,
    /// A claim of the test's own.
    Claim,
    /// The reason of a skip.
    Skip,
    /// Anything else; the message tells.
    Other,
}

impl fmt::Display for DetailKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WorkerDied => "worker died",
            Self::WorkerStuck => "not_stuck",
            Self::Isolation => "isolation",
            Self::Gap => "max_gap_ms",
            Self::Spread => "max_spread_pct",
            Self::ThroughputCv => "max_throughput_cv",
            Self::IterationRate => "min_iteration_rate",
            Self::WorkRate => "min_work_rate",
            Self::MigrationRatio => "max_migration_ratio",
            Self::WakeLatency => "max_p99_wake_latency_ns",
            Self::WakeLatencyCv => "max_wake_latency_cv",
            Self::PageLocality => "min_page_locality",
            Self::Throttled => "max_throttled_pct",
            Self::Quota => "max_quota_error_pct",
            Self::Weight => "max_weight_error_pct",
            Self::OomKill => "no_oom_kill",
            Self::CpuPressure => "max_cpu_pressure_pct",
            Self::MemoryPressure => "max_memory_pressure_pct",
            Self::IoPressure => "max_io_pressure_pct",
            Self::Cgroup => "cgroup",
            Self::PayloadEnd => "payload end",
            Self::PayloadMetric => "payload metric",
            Self::Claim => "claim",
            Self::Skip => "skipped",
            Self::Other => "check",
        })
    }
}

/// One reason of a verdict: what was seen, against what was expected, of whom, where and when.
///
/// A kind and a message are enough. What is known beside them is shown in one order, that in which
/// people ask: measured value, bound, worker, cgroup, CPU, time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssertDetail {
    /// What it is about.
    pub kind: DetailKind,
    /// How grave it is: [`Outcome::Fail`], unless the verdict it was made a part of says otherwise.
    pub outcome: Outcome,
    /// What was seen, in words; or, if `measured` has it, what is to be said of it.
    pub message: String,
    /// The value that was measured, with its unit.
    pub measured: Option<String>,
    /// What it is held against: `at most 50 ms`.
    pub bound: Option<String>,
    /// Whose value it is: `77 (spin)`; that of a payload has its name.
    pub worker: Option<String>,
    /// The cgroup in which that was.
    pub cgroup: Option<String>,
    /// The CPU on which that was.
    pub cpu: Option<u32>,
    /// When that was, in nanoseconds since boot.
    pub at_ns: Option<u64>,
    /// Whether time that the host took from the guest's CPUs could explain it.
    pub time_based: bool,
    /// How much time the host has to have taken from one of the guest's CPUs to explain it; `None` if
    /// that explains nothing. Unlike what is time-based, it counts on emulated CPUs as well.
    pub explained_by: Option<Duration>,
    /// Whether it counts even so where the CPUs are emulated in software.
    pub judge_emulated: bool,
}

impl AssertDetail {
    /// A detail of `kind` that says `message`.
    pub fn new(kind: DetailKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            outcome: Outcome::Fail,
            message: message.into(),
            measured: None,
            bound: None,
            worker: None,
            cgroup: None,
            cpu: None,
            at_ns: None,
            time_based: false,
            explained_by: None,
            judge_emulated: false,
        }
    }

    /// A detail of `kind` about a value and what it is held against.
    pub fn measured(
        kind: DetailKind,
        measured: impl fmt::Display,
        bound: impl fmt::Display,
    ) -> Self {
        let measured = Some(measured.to_string());
        Self { measured, bound: Some(bound.to_string()), ..Self::new(kind, "") }
    }

    /// Says whose it is: `77 (spin)`.
    pub fn worker(self, worker: impl fmt::Display) -> Self {
        Self { worker: Some(worker.to_string()), ..self }
    }

    /// Says in which cgroup it was; nothing if the name is empty.
    pub fn cgroup(self, cgroup: &str) -> Self {
        Self { cgroup: (!cgroup.is_empty()).then(|| cgroup.to_owned()), ..self }
    }

    /// Says on which CPU it was.
    pub fn cpu(self, cpu: u32) -> Self {
        Self { cpu: Some(cpu), ..self }
    }

    /// Says when it was, in nanoseconds since boot.
    pub fn at_ns(self, at_ns: u64) -> Self {
        Self { at_ns: Some(at_ns), ..self }
    }

    /// Says that time which the host took could explain it.
    pub fn time_based(self) -> Self {
        Self { time_based: true, ..self }
    }

    /// Sets how much time the host has to have taken from one CPU to explain it.
    pub fn explained_by(self, stolen: Duration) -> Self {
        Self { explained_by: Some(stolen), ..self }
    }

    /// Adds `why` to the message.
    pub fn because(mut self, why: &str) -> Self {
        if !self.message.is_empty() {
            self.message.push_str("; ");
        }
        self.message.push_str(why);
        self
    }
}

/// `max_gap_ms: 63.2 ms, at most 50 ms, worker 77 (spin), cgroup cg_0, CPU 2, at 3.214 s`.
///
/// The message takes the place of a value that was not measured, and follows everything else if
/// one was.
impl fmt::Display for AssertDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ns| format!("at {:.3} s", Duration::from_nanos(ns).as_secs_f64());
        let (first, last) = match &self.measured {
            Some(measured) => (measured, &*self.message),
            None => (&self.message, ""),
        };
        let whose = match self.kind {
            DetailKind::PayloadEnd | DetailKind::PayloadMetric => "payload",
            _ => "worker",
        };
        let parts = [
            Some(first.clone()).filter(|first| !first.is_empty()),
            self.bound.clone(),
            self.worker.as_ref().map(|worker| format!("{whose} {worker}")),
            self.cgroup.as_ref().map(|cgroup| format!("cgroup {cgroup}")),
            self.cpu.map(|cpu| format!("CPU {cpu}")),
            self.at_ns.map(seconds),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        write!(f, "{}: {}", self.kind, parts.join(", "))?;
        if last.is_empty() { Ok(()) } else { write!(f, ": {last}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_shown_in_one_order() {
        let full = AssertDetail::measured(DetailKind::Gap, "63.2 ms", "at most 50 ms")
            .at_ns(3_214_400_000)
            .cpu(2)
            .cgroup("cg_0")
            .worker("77 (spin)");
        let text =
            "max_gap_ms: 63.2 ms, at most 50 ms, worker 77 (spin), cgroup cg_0, CPU 2, at 3.214 s";
        for (detail, want) in [
            (full.clone(), text.to_owned()),
            (full.because("noise").because("more"), format!("{text}: noise; more")),
            (AssertDetail::new(DetailKind::Other, "why"), "check: why".to_owned()),
            (
                AssertDetail::new(DetailKind::Other, "why").cgroup("").cpu(1).because("noise"),
                "check: why; noise, CPU 1".to_owned(),
            ),
        ] {
            assert_eq!(detail.to_string(), want);
        }
    }

    #[test]
    fn the_wire_keeps_all_of_it() {
        let detail = AssertDetail::measured(DetailKind::Weight, "1 %", "at least 2 %");
        let detail = detail.because("x").worker("1 (a)").cgroup("cg").cpu(3).at_ns(4).time_based();
        let detail = detail.explained_by(Duration::from_millis(5));
        let bytes = postcard::to_allocvec(&detail).unwrap();
        assert_eq!(postcard::from_bytes::<AssertDetail>(&bytes).unwrap(), detail);
    }
}
