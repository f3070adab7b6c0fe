//! Attributes OOM kills to cgroups.

use std::collections::BTreeMap;

use crate::guest::assert::{OomKills, is_in};

/// Counts OOM kills by cgroup.
///
/// The kernel's counter of a cgroup (`memory.events`, `oom_kill`) includes its descendants, also those that
/// have been removed. The ledger subtracts these, so that each kill is counted for one cgroup only.
#[derive(Debug, Default)]
pub(super) struct OomLedger {
    /// The cgroups that exist.
    accounts: BTreeMap<String, Account>,
    /// All kills of the machine when the scenario began; `None` if the kernel does not count them.
    at_start: Option<u64>,
    /// The kills in cgroups that have been removed, each counted once.
    counted: u64,
    kills: Vec<OomKills>,
}

#[derive(Debug, Default)]
struct Account {
    is_expected: bool,
    /// The kills in descendants that have been removed.
    in_descendants: u64,
}

impl OomLedger {
    /// Creates a ledger; `at_start` is the number of kills on the machine by now.
    pub(super) fn new(at_start: Option<u64>) -> Self {
        Self { at_start, ..Self::default() }
    }

    pub(super) fn open(&mut self, cgroup: &str) {
        self.accounts.insert(cgroup.to_owned(), Account::default());
    }

    /// Expects a kill in a cgroup or its descendants.
    pub(super) fn expect(&mut self, cgroup: &str) {
        if let Some(account) = self.accounts.get_mut(cgroup) {
            account.is_expected = true;
        }
    }

    /// Returns whether a kill is expected in a cgroup, because of itself or an ancestor.
    pub(super) fn is_expected(&self, cgroup: &str) -> bool {
        self.accounts.iter().any(|(name, account)| account.is_expected && is_in(cgroup, name))
    }

    /// Closes the account of a cgroup that was removed. `killed` is the kernel's last count for it and its
    /// descendants; `None` if the kernel does not count by cgroup.
    pub(super) fn close(&mut self, cgroup: &str, killed: Option<u64>) {
        let Some(account) = self.accounts.remove(cgroup) else { return };
        let own = killed.map(|killed| killed.saturating_sub(account.in_descendants));
        self.counted += own.unwrap_or(0);
        let expected = account.is_expected;
        // Where an ancestor expects kills, its own count includes these.
        if expected || !self.is_expected(cgroup) {
            let killed = if expected { killed } else { own };
            self.kills.push(OomKills { cgroup: Some(cgroup.to_owned()), expected, killed });
        }
        let parent = cgroup.rsplit_once('/').and_then(|(parent, _)| self.accounts.get_mut(parent));
        if let Some(parent) = parent {
            parent.in_descendants += killed.unwrap_or(0);
        }
    }

    /// Adds the kills outside of the scenario's cgroups, or in cgroups for which the kernel does not count;
    /// `now` is the number of kills on the machine by now.
    pub(super) fn add_elsewhere(&mut self, now: Option<u64>) {
        let all = self.at_start.zip(now).map(|(before, now)| now.saturating_sub(before));
        let killed = all.map(|all| all.saturating_sub(self.counted));
        self.kills.push(OomKills { cgroup: None, expected: false, killed });
    }

    /// Returns the kills in all cgroups that have been removed.
    pub(super) fn kills(&self) -> &[OomKills] {
        &self.kills
    }
}

/// Returns the number of processes that the OOM killer has killed since boot.
///
/// Source: Linux 6.12, mm/vmstat.c, `oom_kill`.
pub(super) fn kills_since_boot() -> Option<u64> {
    let counters = std::fs::read_to_string("/proc/vmstat").ok()?;
    counters.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(cgroups: &[&str], expected: &[&str]) -> OomLedger {
        let mut ledger = OomLedger::new(Some(10));
        cgroups.iter().for_each(|cgroup| ledger.open(cgroup));
        expected.iter().for_each(|cgroup| ledger.expect(cgroup));
        ledger
    }

    fn shown(ledger: &OomLedger) -> Vec<(&str, bool, Option<u64>)> {
        let shown = |kills: &OomKills| (kills.expected, kills.killed);
        let name = |kills: &OomKills| kills.cgroup.as_deref().unwrap_or("elsewhere").to_owned();
        let kills = ledger.kills().iter();
        kills.map(|kills| (&*name(kills).leak(), shown(kills).0, shown(kills).1)).collect()
    }

    #[test]
    fn ledger_counts_a_kill_in_one_cgroup_only() {
        let mut ledger = ledger(&["a", "a/b", "a/b/c"], &[]);
        ledger.close("a/b/c", Some(2));
        ledger.close("a/b", Some(3));
        ledger.close("a", Some(3));
        ledger.add_elsewhere(Some(14));
        let wanted = [
            ("a/b/c", false, Some(2)),
            ("a/b", false, Some(1)),
            ("a", false, Some(0)),
            ("elsewhere", false, Some(1)),
        ];
        assert_eq!(shown(&ledger), wanted);
    }

    #[test]
    fn ledger_leaves_kills_to_the_ancestor_that_expects_them() {
        let mut ledger = ledger(&["a", "a/b", "c"], &["a"]);
        assert!(ledger.is_expected("a") && ledger.is_expected("a/b") && !ledger.is_expected("c"));
        ledger.close("a/b", Some(2));
        ledger.close("a", Some(2));
        assert_eq!(shown(&ledger), [("a", true, Some(2))]);
        assert!(!ledger.is_expected("a/b"));
    }

    #[test]
    fn ledger_does_not_know_what_the_kernel_does_not_count() {
        let mut ledger = ledger(&["a"], &[]);
        ledger.close("a", None);
        ledger.close("not opened", Some(7));
        ledger.add_elsewhere(None);
        assert_eq!(shown(&ledger), [("a", false, None), ("elsewhere", false, None)]);
    }

    #[test]
    fn ledger_starts_afresh_for_a_cgroup_that_is_created_again() {
        let mut ledger = ledger(&["a", "a/b"], &["a"]);
        ledger.close("a/b", Some(1));
        ledger.close("a", Some(1));
        ledger.open("a");
        assert!(!ledger.is_expected("a"));
        ledger.close("a", Some(1));
        assert_eq!(shown(&ledger), [("a", true, Some(1)), ("a", false, Some(1))]);
    }
}
