//! Errors with their causes as one line of text.

/// Formats an error and its causes as anyhow's `{:#}` does, but omits a cause if the line already has its
/// text: the errors of this crate that name an errno have its [`std::io::Error`] as their source, too.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let known = text.split(" (os error ").next().unwrap_or_default();
        if line.is_empty() {
            line = text;
        } else if !line.contains(known) {
            line = format!("{line}: {text}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;
    use crate::linux::cgroup::{CgroupOps, RecordingCgroups};

    #[test]
    fn describe_names_each_cause_once() {
        let cgroups = RecordingCgroups::new();
        cgroups.create_cgroup("a").unwrap();
        cgroups.fail("remove_cgroup", "a", libc::EBUSY);
        let error = cgroups.remove_cgroup("a").context("step 1").unwrap_err();
        let line = describe(&error);
        assert!(line.starts_with("step 1: failed to "), "{line}");
        assert_eq!(line.matches("EBUSY (Device or resource busy)").count(), 1, "{line}");
        assert_eq!(line.matches("resource busy").count(), 1, "{line}");
        let other = std::io::Error::from_raw_os_error(libc::EIO);
        let error = anyhow::Error::from(other).context("cannot read");
        assert_eq!(describe(&error), "cannot read: Input/output error (os error 5)");
    }
}
