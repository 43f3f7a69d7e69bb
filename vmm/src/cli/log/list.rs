//! `log ls`: one line per record.

#![forbid(unsafe_code)]

use super::Failure;
use super::arguments::{Choice, FILTER_HELP, Look};
use super::output::Output;
use clap::Args;
use inspect::line::{HoleText, Text, write_hole_json, write_json};
use inspect::pass::{Pass, Seen};
use inspect::repeats::Repeats;
use inspect::source::{Damage, Step, WalkError, walk_in_parts};
use inspect::theme::Theme;
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
    let listing = Listing {
        choice: &arguments.choice,
        json: arguments.look.json,
        theme: arguments.look.theme(),
    };
    let range = arguments.choice.range(&arguments.dir)?;
    walk_in_parts(&arguments.dir, range, &listing, |lines| {
        out.write_all(&lines.text)?;
        lines.text.clear();
        Ok(())
    })
}

/// Makes the lines.
struct Listing<'a> {
    choice: &'a Choice,
    json: bool,
    theme: Theme,
}

#[derive(Debug, Default)]
struct Lines {
    text: Vec<u8>,
    repeats: Repeats,
}

impl Pass for Listing<'_> {
    type Part = Lines;

    fn add(&self, lines: &mut Lines, seen: Seen<'_>) -> Step {
        let Lines { text, repeats } = lines;
        match seen {
            Seen::Frame(_) => {}
            Seen::LeftOut(left_out) => {
                let hole = left_out.into();
                // A Vec takes everything.
                let _ = match self.json {
                    true => write_hole_json(text, &hole),
                    false => writeln!(text, "{}", HoleText(&hole, self.theme)),
                };
            }
            Seen::Record(facts, placed) if self.choice.wants(facts) => {
                if self.json {
                    let _ = write_json(text, facts, placed.length);
                } else {
                    Text(facts, self.theme).push(repeats, text);
                    text.push(b'\n');
                }
            }
            Seen::Record(..) => {}
        }
        Step::On
    }

    fn weight(&self, lines: &Lines) -> usize {
        lines.text.len()
    }
}
