//! `log show`: some records at length.

#![forbid(unsafe_code)]

use super::Failure;
use super::arguments::Look;
use super::output::Output;
use crate::cli::exit::Exit;
use clap::Args;
use inspect::facts::Facts;
use inspect::line::{HoleText, write_hole_json, write_json};
use inspect::place::{Place, Range};
use inspect::show::write_record;
use inspect::source::{Damage, Found, Step, WalkError, walk};
use std::io::Write;
use std::path::PathBuf;

/// Show records at length: where they lie, what they say, their bytes.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy log show log 4711
    $ understudy log show log 12.5s --count 3
    $ understudy log show log exit:90210

Ends with status 1 when the log has no such record, 8 when damage was met on the way to it.")]
pub(in crate::cli) struct Arguments {
    /// Directory of the log's segment files.
    dir: PathBuf,
    /// The first record at this place: an index, `exit:N`, or a guest time as 1.5s or 300ms.
    place: Place,
    /// How many records.
    #[arg(long, short = 'n', default_value_t = 1, value_name = "RECORDS")]
    count: u64,
    #[command(flatten)]
    look: Look,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let look = &arguments.look;
    let mut out = Output::open(!look.json && !look.no_pager);
    let shown = write(&mut out, arguments);
    out.close()?;
    let (shown, damage) = shown?;
    super::conclude(&arguments.dir, &damage)?;
    if shown == 0 && arguments.count > 0 {
        let (dir, place) = (arguments.dir.display(), arguments.place);
        let error = anyhow::anyhow!("the log in {dir} has no record at {place} or later");
        return Err(Failure::new(Exit::Failed, error)
            .remedy("`understudy log stat` shows the first and the last record"));
    }
    Ok(())
}

fn write(out: &mut impl Write, arguments: &Arguments) -> Result<(u64, Damage), WalkError> {
    let (look, theme) = (&arguments.look, arguments.look.theme());
    let range = Range {
        from: Some(arguments.place),
        to: None,
    };
    let mut shown = 0;
    let damage = walk(&arguments.dir, range, |found| {
        match found {
            Found::Hole(hole) if look.json => write_hole_json(out, &hole)?,
            Found::Hole(hole) => writeln!(out, "{}", HoleText(&hole, theme))?,
            Found::Record(..) if shown >= arguments.count => return Ok(Step::Stop),
            Found::Record(placed, _) if look.json => {
                write_json(out, &Facts::of(&placed.record), placed.length)?;
                shown += 1;
            }
            Found::Record(placed, frame) => {
                write_record(out, placed, frame, theme)?;
                shown += 1;
            }
        }
        let enough = shown >= arguments.count;
        Ok(if enough { Step::Stop } else { Step::On })
    })?;
    Ok((shown, damage))
}
