//! `RUST_LOG`, on the host and in the guest.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Installs a subscriber for the targets in `RUST_LOG` (`debug`, or `ktstr=debug,my_crate=trace`), once
/// per process. Does nothing without that variable, or if the program has its own subscriber.
pub fn init() {
    let Some(wanted) = std::env::var_os("RUST_LOG") else { return };
    let Some(wanted) = wanted.to_str() else {
        eprintln!("ktstr: RUST_LOG={} is not UTF-8 and ignored", wanted.display());
        return;
    };
    match wanted.parse::<Targets>() {
        Ok(targets) => {
            // The test writer uses `print!`, which libtest captures per test.
            let layer = tracing_subscriber::fmt::layer().with_test_writer().with_ansi(false);
            // An error means that the program has its own subscriber, which stays.
            let _ = tracing_subscriber::registry().with(targets).with(layer).try_init();
        }
        Err(error) => eprintln!("ktstr: RUST_LOG={wanted} is malformed and ignored: {error}"),
    }
}
