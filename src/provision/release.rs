//! The release of a kernel, as `uname -r` prints it.

use serde::{Deserialize, Deserializer, de};

/// `__NEW_UTS_LEN` of include/uapi/linux/utsname.h.
pub(super) const MAX_LEN: usize = 64;

/// Returns whether `text` can be the release of a kernel: it begins with the number of the version.
///
/// It becomes a component of paths, such as `lib/modules/<release>`, and the image that contains it is not
/// trusted. A release has no `/` and does not begin with a dot, so these paths stay in their directory.
pub(super) fn is_release(text: &str) -> bool {
    text.len() <= MAX_LEN
        && text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    match is_release(&text) {
        true => Ok(text),
        false => Err(de::Error::custom(format_args!("{text:?} is not the release of a kernel"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_release_accepts_one_component_of_a_path() {
        for text in ["6.12.107+deb13-cloud-amd64", "7.2.0-rc1_me~2", "6", &*"6".repeat(MAX_LEN)] {
            assert!(is_release(text), "{text}");
        }
        let long = "6".repeat(MAX_LEN + 1);
        for text in
            ["", ".", "..", "../6", "6/../..", "/6", "6 1", "6\n", "6\0", "6\u{202e}", &long]
        {
            assert!(!is_release(text), "{text:?}");
        }
    }
}
