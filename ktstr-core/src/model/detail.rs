//! One reason of a verdict, and how serious it is.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::measurement::{Limit, Measurement, Scope, compared};

named_enum! {
    /// What a test concluded, ordered as [`AssertResult::merge`](super::verdict::AssertResult::merge)
    /// does: the greater outcome prevails.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Outcome {
        /// The test does not apply here.
        Skip => "skip",
        /// Every check passed.
        Pass => "pass",
        /// The checks could not decide; never a pass.
        Inconclusive => "inconclusive",
        /// A check failed.
        Fail => "fail",
    }
}

named_enum! {
    /// What a detail is about. A check with a key in the attribute is displayed by that key.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    #[non_exhaustive]
    pub enum DetailKind {
        /// A worker process ended before it was stopped.
        WorkerExited => "worker exited early",
        /// `not_stuck`: a worker completed no iteration for too long.
        WorkerStuck => "not_stuck",
        /// `isolation`: a worker ran outside of its cpuset.
        Isolation => "isolation",
        Gap => "max_gap_ms",
        Spread => "max_spread_pct",
        ThroughputCv => "max_throughput_cv",
        IterationRate => "min_iteration_rate",
        WorkRate => "min_work_rate",
        MigrationRatio => "max_migration_ratio",
        WakeLatency => "max_p99_wake_latency_ns",
        WakeLatencyCv => "max_wake_latency_cv",
        PageLocality => "min_page_locality",
        Throttled => "max_throttled_pct",
        Quota => "max_quota_error_pct",
        Weight => "max_weight_error_pct",
        OomKill => "no_oom_kill",
        CpuPressure => "max_cpu_pressure_pct",
        MemoryPressure => "max_memory_pressure_pct",
        IoPressure => "max_io_pressure_pct",
        /// How a payload ended.
        PayloadEnd => "payload end",
        /// A metric of a payload.
        PayloadMetric => "payload metric",
        /// A claim of the test about its own number.
        Claim => "claim",
        /// The reason of a skip.
        Skip => "skipped",
        /// Anything else, described by the message.
        Other => "check",
    }
}

/// One reason of a verdict: what was measured or observed, on which object, where and when.
///
/// A kind and a message are enough. The other facts are displayed in a fixed order: measured value and
/// limit, worker or payload, cgroup, CPU, time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AssertDetail {
    /// What it is about.
    pub kind: DetailKind,
    /// How serious it is: [`Outcome::Fail`], unless it became part of another verdict.
    pub outcome: Outcome,
    /// What was observed; if there is a measured value, an explanation of it.
    pub message: String,
    /// The value that was measured.
    pub measured: Option<Measurement>,
    /// The limit that the value was compared with.
    pub limit: Option<Limit>,
    /// The worker, cgroup or payload that it concerns.
    pub scope: Scope,
    /// The CPU on which it happened.
    pub cpu: Option<u32>,
    /// When it happened, in nanoseconds since boot.
    pub at_ns: Option<u64>,
    /// Whether steal time could explain it.
    pub time_based: bool,
    /// How much steal time of one CPU it takes to explain it; `None` if steal time does not. Unlike
    /// `time_based`, this applies to emulated CPUs as well.
    pub explained_by: Option<Duration>,
    /// Whether it counts on emulated CPUs although it is time-based.
    pub judge_emulated: bool,
}

impl AssertDetail {
    /// Creates a detail of `kind` with a message.
    pub fn new(kind: DetailKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            outcome: Outcome::Fail,
            message: message.into(),
            measured: None,
            limit: None,
            scope: Scope::Machine,
            cpu: None,
            at_ns: None,
            time_based: false,
            explained_by: None,
            judge_emulated: false,
        }
    }

    /// Creates a detail of `kind` about a measured value, which also sets its scope.
    ///
    /// A value that is not finite is described by the message instead.
    pub fn measured(kind: DetailKind, measured: Measurement) -> Self {
        let scope = measured.scope.clone();
        if measured.value.is_finite() {
            return Self { measured: Some(measured), scope, ..Self::new(kind, "") };
        }
        let value = compared(measured.value, &measured.unit, None);
        Self::new(kind, format!("{} = {value}", measured.name)).scope(scope)
    }

    /// Sets the limit that the value was compared with. One that is not finite becomes part of the message.
    pub fn limit(self, limit: Limit) -> Self {
        if limit.is_finite() {
            return Self { limit: Some(limit), ..self };
        }
        let unit = self.measured.as_ref().map_or("", |measured| &measured.unit);
        let text = limit.describe(unit);
        self.because(&text)
    }

    /// Sets the worker, cgroup or payload that it and its value concern.
    pub fn scope(mut self, scope: Scope) -> Self {
        if let Some(measured) = &mut self.measured {
            measured.scope = scope.clone();
        }
        Self { scope, ..self }
    }

    /// Sets the CPU on which it happened.
    pub fn cpu(self, cpu: u32) -> Self {
        Self { cpu: Some(cpu), ..self }
    }

    /// Sets when it happened, in nanoseconds since boot.
    pub fn at_ns(self, at_ns: u64) -> Self {
        Self { at_ns: Some(at_ns), ..self }
    }

    /// Marks it as something that steal time could explain.
    pub fn time_based(self) -> Self {
        Self { time_based: true, ..self }
    }

    /// Sets how much steal time of one CPU explains it.
    pub fn explained_by(self, stolen: Duration) -> Self {
        Self { explained_by: Some(stolen), ..self }
    }

    /// Appends `why` to the message.
    pub fn because(mut self, why: &str) -> Self {
        if !self.message.is_empty() {
            self.message.push_str("; ");
        }
        self.message.push_str(why);
        self
    }
}

