//! Packages from the Debian archive, by apt-get in a private configuration.
//!
//! apt checks the signature of the suite against Debian's keyring and every package against the
//! signed index. Its lists and caches lie in ours, so nothing of the machine's is written; of its
//! configuration only `Acquire` is taken, for proxies and certificates (apt.conf(5)).

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::cache::{self, Cache, Lock};
use super::mirror;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel and QEMU of one suite are often fetched in a row: one update serves both.
const FRESH: Duration = Duration::from_secs(10 * 60);

/// File with the message of the last update that failed.
const FAILED: &str = "failed";

/// A package as the signed index has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Name of the binary package.
    pub name: String,
    /// Its Debian version.
    pub version: String,
    /// Size of the .deb file in bytes.
    pub size: u64,
    /// SHA-256 of the .deb file, which apt compared after the download.
    pub sha256: String,
}

/// One suite of the archive. Holds the lock on its lists.
#[derive(Debug)]
pub(super) struct Suite {
    folder: PathBuf,
    mirror: String,
    is_fresh: bool,
    _lock: Lock,
}

impl Suite {
    /// Opens `suite`, updating its lists if asked to or if they are older than a few minutes. One of
    /// backports has what it does not hold itself from the suite that it is for.
    pub(super) fn open(cache: &Cache, suite: &str, refresh: bool) -> Result<Self> {
        require_tools()?;
        let name = format!("apt/{suite}");
        let asked_at = SystemTime::now();
        let lock = cache.lock(&name)?;
        let mirror = mirror::of_machine();
        let folder = cache.entry(&name);
        let mut lists = Self { folder, mirror, is_fresh: false, _lock: lock };
        lists.fail_like_others(asked_at)?;
        lists.configure(suite)?;
        let stamp = fs::metadata(lists.stamp()).and_then(|meta| meta.modified());
        let age = stamp.ok().and_then(|stamp| SystemTime::now().duration_since(stamp).ok());
        if refresh || age.is_none_or(|age| age > FRESH) {
            lists.update()?;
        }
        Ok(lists)
    }

    /// Host name of the mirror, for messages.
    pub(super) fn host(&self) -> &str {
        self.mirror.split('/').nth(2).unwrap_or(&self.mirror)
    }

    /// Runs `plan`; if that fails by lists that may be outdated, once more with new ones.
    ///
    /// A superseded version is gone from the archive within hours.
    pub(super) fn with_fresh_lists<T>(
        &mut self,
        mut plan: impl FnMut(&Self) -> Result<T>,
    ) -> Result<T> {
        match plan(self) {
            Err(_) if !self.is_fresh => {
                self.update()?;
                plan(self)
            }
            done => done,
        }
    }

    /// The newest version of the package `name`, and the alternatives it depends on, flattened.
    pub(super) fn show(&self, name: &str) -> Result<(Package, Vec<String>)> {
        let mut command = self.command("apt-cache");
        let text = run(command.args(["show", "--no-all-versions", name]))
            .with_context(|| format!("found no package `{name}` in {}", self.mirror))?;
        parse_show(&text).with_context(|| format!("apt-cache described `{name}` as:\n{text}"))
    }

    /// The package `name` and everything it needs on an empty system.
    pub(super) fn closure(&self, name: &str) -> Result<Vec<Package>> {
        let mut command = self.command("apt-get");
        // MD5 is what it prints for compatibility unless told which hash to use.
        command.args(["install", "--print-uris", "--no-install-recommends", "-y"]);
        let text = run(command.args(["-oAcquire::ForceHash=SHA256", name]))
            .with_context(|| format!("failed to resolve what `{name}` depends on"))?;
        let packages: Vec<_> = text.lines().filter_map(parse_uri_line).collect();
        ensure!(
            packages.iter().any(|package| package.name == name),
            "apt-get did not offer the package `{name}`:\n{text}"
        );
        Ok(packages)
    }

    /// Downloads `packages` and unpacks them into the folder `root`, one over the other.
    pub(super) fn unpack(&self, packages: &[Package], root: &Path) -> Result<()> {
        let debs = tempfile::tempdir_in(self.folder.join("debs"))?;
        let mut command = self.command("apt-get");
        command.current_dir(debs.path()).arg("download");
        command
            .args(packages.iter().map(|package| format!("{}={}", package.name, package.version)));
        run(&mut command).with_context(|| format!("failed to download from {}", self.mirror))?;
        let mut found = 0;
        for entry in debs.path().read_dir()? {
            let mut dpkg_deb = Command::new("dpkg-deb");
            run(dpkg_deb.arg("-x").args([&entry?.path(), root])).context("failed to unpack")?;
            found += 1;
        }
        ensure!(found == packages.len(), "apt-get brought {found} of {} packages", packages.len());
        Ok(())
    }

