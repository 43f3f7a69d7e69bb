//! `log ls`: one line per record.

#![forbid(unsafe_code)]

use super::Failure;
use super::arguments::{Choice, FILTER_HELP, Look};
use super::output::Output;
use clap::Args;
use inspect::facts::Facts;
use inspect::line::{HoleText, Text, write_hole_json, write_json};
use inspect::source::{Damage, Found, Step, WalkError, walk};
use std::io::Write;
use std::path::PathBuf;

/// List a log's records, one line each.
///
/// A line has the record's index, the execution point (synchronous exits, and for a point between
/// exits the branches retired and the instruction pointer), the register check, guest time in seconds,
/// kind and content.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
    $ understudy log ls /var/lib/understudy/web/log
    $ understudy log ls log --from 1000 --to 1020
    $ understudy log ls log --from 12.5s --to 13s --filter 'tcp and port == 7000 or output'
    $ understudy log ls log --kind packet --json | jq .packet

{FILTER_HELP}

Ends with status 8 when the log is damaged; every hole has a line of its own."))]
pub(in crate::cli) struct Arguments {
    /// Directory of the log's segment files.
    dir: PathBuf,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    look: Look,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let look = &arguments.look;
    let mut out = Output::open(!look.json && !look.no_pager);
    let damage = write_log(&mut out, arguments);
    out.close()?;
    super::conclude(&arguments.dir, &damage?)
}

fn write_log(out: &mut impl Write, arguments: &Arguments) -> Result<Damage, WalkError> {
    let (choice, look) = (&arguments.choice, &arguments.look);
    let theme = look.theme();
    let mut line = Vec::new();
    walk(&arguments.dir, choice.range(&arguments.dir)?, |found| {
        match found {
            Found::Hole(hole) if look.json => write_hole_json(out, &hole)?,
            Found::Hole(hole) => writeln!(out, "{}", HoleText(&hole, theme))?,
            Found::Record(placed, _) => {
                let facts = Facts::of(&placed.record);
                if !choice.wants(&facts) {
                    return Ok(Step::On);
                }
                if look.json {
                    write_json(out, &facts, placed.length)?;
                } else {
                    Text(&facts, theme).write_line(out, &mut line)?;
                }
            }
        }
        Ok(Step::On)
    })
}
