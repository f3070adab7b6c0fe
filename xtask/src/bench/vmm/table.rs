//! What is measured, and how it is shown.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};

/// A VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Column {
    Engine,
    EngineNokaslr,
    Microvm,
    Q35,
}

impl Column {
    pub(super) const ALL: [Self; 4] = [Self::Engine, Self::EngineNokaslr, Self::Microvm, Self::Q35];

    pub(super) fn is_qemu(self) -> bool {
        matches!(self, Self::Microvm | Self::Q35)
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Engine => "ktstr",
            Self::EngineNokaslr => "ktstr nokaslr",
            Self::Microvm => "QEMU microvm",
            Self::Q35 => "QEMU q35",
        })
    }
}

/// A measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Row {
    FirstRun,
    FirstLine,
    Init,
    Hello,
    CpuFirstRun,
    CpuInit,
    Exits,
    IoExits,
    MmioExits,
    PageFaults,
    Rss,
    Freeze,
}

impl Row {
    const ALL: [Self; 12] = [
        Self::FirstRun,
        Self::FirstLine,
        Self::Init,
        Self::Hello,
        Self::CpuFirstRun,
        Self::CpuInit,
        Self::Exits,
        Self::IoExits,
        Self::MmioExits,
        Self::PageFaults,
        Self::Rss,
        Self::Freeze,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::FirstRun => "exec to first KVM_RUN, ms",
            Self::FirstLine => "exec to first kernel line, ms",
            Self::Init => "exec to /init, ms",
            Self::Hello => "exec to user space's line, ms",
            Self::CpuFirstRun => "CPU until first KVM_RUN, ms",
            Self::CpuInit => "CPU until /init, ms",
            Self::Exits => "exits until /init",
            Self::IoExits => "  of port I/O",
            Self::MmioExits => "  of MMIO",
            Self::PageFaults => "  of memory not mapped yet",
            Self::Rss => "RSS without the guest's, MiB",
            Self::Freeze => "freeze, read 64 KiB, resume, ms",
        }
    }

    fn target(self) -> Option<Target> {
        match self {
            Self::Init => Some(Target::Ratio(0.7)),
            Self::CpuFirstRun => Some(Target::Value(8.0)),
            Self::Rss => Some(Target::Value(5.0)),
            Self::Freeze => Some(Target::Value(1.0)),
            _ => None,
        }
    }
}

/// The most that the engine may need.
#[derive(Debug, Clone, Copy)]
enum Target {
    /// As a value.
    Value(f64),
    /// Against the microvm.
    Ratio(f64),
}

type Values = BTreeMap<(Row, Column), BTreeMap<u32, f64>>;

/// Values of all rounds, by kernel and number of CPUs, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Table {
    machines: Vec<(String, Values)>,
}

impl Table {
    /// Adds a line `ROUND KERNEL CPUS COLUMN ROW VALUE`.
    pub(super) fn add(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let [round, kernel, cpus, column, row, value] = words[..] else {
            anyhow::bail!("{} words, not six", words.len());
        };
        let column = Column::ALL.into_iter().find(|one| format!("{one:?}") == column);
        let row = Row::ALL.into_iter().find(|one| format!("{one:?}") == row);
        let key = (row.context("no such row")?, column.context("no such column")?);
        let name = format!("{kernel}, {cpus} CPU{}", if cpus == "1" { "" } else { "s" });
        let index = match self.machines.iter().position(|(known, _)| *known == name) {
            Some(index) => index,
            None => {
                self.machines.push((name, Values::new()));
                self.machines.len() - 1
            }
        };
        self.machines[index].1.entry(key).or_default().insert(round.parse()?, value.parse()?);
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, values) in &self.machines {
            writeln!(f, "\n{name}, 256 MiB: median (least to most)")?;
            write!(f, "{:<32}", "")?;
            for column in Column::ALL {
                write!(f, "{column:>24}")?;
            }
            writeln!(f, "  ktstr/microvm  target")?;
            for row in Row::ALL {
                write_row(f, row, values)?;
            }
        }
        Ok(())
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, row: Row, values: &Values) -> fmt::Result {
    write!(f, "{:<32}", row.title())?;
    for column in Column::ALL {
        let cell = match values.get(&(row, column)).and_then(|rounds| spread(rounds.values())) {
            Some([least, median, most]) => {
                format!("{} ({} to {})", number(median), number(least), number(most))
            }
            None => "-".to_owned(),
        };
        write!(f, "{cell:>24}")?;
    }
    let ratio = ratio(values.get(&(row, Column::Engine)), values.get(&(row, Column::Microvm)));
    match ratio {
        Some(ratio) => write!(f, "{ratio:>15.2}")?,
        None => write!(f, "{:>15}", "-")?,
    }
    let median = values.get(&(row, Column::Engine)).and_then(|rounds| spread(rounds.values()));
    match (row.target(), median, ratio) {
        (Some(Target::Value(target)), Some([_, median, _]), _) => {
            writeln!(f, "  at most {target}: {}", met(median <= target))
        }
        (Some(Target::Ratio(target)), _, Some(ratio)) => {
            writeln!(f, "  ratio at most {target}: {}", met(ratio <= target))
        }
        _ => writeln!(f),
    }
}

fn met(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}

/// Returns the median over rounds of each round's ratio, which a drifting speed of the machine affects least.
fn ratio(one: Option<&BTreeMap<u32, f64>>, other: Option<&BTreeMap<u32, f64>>) -> Option<f64> {
    let (one, other) = (one?, other?);
    let ratios: Vec<f64> = one
        .iter()
        .filter_map(|(round, value)| Some(value / other.get(round).filter(|by| **by > 0.0)?))
        .collect();
    spread(ratios.iter()).map(|[_, median, _]| median)
}

/// Least, median, most.
fn spread<'a>(values: impl Iterator<Item = &'a f64>) -> Option<[f64; 3]> {
    let mut values: Vec<f64> = values.copied().collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get((values.len().max(1) - 1) / 2)?, values[values.len() / 2]);
    Some([*values.first()?, f64::midpoint(*low, high), *values.last()?])
}

/// With three digits, or all before the point.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 || value == 0.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_rounds() {
        let mut table = Table::default();
        for (round, engine, microvm) in [(1, 1, 2), (2, 10, 20), (3, 9, 9)] {
            table.add(&format!("{round} debian:sid 4 Engine Init {engine}")).unwrap();
            table.add(&format!("{round} debian:sid 4 Microvm Init {microvm}")).unwrap();
        }
        table.add("1 debian:sid 4 Engine Freeze 1.25").unwrap();
        let text = table.to_string();
        let line = |title| text.lines().find(|line| line.starts_with(title)).unwrap();
        let words: Vec<_> = line("exec to /init").split_whitespace().skip(4).collect();
        let want = "9.00 (1.00 to 10.0) - 9.00 (2.00 to 20.0) - 0.50 ratio at most 0.7: met";
        assert_eq!(words.join(" "), want);
        assert!(line("freeze").ends_with("  at most 1: missed"), "{text}");
        assert!(text.contains("debian:sid, 4 CPUs"));
        for bad in ["1 debian:sid 4 Engine Init", "1 k 4 Engine Inits 2", "x k 4 Engine Init 2"] {
            table.add(bad).unwrap_err();
        }
    }
}
