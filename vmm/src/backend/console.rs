//! The guest's serial console on the host: a terminal, a Unix socket, a file, or nothing.
//!
//! A thread of its own writes, so that a terminal somebody stopped with Ctrl-S cannot hold up the
//! node and its heartbeats. What does not fit the bounded queue meanwhile is dropped and counted: a
//! console is for people, and no guest waits for it.
//!
//! On a terminal, input is raw and `Ctrl-A x` ends the program, `Ctrl-A a` sends a Ctrl-A.

use crate::confine::privileges::drop_capabilities;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Outputs waiting for the console's writer.
const QUEUE_OUTPUTS_MAX: usize = 4_096;

/// How long a socket client may leave output unread before it is dropped.
const CLIENT_PATIENCE: Duration = Duration::from_secs(2);

/// The first key of a command on a terminal: Ctrl-A.
const ESCAPE: u8 = 0x01;

/// Where the console is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleMode {
    /// This program's standard input and output.
    Stdio,
    /// A Unix socket that one client at a time may connect to.
    Socket(PathBuf),
    /// A file that output is appended to; no input.
    File(PathBuf),
    /// Output is thrown away; no input.
    None,
}

/// What comes in from the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleEvent {
    /// Bytes for the guest.
    Input(Vec<u8>),
    /// The person at the terminal asked to end.
    Quit,
}

/// Called from the console's reading thread.
pub type OnEvent = Box<dyn Fn(ConsoleEvent) + Send + 'static>;

/// An open console. Dropping it writes what is queued and restores the terminal.
#[derive(Debug)]
pub struct Console {
    queue: Option<SyncSender<Vec<u8>>>,
    dropped: AtomicU64,
    terminal: Option<rustix::termios::Termios>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Console {
    /// Opens the console and starts its threads.
    ///
    /// # Errors
    /// When the socket or file cannot be made, or a thread cannot be started.
    pub fn open(mode: &ConsoleMode, on_event: OnEvent) -> io::Result<Self> {
        let (queue, outputs) = sync_channel(QUEUE_OUTPUTS_MAX);
        let mut terminal = None;
        let writer = match mode {
            ConsoleMode::None => return Ok(Self::silent()),
            ConsoleMode::File(path) => {
                let file = File::options().create(true).append(true).open(path)?;
                spawn("console", move || write_all(file, &outputs))?
            }
            ConsoleMode::Stdio => {
                terminal = raw_terminal();
                let escapes = terminal.is_some();
                spawn("console-input", move || read_stdin(&on_event, escapes))?;
                spawn("console", move || write_all(io::stdout(), &outputs))?
            }
            ConsoleMode::Socket(path) => {
                // Left by a process that was killed: nobody listens on it any more.
                let _ = std::fs::remove_file(path);
                let listener = UnixListener::bind(path)?;
                let client = Arc::new(Mutex::new(None));
                let accepted = Arc::clone(&client);
                spawn("console-input", move || {
                    serve(&listener, &accepted, &on_event)
                })?;
                spawn("console", move || write_to_client(&client, &outputs))?
            }
        };
        Ok(Self {
            queue: Some(queue),
            dropped: AtomicU64::new(0),
            terminal,
            writer: Some(writer),
        })
    }

    fn silent() -> Self {
        Self {
            queue: None,
            dropped: AtomicU64::new(0),
            terminal: None,
            writer: None,
        }
    }

    /// Queues output. Never blocks.
    pub fn write(&self, bytes: Vec<u8>) {
        if let Some(queue) = &self.queue
            && let Err(TrySendError::Full(_)) = queue.try_send(bytes)
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Outputs dropped because nobody took them in time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take() {
            // The writer ends when the queue is empty and closed; its result is empty.
            let _ = writer.join();
        }
        if let Some(saved) = &self.terminal {
            use rustix::termios::{OptionalActions, tcsetattr};
            let _ = tcsetattr(io::stdin(), OptionalActions::Drain, saved);
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        // It inherited what its parent still needs.
        if let Err(error) = drop_capabilities() {
            tracing::warn!(%error, "a thread of the console keeps its capabilities");
        }
        body();
    })
}

/// Makes standard input raw if it is a terminal; the former settings.
fn raw_terminal() -> Option<rustix::termios::Termios> {
    use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return None;
    }
    let saved = tcgetattr(&stdin).ok()?;
    let mut raw = saved.clone();
    raw.make_raw();
    tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
    Some(saved)
}

