//! Long commands: output into a log file, one moving line on the terminal.
//!
//! On a terminal a spinner shows the elapsed time and the command's latest line; elsewhere (CI) a plain
//! line is printed at least every [`PLAIN_PERIOD`]. All of it goes to stderr. A failure prints the end of the log and its path.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::run::command_line;

/// Longest silence without a terminal.
const PLAIN_PERIOD: Duration = Duration::from_secs(10);
/// How often the moving line is redrawn.
const REDRAW_PERIOD: Duration = Duration::from_millis(250);
/// Lines of the log shown when a command fails.
const FAILURE_LINES: usize = 40;
/// Bytes of the log read for its latest line.
const LATEST_BYTES: u64 = 512;

/// Runs `command` with its output appended to `log`, showing `what` and the time it takes.
///
/// # Errors
/// When it cannot be started or fails: with the end of the log, and where the log is.
pub(crate) fn command(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    let line = command_line(command);
    let sink = open_log(log)?;
    let errors = sink.try_clone().context("cannot share the log")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(sink)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let (sender, receiver) = channel();
    let waiter = std::thread::spawn(move || {
        // The receiver lives until this answer came.
        let _ = sender.send(child.wait());
    });
    let status = watch(what, log, &receiver);
    waiter.join().ok();
    let status = status?.with_context(|| format!("cannot wait for `{line}`"))?;
    if !status.success() {
        let end = last_lines(log);
        bail!(
            "{what}: `{line}` failed ({status}); the end of {}:\n{end}",
            log.display()
        );
    }
    Ok(())
}

fn open_log(log: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))
}

/// Shows progress until the answer comes.
fn watch(
    what: &str,
    log: &Path,
    answer: &Receiver<std::io::Result<ExitStatus>>,
) -> Result<std::io::Result<ExitStatus>> {
    let started = Instant::now();
    let bar = spinner(what);
    let mut printed = started;
    if bar.is_none() {
        eprintln!("{what} ...");
    }
    let status = loop {
        match answer.recv_timeout(REDRAW_PERIOD) {
            Ok(status) => break status,
            Err(RecvTimeoutError::Disconnected) => bail!("{what}: lost sight of the command"),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(bar) = &bar {
            bar.set_message(latest_line(log));
            bar.tick();
        } else if printed.elapsed() >= PLAIN_PERIOD {
            printed = Instant::now();
            let seconds = started.elapsed().as_secs();
            eprintln!("{what}: {seconds} s, {}", latest_line(log));
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    eprintln!("{what}: {:.1} s", started.elapsed().as_secs_f64());
    Ok(status)
}

fn spinner(what: &str) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let style =
        ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}").ok()?;
    Some(
        ProgressBar::new_spinner()
            .with_style(style)
            .with_prefix(what.to_owned()),
    )
}

fn latest_line(log: &Path) -> String {
    let tail = tail(log, LATEST_BYTES).unwrap_or_default();
    let line = tail.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or_default().trim().to_owned()
}

fn last_lines(log: &Path) -> String {
    let tail = tail(log, 64 * 1024).unwrap_or_default();
    let lines: Vec<&str> = tail.lines().collect();
    lines[lines.len().saturating_sub(FAILURE_LINES)..].join("\n")
}

fn tail(log: &Path, bytes: u64) -> Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
