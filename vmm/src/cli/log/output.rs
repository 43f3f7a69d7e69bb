//! Standard output, through a pager when it is a terminal.

#![forbid(unsafe_code)]

use super::super::exit::Failure;
use super::super::unless_reader_left;
use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

/// Bytes written at a time: a listing is made of many short lines.
const BUFFER_BYTES: usize = 64 * 1024;

/// Where results go.
pub(super) enum Output {
    Direct(BufWriter<Stdout>),
    Paged(BufWriter<ChildStdin>, Child),
}

impl Output {
    /// Standard output; `paged` when a pager may come between it and a terminal.
    pub(super) fn open(paged: bool) -> Self {
        if paged
            && io::stdout().is_terminal()
            && let Some((input, child)) = pager().and_then(start)
        {
            return Self::Paged(BufWriter::with_capacity(BUFFER_BYTES, input), child);
        }
        Self::Direct(BufWriter::with_capacity(BUFFER_BYTES, io::stdout()))
    }

    /// Writes what is left, and waits until the reader of the pager has seen enough.
    pub(super) fn close(mut self) -> Result<(), Failure> {
        let flushed = self.flush();
        if let Self::Paged(input, mut child) = self {
            drop(input);
            child.wait()?;
        }
        unless_reader_left(flushed)
    }
}

/// The pager's command; none when the user wants none.
fn pager() -> Option<OsString> {
    let variable = |name| std::env::var_os(name);
    let pager = variable("UNDERSTUDY_PAGER").or_else(|| variable("PAGER"));
    let pager = pager.unwrap_or_else(|| "less".into());
    (!pager.is_empty() && pager != "cat").then_some(pager)
}

/// Starts it; none when it is not there, and then output is not paged.
fn start(pager: OsString) -> Option<(ChildStdin, Child)> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(pager).stdin(Stdio::piped());
    if std::env::var_os("LESS").is_none() {
        // Quit when it fits one screen, show colours, leave the screen as it is.
        command.env("LESS", "FRX");
    }
    let mut child = command.spawn().ok()?;
    Some((child.stdin.take()?, child))
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Direct(out) => out.write(bytes),
            Self::Paged(input, _) => input.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Direct(out) => out.flush(),
            Self::Paged(input, _) => input.flush(),
        }
    }
}
