//! The rig's end of the conversation with the agent in a host.
//!
//! One thread reads answers and hands each to whoever asked; requests may overlap. When the host
//! dies the connection ends and every waiting call fails at once, as does every later one.

use anyhow::{Context, Result, anyhow, bail};
use rig_agent::{Answer, Operation, Reply, Request};
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest piece of a file that travels in one request.
const PUT_BYTES: usize = 128 * 1024;

/// Time for anything but running a program.
const PROMPTLY: Duration = Duration::from_secs(20);

type Waiting = Arc<Mutex<Option<BTreeMap<u64, Sender<(Answer, Vec<u8>)>>>>>;

/// What a program left behind.
#[derive(Debug, Clone, Default)]
pub struct Finished {
    /// Exit code, or 128 plus the signal that killed it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// This, if the program succeeded.
    ///
    /// # Errors
    /// Otherwise, with what it printed.
    pub fn success(self) -> Result<Self> {
        if self.code == 0 {
            return Ok(self);
        }
        bail!(
            "exit status {}: {}{}",
            self.code,
            String::from_utf8_lossy(&self.stderr),
            String::from_utf8_lossy(&self.stdout)
        );
    }
}

/// A connection to the agent of one running host.
#[derive(Debug, Clone)]
pub struct Agent {
    to: Arc<Mutex<UnixStream>>,
    waiting: Waiting,
    next_id: Arc<AtomicU64>,
}