    fn update(&mut self) -> Result<()> {
        let mut command = self.command("apt-get");
        // Without this it warns about a failed index, uses none and exits with success.
        command.args(["update", "-oAPT::Update::Error-Mode=any"]);
        let updated = run(&mut command)
            .with_context(|| format!("failed to read the package lists of {}", self.mirror));
        if let Err(error) = &updated {
            // For those who wait for the lock. That they hear of it is all it is for.
            let _ = fs::write(self.folder.join(FAILED), format!("{error:#}"));
        }
        fs::write(self.stamp(), updated.map(|_| "")?)?;
        self.is_fresh = true;
        Ok(())
    }

    /// Fails like the process that tried while we waited: without a network each attempt lasts
    /// seconds to minutes, and the next tests in line would repeat it one by one.
    fn fail_like_others(&self, since: SystemTime) -> Result<()> {
        let failed = self.folder.join(FAILED);
        match fs::metadata(&failed).and_then(|meta| meta.modified()) {
            Ok(at) if at > since => bail!("{}", fs::read_to_string(&failed)?),
            _ => Ok(()),
        }
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join("updated")
    }

    fn configure(&self, suite: &str) -> Result<()> {
        let folder = self.folder.to_str().filter(|path| !path.contains(['"', '\\', ' ']));
        let folder = folder.with_context(|| {
            format!("apt cannot work in `{}`; set KTSTR_CACHE_DIR", self.folder.display())
        })?;
        // Lists of another mirror are of no use, nor are packages that a killed apt left behind.
        let base = suite.strip_suffix("-backports");
        let source = |suite| format!("deb [signed-by={KEYRING}] {} {suite} main\n", self.mirror);
        let sources: String = base.into_iter().chain([suite]).map(source).collect();
        let sources_path = self.folder.join("sources.list");
        if fs::read_to_string(&sources_path).is_ok_and(|old| old != sources) {
            cache::remove(&self.folder)?;
        }
        cache::remove(&self.folder.join("debs"))?;
        for dir in ["lists/partial", "archives/partial", "debs", "log"] {
            fs::create_dir_all(self.folder.join(dir))?;
        }
        fs::write(self.folder.join("status"), "")?;
        fs::write(sources_path, sources)?;
        let acquire = run(Command::new("apt-config").arg("dump"))?;
        Ok(fs::write(self.folder.join("apt.conf"), configuration(folder, suite, &acquire))?)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.folder.join("apt.conf"));
        command
    }
}

impl Drop for Suite {
    /// apt's index of the lists is as large as a kernel, and made again in a second.
    fn drop(&mut self) {
        for index in ["pkgcache.bin", "srcpkgcache.bin"] {
            let _ = fs::remove_file(self.folder.join(index));
        }
    }
}

/// Finds `program` as the shell would.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let is_program = |file: &PathBuf| {
        let meta = file.metadata();
        meta.is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(&path).map(|folder| folder.join(program)).find(is_program)
}