fn write_all(mut sink: impl Write, outputs: &Receiver<Vec<u8>>) {
    while let Ok(bytes) = outputs.recv() {
        // A closed terminal or a full disk must not end the guest: the bytes are lost.
        let _ = sink.write_all(&bytes).and_then(|()| sink.flush());
    }
}

fn read_stdin(on_event: &OnEvent, escapes: bool) {
    let mut stdin = io::stdin().lock();
    let mut buffer = [0; 256];
    let mut keys = Keys {
        escapes,
        pending: false,
    };
    while let Ok(count @ 1..) = stdin.read(&mut buffer) {
        for event in keys.take(&buffer[..count]) {
            on_event(event);
        }
    }
}

/// Finds the escape key in what is typed.
struct Keys {
    escapes: bool,
    pending: bool,
}

impl Keys {
    fn take(&mut self, typed: &[u8]) -> Vec<ConsoleEvent> {
        if !self.escapes {
            return vec![ConsoleEvent::Input(typed.to_vec())];
        }
        let mut input = Vec::new();
        let mut events = Vec::new();
        for &key in typed {
            match (std::mem::take(&mut self.pending), key) {
                (false, ESCAPE) => self.pending = true,
                (true, b'x') => events.push(ConsoleEvent::Quit),
                (true, b'a') => input.push(ESCAPE),
                (_, key) => input.push(key),
            }
        }
        if !input.is_empty() {
            events.insert(0, ConsoleEvent::Input(input));
        }
        events
    }
}

fn serve(listener: &UnixListener, client: &Mutex<Option<UnixStream>>, on_event: &OnEvent) {
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else {
            continue;
        };
        let Ok(writer) = connection.try_clone() else {
            continue;
        };
        set_client(client, Some(writer));
        let mut buffer = [0; 256];
        while let Ok(count @ 1..) = connection.read(&mut buffer) {
            on_event(ConsoleEvent::Input(buffer[..count].to_vec()));
        }
        set_client(client, None);
    }
}

fn set_client(client: &Mutex<Option<UnixStream>>, to: Option<UnixStream>) {
    if let Ok(mut client) = client.lock() {
        *client = to;
    }
}

fn write_to_client(client: &Mutex<Option<UnixStream>>, outputs: &Receiver<Vec<u8>>) {
    while let Ok(bytes) = outputs.recv() {
        let Ok(mut client) = client.lock() else {
            return;
        };
        let written = client.as_mut().map(|stream| {
            stream
                .set_write_timeout(Some(CLIENT_PATIENCE))
                .and_then(|()| stream.write_all(&bytes))
        });
        if matches!(written, Some(Err(_))) {
            *client = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn escape_key_quits_or_sends_itself() {
        let mut keys = Keys {
            escapes: true,
            pending: false,
        };
        assert_eq!(keys.take(b"ab"), vec![ConsoleEvent::Input(b"ab".to_vec())]);
        assert_eq!(keys.take(&[ESCAPE]), vec![]);
        assert_eq!(keys.take(b"a"), vec![ConsoleEvent::Input(vec![ESCAPE])]);
        assert_eq!(keys.take(&[ESCAPE, b'x']), vec![ConsoleEvent::Quit]);
    }

    #[test]
    fn input_that_is_not_a_terminal_has_no_escape_key() {
        let mut keys = Keys {
            escapes: false,
            pending: false,
        };
        let typed = vec![ESCAPE, b'x'];
        assert_eq!(keys.take(&typed), vec![ConsoleEvent::Input(typed.clone())]);
    }

    #[test]
    fn a_socket_console_carries_bytes_both_ways() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("console");
        let (sender, events) = mpsc::channel();
        let mode = ConsoleMode::Socket(path.clone());
        let on_event: OnEvent = Box::new(move |event| {
            let _ = sender.send(event);
        });
        let console = Console::open(&mode, on_event).expect("console opens");
        let mut client = UnixStream::connect(&path).expect("client connects");
        client.write_all(b"ls\n").expect("client types");
        assert_eq!(
            events.recv().expect("input"),
            ConsoleEvent::Input(b"ls\n".to_vec())
        );
        console.write(b"bin\n".to_vec());
        let mut answer = [0; 4];
        client.read_exact(&mut answer).expect("client reads");
        assert_eq!(&answer, b"bin\n");
    }
}
