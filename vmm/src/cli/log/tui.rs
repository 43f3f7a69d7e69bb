//! `log tui`: a log on the whole terminal.
//!
//! The model says what it wants to see; here it is read from the log, and drawn. Nothing of the log is kept
//! but one screen of lines and one record, so gigabytes are no trouble: a place is found through the
//! segments' first records, as everywhere.

#![forbid(unsafe_code)]

mod draw;
mod model;
mod pages;
#[cfg(test)]
mod tests;

use super::Failure;
use crate::cli::exit::Exit;
use clap::Args;
use inspect::filter::Filter;
use inspect::place::Place;
use inspect::stat::gather;
use model::{Key, Model, Next};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

/// Look through a log on the whole terminal: timeline, records, one of them at length.
///
/// The timeline has records over guest time, the list one line per record, the pane below it the chosen
/// record, decoded, with its bytes. The log is read once for the timeline, and not changed.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy log tui /var/lib/understudy/web/log
    $ understudy log tui log --at 12.5s --filter 'tcp and port == 80 or output'

Keys: arrows, PgUp, PgDn, Home, End; / filter; : jump to 1200, exit:90210 or 12.5s; Tab moves to the
record's pane and back; q leaves.")]
pub(in crate::cli) struct Arguments {
    /// Directory of the log's segment files.
    dir: PathBuf,
    /// Where to begin: an index, `exit:N`, or a guest time as 1.5s or 300ms.
    #[arg(long, value_name = "PLACE")]
    at: Option<Place>,
    /// Only records for which this expression holds, as `tcp and port == 80`.
    #[arg(long, short, value_name = "EXPRESSION")]
    filter: Option<Filter>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let error = anyhow::anyhow!("`log tui` needs a terminal");
        return Err(Failure::new(Exit::Usage, error)
            .remedy("`understudy log ls` and `log show` print the same"));
    }
    let Arguments { dir, at, filter } = arguments;
    let (report, damage) = gather(dir)?;
    let mut model = Model::new(&report, *at, filter.clone());
    let mut terminal = ratatui::try_init()?;
    let looked = look(&mut terminal, &mut model, dir);
    ratatui::try_restore()?;
    looked?;
    super::conclude(dir, &damage)
}

fn look(
    terminal: &mut ratatui::DefaultTerminal,
    model: &mut Model,
    dir: &Path,
) -> Result<(), Failure> {
    loop {
        let size = terminal.size()?;
        model.resize(draw::list_rows(size.height));
        pages::serve(model, dir)?;
        terminal.draw(|frame| draw::draw(frame, model))?;
        if let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
            && let Some(key) = key_of(key)
            && model.key(key) == Next::Leave
        {
            return Ok(());
        }
    }
}

fn key_of(event: KeyEvent) -> Option<Key> {
    let control = event.modifiers.contains(KeyModifiers::CONTROL);
    Some(match event.code {
        KeyCode::Char('c') if control => Key::Leave,
        KeyCode::Char(_) if control => return None,
        KeyCode::Char(letter) => Key::Letter(letter),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Tab => Key::Tab,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}
