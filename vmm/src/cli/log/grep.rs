//! `log grep`: records whose bytes hold a pattern.

#![forbid(unsafe_code)]

use super::Failure;
use super::arguments::{Choice, Look};
use super::output::Output;
use crate::cli::exit::Exit;
use clap::Args;
use inspect::facts::Facts;
use inspect::hex;
use inspect::line::{HoleText, Text, write_hole_json, write_json};
use inspect::source::{Damage, Found, Step, WalkError, walk};
use std::io::Write;
use std::path::PathBuf;

/// Bytes shown on either side of what was found.
const AROUND_BYTES: usize = 24;

/// Search what came to the guest for bytes: packets, console input, entropy.
///
/// Prints each record that holds the pattern, and below it where. What left the guest cannot be
/// searched: the log has its length and checksum, not its bytes.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy log grep 'GET /status' log
    $ understudy log grep --hex 'de:ad:be:ef' log --filter udp
    $ understudy log grep -i error log --kind console

Ends with status 1 when nothing was found, 8 when the log is damaged.")]
pub(in crate::cli) struct Arguments {
    /// The bytes, as text.
    pattern: String,
    /// Directory of the log's segment files.
    dir: PathBuf,
    /// The pattern is hexadecimal digits.
    #[arg(long, conflicts_with = "ignore_case")]
    hex: bool,
    /// ASCII letters match in either case.
    #[arg(long, short)]
    ignore_case: bool,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    look: Look,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let pattern = if arguments.hex {
        hex::parse(&arguments.pattern)
    } else {
        Some(arguments.pattern.as_bytes().to_vec())
    };
    let Some(pattern) = pattern.filter(|pattern| !pattern.is_empty()) else {
        let error = anyhow::anyhow!("`{}` is no pattern", arguments.pattern);
        return Err(Failure::new(Exit::Usage, error)
            .remedy("give text that is not empty, or with --hex an even number of digits"));
    };
    let look = &arguments.look;
    let mut out = Output::open(!look.json && !look.no_pager);
    let found = write(&mut out, arguments, &pattern);
    out.close()?;
    let (found, damage) = found?;
    super::conclude(&arguments.dir, &damage)?;
    if found == 0 {
        let dir = arguments.dir.display();
        let error = anyhow::anyhow!("nothing that came to the guest in {dir} holds the pattern");
        return Err(Failure::new(Exit::Failed, error));
    }
    Ok(())
}

fn write(
    out: &mut impl Write,
    arguments: &Arguments,
    pattern: &[u8],
) -> Result<(u64, Damage), WalkError> {
    let (choice, look, theme) = (&arguments.choice, &arguments.look, arguments.look.theme());
    let mut count = 0;
    let damage = walk(&arguments.dir, choice.range(&arguments.dir)?, |found| {
        let placed = match found {
            Found::Hole(hole) if look.json => {
                write_hole_json(out, &hole)?;
                return Ok(Step::On);
            }
            Found::Hole(hole) => {
                writeln!(out, "{}", HoleText(&hole, theme))?;
                return Ok(Step::On);
            }
            Found::Record(placed, _) => placed,
        };
        let facts = Facts::of(&placed.record);
        let Some(content) = facts.content() else {
            return Ok(Step::On);
        };
        let Some(at) = find(content, pattern, arguments.ignore_case) else {
            return Ok(Step::On);
        };
        if !choice.wants(&facts) {
            return Ok(Step::On);
        }
        count += 1;
        if look.json {
            write_json(out, &facts, placed.length)?;
        } else {
            let from = at.saturating_sub(AROUND_BYTES);
            let to = content.len().min(at + pattern.len() + AROUND_BYTES);
            let around = content[from..to].escape_ascii();
            writeln!(
                out,
                "{}\n         byte {at}: \"{around}\"",
                Text(&facts, theme)
            )?;
        }
        Ok(Step::On)
    })?;
    Ok((count, damage))
}

fn find(content: &[u8], pattern: &[u8], ignore_case: bool) -> Option<usize> {
    if !ignore_case {
        return memchr::memmem::find(content, pattern);
    }
    content
        .windows(pattern.len())
        .position(|window| window.eq_ignore_ascii_case(pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_counts_unless_told() {
        assert_eq!(find(b"a GET /", b"GET", false), Some(2));
        assert_eq!(find(b"a GET /", b"get", false), None);
        assert_eq!(find(b"a GET /", b"get", true), Some(2));
        assert_eq!(find(b"ab", b"get", true), None);
    }
}
