//! Checks names of cgroups.

use super::error::Error;

/// Fails for a name that is empty, leads out of the parent, or is rejected by the kernel.
pub(crate) fn check(name: &str) -> Result<(), Error> {
    let refuse = |reason| Err(Error::Name { name: name.to_owned(), reason });
    if name.is_empty() {
        return refuse("it is empty");
    }
    if name.starts_with('/') {
        return refuse("it starts with `/`; names are relative to the parent cgroup");
    }
    if name.contains('\0') {
        return refuse("it contains a NUL byte");
    }
    // The kernel rejects it as well, because it would make /proc/PID/cgroup ambiguous.
    if name.contains('\n') {
        return refuse("it contains a line break");
    }
    // Before the other components, so that `..` is always the reason that is reported.
    if name.split('/').any(|component| component == "..") {
        return refuse("`..` would leave the parent cgroup");
    }
    for component in name.split('/') {
        match component {
            "" => return refuse("it has an empty component"),
            component if component.starts_with('.') => {
                return refuse("a component starts with a dot");
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_accepts_only_names_below_the_parent() {
        for name in ["a", "cg_target", "a/b/leaf", "a.b", "a b"] {
            assert!(check(name).is_ok(), "{name:?}");
        }
        for (name, reason) in [
            ("", "empty"),
            ("/a", "starts with `/`"),
            ("a\0", "NUL"),
            ("a\nb", "line break"),
            ("a//b", "empty component"),
            ("a/", "empty component"),
            ("..", "leave the parent"),
            ("a/../b", "leave the parent"),
            (".a/..", "leave the parent"),
            (".", "dot"),
            ("a/.hidden", "dot"),
        ] {
            let error = check(name).unwrap_err().to_string();
            assert!(error.contains(reason), "{name:?}: {error}");
        }
    }
}
