//! Paths and names that every part of the manager knows.

/// Where the cgroup2 file system is mounted.
pub const MOUNT: &str = "/sys/fs/cgroup";

/// Environment variable that names the cgroup delegated to this process, for tests on the host.
pub const WALK_ROOT_VARIABLE: &str = "KTSTR_CGROUP_WALK_ROOT";
