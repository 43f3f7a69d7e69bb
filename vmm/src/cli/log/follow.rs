//! `log follow`: records as they are written.

#![forbid(unsafe_code)]

use super::Failure;
use super::arguments::{Choice, FILTER_HELP, Look};
use super::output::Output;
use crate::cli::unless_reader_left;
use clap::Args;
use inspect::facts::Facts;
use inspect::line::{Text, write_json};
use logging_channel::codec::Placed;
use logging_channel::record::{LogIndex, RecordBody};
use logging_channel::segment::{LogReader, Salvager};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Longest wait before the directory is looked at anyway: not every file system tells of changes.
const WAIT_MS_MAX: i64 = 500;

/// Most records shown of what was there before.
const LAST_MAX: usize = 100_000;

/// Show records as they are written, beginning with the last ones.
///
/// Ends with the guest's End record, at damage, or when it is interrupted.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
    $ understudy log follow /var/lib/understudy/web/log
    $ understudy log follow log --filter 'control or end' --last 0
    $ understudy log follow log --json | jq -c .packet

{FILTER_HELP}

Ends with status 8 when what comes next is damaged."))]
pub(in crate::cli) struct Arguments {
    /// Directory of the log's segment files.
    dir: PathBuf,
    /// How many of the records that are there to begin with, at most 100000.
    #[arg(long, short = 'n', value_name = "RECORDS", default_value_t = 10)]
    last: usize,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    look: Look,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut watch = Watch::begin(&arguments.dir)?;
    let mut out = Output::open(false);
    let Arguments {
        dir,
        last,
        choice,
        look,
    } = arguments;
    let written = write(&mut out, dir, *last, choice, look, || watch.wait());
    out.close()?;
    written
}

/// Writes records until the guest's end, or until `wait` says that no more will come.
pub(super) fn write(
    out: &mut impl Write,
    dir: &Path,
    last: usize,
    choice: &Choice,
    look: &Look,
    mut wait: impl FnMut() -> io::Result<bool>,
) -> Result<(), Failure> {
    let theme = look.theme();
    let mut show = |placed: &Placed| {
        let facts = Facts::of(&placed.record);
        let shown = if look.json {
            write_json(out, &facts, placed.length)
        } else {
            writeln!(out, "{}", Text(&facts, theme))
        };
        // Whoever looks on wants to see it now.
        shown.and_then(|()| out.flush())
    };
    let range = choice.range(dir)?;
    let mut reader = at_last_segment(dir, choice)?;
    let mut kept = Kept::new(last, choice);
    loop {
        let mut ended = false;
        while let Some(frame) = reader.next_frame()?.filter(|_| !ended) {
            for placed in frame.records {
                ended |= range.ends_before(&placed.record);
                let wanted = !ended
                    && !range.begins_after(&placed.record)
                    && choice.wants(&Facts::of(&placed.record));
                ended |= matches!(placed.record.body, RecordBody::End(_));
                let shown = if wanted { kept.take(placed) } else { None };
                if let Some(placed) = shown
                    && reader_left(show(&placed))?
                {
                    return Ok(());
                }
            }
        }
        for placed in kept.release() {
            if reader_left(show(&placed))? {
                return Ok(());
            }
        }
        if ended || !wait()? {
            return Ok(());
        }
    }
}

/// The last records of those that were there to begin with.
struct Kept {
    last: VecDeque<Placed>,
    max: usize,
    caught_up: bool,
}

impl Kept {
    fn new(max: usize, choice: &Choice) -> Self {
        Self {
            last: VecDeque::new(),
            max: max.min(LAST_MAX),
            // With a place to begin at, everything from there on is wanted.
            caught_up: choice.from.is_some(),
        }
    }

    /// Keeps `placed`, or gives it back to be shown at once.
    fn take(&mut self, placed: Placed) -> Option<Placed> {
        if self.caught_up {
            return Some(placed);
        }
        if self.last.len() >= self.max {
            self.last.pop_front();
        }
        if self.max > 0 {
            self.last.push_back(placed);
        }
        None
    }

    fn release(&mut self) -> VecDeque<Placed> {
        self.caught_up = true;
        std::mem::take(&mut self.last)
    }
}

/// Whether nobody reads any more; other failures to write are errors.
fn reader_left(written: io::Result<()>) -> Result<bool, Failure> {
    let left = matches!(&written, Err(error) if error.kind() == io::ErrorKind::BrokenPipe);
    unless_reader_left(written).map(|()| left)
}

fn at_last_segment(dir: &Path, choice: &Choice) -> Result<LogReader, Failure> {
    if choice.from.is_some() {
        return Ok(LogReader::open(dir));
    }
    let last = Salvager::open(dir)?.segments().last().copied();
    Ok(LogReader::open_at(dir, last.unwrap_or(LogIndex(0)))?)
}

/// Tells when something in a directory may have changed.
struct Watch {
    inotify: rustix::fd::OwnedFd,
}

impl Watch {
    fn begin(dir: &Path) -> Result<Self, Failure> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let watched = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
        let begin = || {
            let inotify = inotify::init(flags)?;
            inotify::add_watch(&inotify, dir, watched)?;
            Ok(Self { inotify })
        };
        begin().map_err(|errno: Errno| {
            let error = io::Error::from(errno);
            let error =
                anyhow::Error::new(error).context(format!("cannot watch {}", dir.display()));
            Failure::new(crate::cli::exit::Exit::Failed, error)
        })
    }

    /// Waits for a change, or for a while.
    fn wait(&mut self) -> io::Result<bool> {
        let limit = Timespec {
            tv_sec: 0,
            tv_nsec: WAIT_MS_MAX * 1_000_000,
        };
        let mut polled = [PollFd::new(&self.inotify, PollFlags::IN)];
        match poll(&mut polled, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut events = [std::mem::MaybeUninit::uninit(); 4_096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut events);
        // What changed does not matter; the queue is emptied.
        while reader.next().is_ok() {}
        Ok(true)
    }
}
