//! What the host and PID 1 agree on: the layout of the initramfs, a variable, a console message.

/// The variable that the kernel's command line sets in the environment of PID 1.
pub const ENV: &str = "KTSTR_GUEST";

/// The variable with the name of the test in the environment of a program that PID 1 executes for a body. The
/// body does not have it.
pub const BODY: &str = "KTSTR_BODY";

/// The options of a test binary in the guest, before the names of the tests that it runs. Without them, libtest
/// would run other tests too, or write more than two lines.
pub const LIBTEST_OPTIONS: [&str; 5] =
    ["--exact", "--include-ignored", "--nocapture", "--quiet", "--test-threads=1"];

/// The program that is PID 1: the test binary, or another. The kernel runs `/init`, which executes it.
pub const PROGRAM: &str = "/ktstr/program";

/// The last file of the initramfs: an archive without it was truncated.
pub const END_MARK: &str = "/ktstr/end";

/// The directory of the kernel modules, which are loaded in the order of their names.
pub const MODULES: &str = "/ktstr/modules";

/// The prefix of the console line in which PID 1, or `/init` before it, reports why it fails.
pub const FAILURE_PREFIX: &str = "ktstr-init: PID 1 failed: ";
