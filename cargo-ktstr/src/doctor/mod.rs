//! `cargo ktstr doctor`: whether tests can run here, and what to type if not.
//!
//! Looks only: nothing is fetched, and what tests would fetch by themselves is no problem.

mod host;
mod needs;

use std::process::ExitCode;

use anyhow::Result;
use ktstr::__private::Style;
use ktstr::provision::{self, Cache};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Ok,
    /// Worth knowing; tests run all the same.
    Note,
    /// Tests cannot run.
    Problem,
}

/// One line of the answer.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    mark: Mark,
    subject: &'static str,
    text: String,
    /// What to type to mend it.
    command: Option<String>,
}

impl Finding {
    fn new(mark: Mark, subject: &'static str, text: impl Into<String>) -> Self {
        Self { mark, subject, text: text.into(), command: None }
    }

    fn mend(self, command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..self }
    }
}

/// Prints what was found. Succeeds if tests can run, if need be after they have fetched something.
pub(crate) fn run() -> Result<ExitCode> {
    let cache = Cache::from_env()?;
    let tools = provision::require_tools().map_err(|error| format!("{error:#}"));
    let mut findings = vec![host::kvm()];
    findings.extend(needs::engines(&cache, &tools));
    findings.extend(needs::kernels(&cache, &tools)?);
    findings.push(host::memory());
    findings.push(host::cache(&cache));
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
        text.push_str(&format!("{mark}  {subject:<8}  {what}\n"));
        if let Some(command) = command {
            text.push_str(&format!("{:19}run: {command}\n", ""));
        }
    }
    let problems = findings.iter().filter(|finding| finding.mark == Mark::Problem).count();
    text.push_str(&match problems {
        0 => style.good("tests can run here"),
        1 => style.bad("tests cannot run before the problem is mended"),
        many => style.bad(&format!("tests cannot run before the {many} problems are mended")),
    });
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_shows_its_command_and_counts() {
        let mut findings = vec![Finding::new(Mark::Note, "KVM", "there is none")];
        let text = render(&findings, Style::PLAIN);
        assert_eq!(text, "note     KVM       there is none\ntests can run here\n");
        findings.push(Finding::new(Mark::Problem, "memory", "too little").mend("free it"));
        let text = render(&findings, Style::PLAIN);
        assert!(text.contains("\nproblem  memory    too little\n"), "{text}");
        assert!(text.contains("\n                   run: free it\n"), "{text}");
        assert!(text.ends_with("tests cannot run before the problem is mended\n"), "{text}");
    }
}
