//! `understudy log`: read-only looks at a log on disk, whole or damaged, finished or being written.
//!
//! What is in a log, and how it is shown, is the crate `inspect`; here are arguments, the terminal, and
//! exit statuses. Nothing here modifies a log.

#![forbid(unsafe_code)]

mod arguments;
mod diff;
pub(super) mod export;
mod follow;
mod grep;
mod list;
mod output;
mod show;
mod stat;
#[cfg(test)]
mod tests;
mod tui;
mod verify;

use super::exit::{Exit, Failure};
use clap::Subcommand;
use inspect::source::{Damage, WalkError};
use std::path::Path;

/// Look at a log on disk: what it holds, and its records one by one.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Stat(stat::Arguments),
    Ls(list::Arguments),
    Show(show::Arguments),
    Follow(follow::Arguments),
    Grep(grep::Arguments),
    Verify(verify::Arguments),
    Diff(diff::Arguments),
    Export(export::Arguments),
    Tui(tui::Arguments),
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Stat(arguments) => stat::run(arguments),
        Command::Ls(arguments) => list::run(arguments),
        Command::Show(arguments) => show::run(arguments),
        Command::Follow(arguments) => follow::run(arguments),
        Command::Grep(arguments) => grep::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Diff(arguments) => diff::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Tui(arguments) => tui::run(arguments),
    }
}

/// Damage is shown where it is met, and is the exit status at the end.
fn conclude(dir: &Path, damage: &Damage) -> Result<(), Failure> {
    if damage.count == 0 {
        return Ok(());
    }
    let (dir, count) = (dir.display(), damage.count);
    let error = anyhow::anyhow!("the log in {dir} is damaged in {count} places");
    Err(Failure::new(Exit::Damaged, error)
        .remedy("what was readable is shown; nothing is ever replayed from a damaged log"))
}

impl From<WalkError> for Failure {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Segment(error) => error.into(),
            WalkError::NoLog(_) => Self::new(Exit::Failed, error)
                .remedy("give the directory named by [log] dir in the configuration file"),
            WalkError::Write(_) | WalkError::Journal(_) => Self::new(Exit::Failed, error),
            WalkError::NoJournal(_) => Self::new(Exit::Failed, error)
                .remedy("give a guest time, as 12.5s, or copy the *.journal files beside the log"),
        }
    }
}