impl Agent {
    /// Connects to the socket that the emulator serves. The agent itself may not run yet.
    ///
    /// # Errors
    /// When nobody listens at `socket`.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("cannot connect to {}", socket.display()))?;
        let from = stream.try_clone()?;
        let waiting: Waiting = Arc::new(Mutex::new(Some(BTreeMap::new())));
        let served = Arc::clone(&waiting);
        std::thread::Builder::new()
            .name("agent-answers".into())
            .spawn(move || hand_out_answers(from, &served))?;
        Ok(Self {
            to: Arc::new(Mutex::new(stream)),
            waiting,
            next_id: Arc::default(),
        })
    }

    /// Connects as soon as the host that `process` runs listens at `socket`.
    ///
    /// # Errors
    /// When the process ends first, or does not listen for 10 s.
    pub fn connect_when_listening(socket: &Path, process: &mut Child) -> Result<Self> {
        let limit = Duration::from_secs(10);
        let what = format!("a listener at {}", socket.display());
        crate::wait::until(&what, limit, Duration::from_millis(20), || {
            if let Ok(agent) = Self::connect(socket) {
                return Ok(Some(agent));
            }
            if let Some(status) = process.try_wait()? {
                bail!("the host ended at once: {status}");
            }
            Ok(None)
        })
    }

    /// Waits until the agent answers and returns how long the host had been up, in milliseconds.
    ///
    /// # Errors
    /// When `limit` passes or the host dies first.
    pub fn wait_ready(&self, limit: Duration) -> Result<u64> {
        match self.ask(Operation::Hello, &[], limit)? {
            (Answer::Hello { uptime_ms }, _) => Ok(uptime_ms),
            (other, _) => bail!("unexpected answer {other:?}"),
        }
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// When it cannot be started, or the host dies or `limit` passes first; not when it fails.
    pub fn exec(&self, argv: &[&str], limit: Duration) -> Result<Finished> {
        self.exec_streaming(argv, &[], limit, &mut |_, _| {})
    }

    /// Runs a program to its end with `input` on its standard input, handing what it prints to
    /// `sink` (second argument: true for standard error) as it comes.
    ///
    /// # Errors
    /// As [`Agent::exec`].
    pub fn exec_streaming(
        &self,
        argv: &[&str],
        input: &[u8],
        limit: Duration,
        sink: &mut dyn FnMut(&[u8], bool),
    ) -> Result<Finished> {
        let what = argv.join(" ");
        let deadline = crate::wait::now() + limit;
        let answers = self
            .send(Operation::Exec { argv: owned(argv) }, input)
            .with_context(|| format!("`{what}`"))?;
        let mut finished = Finished::default();
        loop {
            match receive(&answers, deadline).with_context(|| format!("`{what}`"))? {
                (Answer::Output { error }, bytes) => {
                    sink(&bytes, error);
                    let kept = if error {
                        &mut finished.stderr
                    } else {
                        &mut finished.stdout
                    };
                    kept.extend_from_slice(&bytes);
                }
                (Answer::Exited { code }, _) => {
                    finished.code = code;
                    return Ok(finished);
                }
                (Answer::Failed { reason }, _) => bail!("`{what}`: {reason}"),
                (other, _) => bail!("`{what}`: unexpected answer {other:?}"),
            }
        }
    }

    /// Starts a program in the background; what it prints goes to `log` in the host.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, argv: &[&str], log: &str) -> Result<u32> {
        let op = Operation::Spawn {
            argv: owned(argv),
            log: log.into(),
        };
        match self.ask(op, &[], PROMPTLY)? {
            (Answer::Spawned { pid }, _) => Ok(pid),
            (other, _) => bail!("`{}`: {}", argv.join(" "), reason(&other)),
        }
    }

    /// The exit code of a spawned program, or `None` while it runs.
    ///
    /// # Errors
    /// When it was not spawned by this agent.
    pub fn poll(&self, pid: u32) -> Result<Option<i32>> {
        match self.ask(Operation::Poll { pid }, &[], PROMPTLY)? {
            (Answer::Running, _) => Ok(None),
            (Answer::Exited { code }, _) => Ok(Some(code)),
            (other, _) => bail!("process {pid}: {}", reason(&other)),
        }
    }

    /// Signals a spawned program and its children.
    ///
    /// # Errors
    /// When there is no such process group.
    pub fn signal(&self, pid: u32, signal: rustix::process::Signal) -> Result<()> {
        match self.ask(
            Operation::Signal {
                pid,
                signal: signal.as_raw(),
            },
            &[],
            PROMPTLY,
        )? {
            (Answer::Done, _) => Ok(()),
            (other, _) => bail!("process {pid}: {}", reason(&other)),
        }
    }

    /// Writes a file in the host.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let mut pieces: Vec<&[u8]> = bytes.chunks(PUT_BYTES).collect();
        if pieces.is_empty() {
            pieces.push(&[]);
        }
        for (number, piece) in pieces.into_iter().enumerate() {
            let op = Operation::Put {
                path: path.into(),
                mode,
                append: number > 0,
            };
            match self.ask(op, piece, PROMPTLY)? {
                (Answer::Done, _) => {}
                (other, _) => bail!("{path}: {}", reason(&other)),
            }
        }
        Ok(())
    }

    /// Reads a file of the host, at most `bytes_max` bytes of it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get(&self, path: &str, bytes_max: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < bytes_max {
            let op = Operation::Get {
                path: path.into(),
                offset: bytes.len() as u64,
            };
            match self.ask(op, &[], PROMPTLY)? {
                (Answer::Piece { last }, piece) => {
                    bytes.extend_from_slice(&piece);
                    if last {
                        break;
                    }
                }
                (other, _) => bail!("{path}: {}", reason(&other)),
            }
        }
        bytes.truncate(bytes_max);
        Ok(bytes)
    }

    fn ask(&self, op: Operation, payload: &[u8], limit: Duration) -> Result<(Answer, Vec<u8>)> {
        let deadline = crate::wait::now() + limit;
        receive(&self.send(op, payload)?, deadline)
    }

    fn send(&self, op: Operation, payload: &[u8]) -> Result<Receiver<(Answer, Vec<u8>)>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = channel();
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .ok_or_else(|| anyhow!("the host is gone"))?
            .insert(id, sender);
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        rig_agent::write_frame(&mut *to, &Request { id, op }, payload)
            .context("the host is gone")?;
        Ok(receiver)
    }
}

fn receive(answers: &Receiver<(Answer, Vec<u8>)>, deadline: Instant) -> Result<(Answer, Vec<u8>)> {
    let left = deadline.saturating_duration_since(crate::wait::now());
    match answers.recv_timeout(left) {
        Ok(answer) => Ok(answer),
        Err(RecvTimeoutError::Timeout) => bail!("no answer from the host in time"),
        Err(RecvTimeoutError::Disconnected) => bail!("the host is gone"),
    }
}

fn hand_out_answers(mut from: UnixStream, waiting: &Waiting) {
    while let Ok((Reply { id, answer }, payload)) = rig_agent::read_frame::<Reply>(&mut from) {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = waiting.as_mut() else {
            return;
        };
        let more_follows = matches!(answer, Answer::Output { .. });
        if let Some(asker) = waiting.get(&id) {
            // The asker may have given up: then nobody wants the answer.
            let _ = asker.send((answer, payload));
        }
        if !more_follows {
            waiting.remove(&id);
        }
    }
    // Dropping the senders wakes everybody who waits.
    *waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

fn owned(argv: &[&str]) -> Vec<String> {
    argv.iter().map(|&argument| argument.to_owned()).collect()
}

fn reason(answer: &Answer) -> String {
    match answer {
        Answer::Failed { reason } => reason.clone(),
        other => format!("unexpected answer {other:?}"),
    }
}