/// Runs a command to its end and returns its standard output; an error ends with its last lines.
pub(super) fn run(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8").env("LANGUAGE", "C");
    let shown = command.get_program().to_string_lossy().into_owned();
    let arg = command.get_args().next().map(|arg| arg.to_string_lossy().into_owned());
    let shown = format!("`{shown} {}`", arg.unwrap_or_default());
    let output = command.output().with_context(|| format!("failed to run {shown}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let said = stdout + &String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(8)..];
    bail!("{shown} ended with {} and said:\n    {}", output.status, last.join("\n    "))
}

/// Checks that the tools that fetch packages are here; the error says what is missing.
pub fn require_tools() -> Result<()> {
    for program in ["apt-get", "apt-cache", "apt-config", "dpkg-deb"] {
        ensure!(
            find_program(program).is_some(),
            "`{program}` is not in PATH: packages are fetched with the tools of Debian and its \
             relatives"
        );
    }
    ensure!(
        Path::new(KEYRING).exists(),
        "`{KEYRING}` is missing, and without it packages cannot be verified; \
         run `apt-get install debian-archive-keyring`"
    );
    Ok(())
}

/// The private configuration. `APT_CONFIG` is read first, so it can keep the machine's files out,
/// whose hooks would clean the machine's caches.
fn configuration(folder: &str, suite: &str, machine: &str) -> String {
    let acquire = machine.lines().filter(|line| {
        line.starts_with("Acquire::")
            && !["Acquire::IndexTargets", "Acquire::Languages", "Acquire::Changelogs"]
                .iter()
                .any(|ignored| line.starts_with(ignored))
    });
    let mut conf = String::from(
        "Acquire::Retries \"2\";\nAcquire::http::Timeout \"20\";\nAcquire::GzipIndexes \"true\";\n",
    );
    for line in acquire {
        conf += line;
        conf += "\n";
    }
    conf + &format!(
        r#"Acquire::Languages "none";
Acquire::AllowInsecureRepositories "false";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
// Else what backports hold is never preferred to what the suite holds that they are for.
APT::Default-Release "{suite}";
// As root, apt would fetch as the user _apt, who cannot write to our folders.
APT::Sandbox::User "root";
Dir::Cache "{folder}";
Dir::Cache::archives "archives";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Log "{folder}/log";
Dir::State "{folder}";
Dir::State::lists "lists";
Dir::State::status "{folder}/status";
"#
    )
}

/// Reads the first stanza of `apt-cache show`.
fn parse_show(text: &str) -> Option<(Package, Vec<String>)> {
    let stanza = text.split("\n\n").next()?;
    let field = |name: &str| {
        let mut lines = stanza.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    };
    let package = Package {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        size: field("Size")?.parse().ok()?,
        sha256: field("SHA256")?.to_owned(),
    };
    let depends = field("Depends").unwrap_or_default().split([',', '|']);
    let name = |dependency: &str| dependency.split_whitespace().next().map(str::to_owned);
    Some((package, depends.filter_map(name).collect()))
}

/// Reads a line of `--print-uris`: `'URI' name_version_arch.deb size SHA256:hash`.
fn parse_uri_line(line: &str) -> Option<Package> {
    let mut words = line.strip_prefix('\'')?.split_whitespace().skip(1);
    let mut parts = words.next()?.split('_');
    Some(Package {
        name: parts.next()?.to_owned(),
        version: parts.next()?.replace("%3a", ":"),
        size: words.next()?.parse().ok()?,
        sha256: words.next()?.strip_prefix("SHA256:")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_description() {
        let text = "Package: linux-image-7\nVersion: 7.2.13-1\nDepends: dracut | initramfs-tools \
                    (>= 0.1), linux-binary-7 (= 7.2.13-1), kmod\nSize: 1900\nSHA256: ab\n\n\
                    Package: other\n";
        let (package, depends) = parse_show(text).unwrap();
        assert_eq!((package.name.as_str(), package.size), ("linux-image-7", 1900));
        assert_eq!(depends, ["dracut", "initramfs-tools", "linux-binary-7", "kmod"]);
        for broken in ["", "Package: a\nVersion: 1\nSize: x\nSHA256: ab\n", "N: no such package"] {
            assert!(parse_show(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn reads_a_download_line() {
        let line = "'http://h/q_1%3a10%2bds-0_amd64.deb' q_1%3a10+ds-0_amd64.deb 102 SHA256:5e84";
        let package = parse_uri_line(line).unwrap();
        assert_eq!((package.name.as_str(), package.version.as_str()), ("q", "1:10+ds-0"));
        assert_eq!((package.size, package.sha256.as_str()), (102, "5e84"));
        for other in ["Reading package lists...", "'http://h/q' q_1_amd64.deb 1 MD5Sum:12", "'"] {
            assert!(parse_uri_line(other).is_none(), "{other}");
        }
    }

    #[test]
    fn configuration_takes_only_acquire_from_the_machine() {
        let machine = "APT::Update::Post-Invoke:: \"rm -rf /\";\nAcquire::http::Proxy \"http://p:3\";\n\
                       Acquire::Languages:: \"de\";\nAcquire::IndexTargets::deb \"\";\n";
        let conf = configuration("/c/apt/sid", "sid", machine);
        assert!(conf.contains("APT::Default-Release \"sid\";\n"));
        assert!(conf.contains("Acquire::http::Proxy \"http://p:3\";\n"));
        for kept_out in ["rm -rf", "\"de\"", "IndexTargets"] {
            assert!(!conf.contains(kept_out), "{kept_out}");
        }
    }

    #[test]
    fn failed_command_shows_its_last_lines() {
        let script = "for n in 1 2 3 4 5 6 7 8 9 10; do echo line-$n; done; echo end >&2; exit 3";
        let error = run(Command::new("sh").args(["-c", script])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("line-10\n    end"), "{error}");
        assert!(!error.contains("line-1\n"), "{error}");
    }
}