/// Writes `max_gap_ms: 63.2 ms (limit 50 ms), worker 77 (spin), cgroup cg_0, CPU 2, at 3.214 s`.
///
/// The message takes the place of a value that was not measured, and follows everything else if
/// one was. Claims and metrics of a payload have names: `claim: took = 12 ms (limit 10 ms)`.
impl fmt::Display for AssertDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ns| format!("at {:.3} s", Duration::from_nanos(ns).as_secs_f64());
        let value = self.measured.as_ref().map(|measured| {
            let value = compared(measured.value, &measured.unit, self.limit);
            match self.kind {
                DetailKind::Claim | DetailKind::PayloadMetric => {
                    format!("{} = {value}", measured.name)
                }
                _ => value,
            }
        });
        let explanation = if value.is_some() { &*self.message } else { "" };
        let message = || match self.limit {
            Some(limit) => format!("{} ({})", self.message, limit.describe("")),
            None => self.message.clone(),
        };
        let parts = [
            value.unwrap_or_else(message),
            self.scope.to_string(),
            self.cpu.map_or_else(String::new, |cpu| format!("CPU {cpu}")),
            self.at_ns.map_or_else(String::new, seconds),
        ];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        write!(f, "{}: {}", self.kind, parts.join(", "))?;
        if explanation.is_empty() { Ok(()) } else { write!(f, ": {explanation}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(value: f64) -> AssertDetail {
        let (comm, cgroup) = ("spin".to_owned(), "cg_0".to_owned());
        let measured = Measurement::new("gap", value, "ms");
        let measured = measured.scope(Scope::Worker { pid: 77, comm, cgroup });
        AssertDetail::measured(DetailKind::Gap, measured).at_ns(3_214_400_000).cpu(2)
    }

    #[test]
    fn detail_displays_facts_in_one_order() {
        let text =
            "max_gap_ms: 63.2 ms (limit 50 ms), worker 77 (spin), cgroup cg_0, CPU 2, at 3.214 s";
        let full = gap(63.2).limit(Limit::AtMost(50.0));
        let claim = Measurement::new("took", 12.0, "ms").scope(Scope::Claim);
        let claim = AssertDetail::measured(DetailKind::Claim, claim);
        for (detail, want) in [
            (full.clone(), text),
            (full.because("noise").because("more"), &format!("{text}: noise; more")),
            (claim.limit(Limit::AtLeast(20.0)), "claim: took = 12 ms (minimum 20 ms)"),
            (AssertDetail::new(DetailKind::Other, "why"), "check: why"),
            (
                AssertDetail::new(DetailKind::Other, "why").cpu(1).because("noise"),
                "check: why; noise, CPU 1",
            ),
        ] {
            assert_eq!(detail.to_string(), want);
        }
    }

    #[test]
    fn detail_has_only_finite_numbers() {
        let nan = gap(f64::NAN).limit(Limit::AtMost(50.0));
        assert_eq!(nan.measured, None);
        assert_eq!(nan.message, "gap = NaN ms");
        let infinite = gap(1.0).limit(Limit::AtMost(f64::INFINITY));
        assert_eq!((infinite.limit, &*infinite.message), (None, "limit inf ms"));
    }

    #[test]
    fn detail_survives_the_wire() {
        let detail = gap(1.0).limit(Limit::Between(2.0, 3.0)).because("x").time_based();
        let detail = detail.explained_by(Duration::from_millis(5));
        let bytes = postcard::to_allocvec(&detail).unwrap();
        assert_eq!(postcard::from_bytes::<AssertDetail>(&bytes).unwrap(), detail);
    }
}
