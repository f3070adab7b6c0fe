//! Finds the Debian mirror of the machine in its apt sources (sources.list(5)).

use std::fs;
use std::path::Path;

const FALLBACK: &str = "http://deb.debian.org/debian";

/// Returns the first mirror of the main archive among the machine's sources, or the public one.
pub(super) fn of_machine() -> String {
    let mut files = vec![Path::new("/etc/apt/sources.list").to_owned()];
    let parts = Path::new("/etc/apt/sources.list.d").read_dir().into_iter().flatten().flatten();
    files.extend(parts.map(|entry| entry.path()));
    files[1..].sort();
    files.iter().find_map(|path| in_file(path)).unwrap_or_else(|| FALLBACK.to_owned())
}

fn in_file(path: &Path) -> Option<String> {
    // Lossy, because a comment may have another encoding.
    let text = || Some(String::from_utf8_lossy(&fs::read(path).ok()?).into_owned());
    match path.extension()?.to_str()? {
        "list" => in_list(&text()?),
        "sources" => in_sources(&text()?),
        _ => None,
    }
}

/// Parses the one-line style: `deb [options] URI suite components..`.
pub fn in_list(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb")?;
        let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        main_archive(rest)
    })
}

/// Parses the deb822 style: stanzas of `Field: value`, continued by indented lines.
pub fn in_sources(text: &str) -> Option<String> {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).find_map(|stanza| {
        let no = ["no", "false", "without", "off", "disable"];
        let is_enabled = !no.contains(&field(stanza, "Enabled").to_lowercase().trim());
        let has_binaries = field(stanza, "Types").split_whitespace().any(|word| word == "deb");
        (is_enabled && has_binaries).then(|| main_archive(&field(stanza, "URIs")))?
    })
}

fn field(stanza: &[&str], name: &str) -> String {
    let mut value = String::new();
    let mut is_ours = false;
    for line in stanza {
        if line.starts_with([' ', '\t']) {
            if is_ours {
                value = value + " " + line;
            }
        } else if let Some((key, rest)) = line.split_once(':') {
            is_ours = key.eq_ignore_ascii_case(name);
            if is_ours {
                value = rest.to_owned();
            }
        }
    }
    value
}

/// Returns the first URI of the main archive: not security, which has another path, and not a dated snapshot,
/// which lacks the newest kernel.
fn main_archive(uris: &str) -> Option<String> {
    uris.split_whitespace()
        .map(|uri| uri.trim_end_matches('/'))
        .find(|uri| {
            let is_http = uri.starts_with("http://") || uri.starts_with("https://");
            is_http && uri.ends_with("/debian") && !uri.contains("snapshot.debian.org")
        })
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_list_reads_one_line_sources() {
        for (text, want) in [
            ("deb http://a.org/debian trixie main", Some("http://a.org/debian")),
            (
                "deb\t[arch=amd64 signed-by=/k]  https://a/debian/ sid main",
                Some("https://a/debian"),
            ),
            (
                "# deb http://a.org/debian x main\ndeb http://b/debian y main",
                Some("http://b/debian"),
            ),
            ("deb-src http://a.org/debian trixie main", None),
            ("deb http://a.org/debian-security trixie main", None),
            ("deb http://archive.ubuntu.com/ubuntu noble main", None),
            ("deb cdrom:[Debian 13]/debian trixie main", None),
            ("deb http://snapshot.debian.org/archive/debian/20250520T000000Z/ x main", None),
            ("deb [broken", None),
            ("deb", None),
            ("", None),
        ] {
            assert_eq!(in_list(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn in_sources_reads_deb822_sources() {
        for (text, want) in [
            ("Types: deb deb-src\nURIs: http://a/debian/\nSuites: x", Some("http://a/debian")),
            ("types: deb\n# no\nuris:\n http://a/sec\n http://b/debian\n", Some("http://b/debian")),
            ("Types: deb\nEnabled: no\nURIs: http://a/debian\n", None),
            ("Types: deb-src\nURIs: http://a/debian\n", None),
            (
                "Types: deb\nURIs: http://a/debian-security\n \t\n\nTypes: deb\nURIs: http://b/debian",
                Some("http://b/debian"),
            ),
            ("Types: deb\nSuites: http://a/debian\n", None),
            ("nonsense", None),
        ] {
            assert_eq!(in_sources(text).as_deref(), want, "{text}");
        }
    }
}
