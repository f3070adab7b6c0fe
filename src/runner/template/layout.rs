//! The names of a template's files in the cache, and the limits of its use.

use std::time::Duration;

/// The directory of all templates in the cache.
pub(super) const DIRECTORY: &str = "templates";
pub(super) const MACHINE: &str = "machine";
pub(super) const FACTS: &str = "facts.json";
pub(super) const USES: &str = "uses";

/// The age at which a template is replaced: all guests that are forked from it have the same kernel addresses.
pub(super) const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// The number of uses after which a template is replaced.
pub(super) const MAX_USES: u64 = 200;
