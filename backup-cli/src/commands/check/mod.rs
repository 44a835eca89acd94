//! `check`: the configuration and what is around it, each finding with what to do about it.

mod backup;
mod destinations;
pub mod disk;
mod files;
mod node;

use lockstep_node::LightningDir;
use lockstep_proto::config::LockFile;
use serde::Serialize;

use crate::args::CheckArgs;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// In order.
    Ok,
    /// Worth knowing.
    Note,
    /// To be mended when there is time.
    Warning,
    /// Can cost the backup, or the node.
    Error,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

#[derive(Serialize)]
struct Finding {
    /// What was looked at: one word.
    check: &'static str,
    severity: Severity,
    message: String,
    /// What to do about it.
    remedy: Option<String>,
}

/// What was found.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        check: &'static str,
        severity: Severity,
        message: impl Into<String>,
        remedy: Option<String>,
    ) {
        self.0.push(Finding { check, severity, message: message.into(), remedy });
    }

    fn ok(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Severity::Ok, message, None);
    }

    fn note(&mut self, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, Severity::Note, message, Some(remedy.into()));
    }

    fn warning(
        &mut self,
        check: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(check, Severity::Warning, message, Some(remedy.into()));
    }

    fn error(
        &mut self,
        check: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(check, Severity::Error, message, Some(remedy.into()));
    }

    /// What kept something from being looked at.
    fn failure(&mut self, check: &'static str, failure: &Failure) {
        let remedy = failure.hint().map(Into::into);
        self.add(check, Severity::Error, failure.message(), remedy);
    }

    fn count(&self, severity: Severity) -> usize {
        self.0.iter().filter(|found| found.severity == severity).count()
    }
}

#[derive(Serialize)]
struct Report {
    errors: usize,
    warnings: usize,
    running: bool,
    findings: Vec<Finding>,
}

/// Checks.
pub fn run(args: &CheckArgs, output: &Output) -> Result<()> {
    let node = LightningDir::locate(&args.node.lightning_dir)?;
    let mut findings = Findings::default();
    let running = match node.running() {
        Ok(running) => running.is_some(),
        Err(error) => {
            findings.failure("lightningd", &error.into());
            false
        }
    };
    node::look(&node, running, &mut findings);
    files::look(&node, &mut findings);
    match LockFile::read(node.path()) {
        Ok(Some(lock)) => backup::look(args, &node, &lock, running, output, &mut findings),
        Ok(None) => findings.error(
            "backup",
            format!("there is no backup.lock in '{}'", node.path().display()),
            "this node has no backup yet: 'backup-cli init' makes one.",
        ),
        Err(error) => findings.failure("backup", &error.into()),
    }
    let (errors, warnings) = (findings.count(Severity::Error), findings.count(Severity::Warning));
    let report = Report { errors, warnings, running, findings: findings.0 };
    output.result(&report, || text(&report));
    let worst = if errors > 0 { Severity::Error } else { Severity::Warning };
    let mut bad: Vec<_> = report.findings.iter().filter(|found| found.severity == worst).collect();
    bad.dedup_by_key(|found| found.check);
    let names: Vec<_> = bad.iter().map(|found| found.check).collect();
    let message = format!("not in order: {}", names.join(", "));
    let hint = "the lines above say what to do about each.";
    match (errors, warnings) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::partly(message, hint)),
        _ => Err(Failure::new(message, hint)),
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for Finding { check, severity, message, remedy } in &report.findings {
        text += &format!("{:7}  {check:12} {message}\n", severity.word());
        if let Some(remedy) = remedy {
            text += &format!("{:23}{remedy}\n", "");
        }
    }
    let good = report.findings.iter().filter(|found| found.severity == Severity::Ok).count();
    text + &format!("errors: {}, warnings: {}, in order: {good}\n", report.errors, report.warnings)
}
