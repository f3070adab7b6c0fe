//! Where templates are in the cache, and how long they are used.

use std::time::Duration;

/// The directory of all templates in the cache.
pub(super) const DIRECTORY: &str = "templates";
pub(super) const MACHINE: &str = "machine";
pub(super) const FACTS: &str = "facts.json";
pub(super) const USES: &str = "uses";

/// An older template is booted anew: all guests that are forked from one have the same kernel addresses.
pub(super) const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// A template that was used this often is booted anew, too.
pub(super) const MAX_USES: u64 = 200;
