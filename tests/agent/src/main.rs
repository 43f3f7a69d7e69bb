//! The agent: runs in an emulated host, does what the rig asks.
//!
//! In an emulated host it is started by busybox init, which also reaps what it orphans, opens the
//! virtio-serial port named [`rig_agent::PORT_NAME`] and serves until the host dies. As
//! `rig-agent --listen SOCKET` it serves a unix socket instead. It never uses the network.

#![forbid(unsafe_code)]

use rig_agent::{Answer, Operation, PAYLOAD_BYTES_MAX, PORT_NAME, Reply, Request};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long to wait before looking again for the port or for the rig at its other end.
const RETRY: Duration = Duration::from_millis(20);

/// Size of one piece of streamed output or of a file.
const PIECE_BYTES: usize = 64 * 1024;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let listen = match arguments.as_slice() {
        [option, path] if option == "--listen" => Some(path),
        _ => None,
    };
    loop {
        let result = listen.map_or_else(serve_port, |path| serve_socket(path));
        if let Err(error) = result {
            eprintln!("rig-agent: {error}");
        }
        pause();
    }
}

/// Serves requests over the virtio-serial port until the host dies.
fn serve_port() -> io::Result<()> {
    let port = open_port()?;
    serve(PatientReader(port.try_clone()?), port)
}

/// Serves one connection to a unix socket: for hosts that are parts of the rig's own machine.
fn serve_socket(path: &str) -> io::Result<()> {
    let _ = std::fs::remove_file(path);
    let (stream, _) = UnixListener::bind(path)?.accept()?;
    let stream = File::from(OwnedFd::from(stream));
    serve(stream.try_clone()?, stream)
}

fn serve(mut from: impl Read, to: File) -> io::Result<()> {
    let agent = Agent {
        to: Arc::new(Mutex::new(to)),
        spawned: Arc::default(),
    };
    loop {
        let (request, payload) = rig_agent::read_frame::<Request>(&mut from)?;
        agent.handle(request, payload);
    }
}

/// Neither the port's appearance nor the rig's coming back can be waited for: look again.
fn pause() {
    thread::park_timeout(RETRY);
}

fn open_port() -> io::Result<File> {
    for entry in std::fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT_NAME {
            let device = std::path::Path::new("/dev").join(entry.file_name());
            return OpenOptions::new().read(true).write(true).open(device);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no virtio-serial port {PORT_NAME}"),
    ))
}

/// A port reads as empty while nobody is connected to its other end: wait instead of giving up.
struct PatientReader(File);

impl Read for PatientReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer)? {
                0 if !buffer.is_empty() => pause(),
                n => return Ok(n),
            }
        }
    }
}

#[derive(Clone)]
struct Agent {
    to: Arc<Mutex<File>>,
    spawned: Arc<Mutex<BTreeMap<u32, Child>>>,
}

impl Agent {
    fn handle(&self, request: Request, payload: Vec<u8>) {
        let Request { id, op } = request;
        if let Operation::Exec { argv } = op {
            let agent = self.clone();
            thread::spawn(move || {
                let answer = agent.exec(id, &argv, payload);
                agent.reply(id, answer.unwrap_or_else(failed), &[]);
            });
            return;
        }
        let mut piece = Vec::new();
        let answer = match op {
            Operation::Hello => Ok(Answer::Hello {
                uptime_ms: uptime_ms(),
            }),
            Operation::Spawn { argv, log } => self.spawn(&argv, &log),
            Operation::Poll { pid } => self.poll(pid),
            Operation::Signal { pid, signal } => signal_group(pid, signal),
            Operation::Put { path, mode, append } => put(&path, mode, append, &payload),
            Operation::Get { path, offset } => get(&path, offset, &mut piece),
            Operation::Exec { .. } => Ok(Answer::Done),
        };
        self.reply(id, answer.unwrap_or_else(failed), &piece);
    }

    fn reply(&self, id: u64, answer: Answer, payload: &[u8]) {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = rig_agent::write_frame(&mut *to, &Reply { id, answer }, payload) {
            eprintln!("rig-agent: answer lost: {error}");
        }
    }

    fn exec(&self, id: u64, argv: &[String], input: Vec<u8>) -> io::Result<Answer> {
        let mut child = command(argv)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let agent = self.clone();
            readers.push(thread::spawn(move || agent.stream(id, false, stdout)));
        }
        if let Some(stderr) = child.stderr.take() {
            let agent = self.clone();
            readers.push(thread::spawn(move || agent.stream(id, true, stderr)));
        }
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input is none of our business.
            let _ = stdin.write_all(&input);
        }
        let status = child.wait()?;
        for reader in readers {
            let _ = reader.join();
        }
        Ok(Answer::Exited {
            code: exit_code(status),
        })
    }

    fn stream(&self, id: u64, error: bool, mut from: impl Read) {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            self.reply(id, Answer::Output { error }, &buffer[..n]);
        }
    }

    fn spawn(&self, argv: &[String], log: &str) -> io::Result<Answer> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let child = command(argv)?
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let pid = child.id();
        self.spawned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pid, child);
        Ok(Answer::Spawned { pid })
    }

    fn poll(&self, pid: u32) -> io::Result<Answer> {
        let mut spawned = self.spawned.lock().unwrap_or_else(PoisonError::into_inner);
        let child = spawned
            .get_mut(&pid)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "not spawned here"))?;
        Ok(match child.try_wait()? {
            None => Answer::Running,
            Some(status) => Answer::Exited {
                code: exit_code(status),
            },
        })
    }
}

fn failed(error: io::Error) -> Answer {
    Answer::Failed {
        reason: error.to_string(),
    }
}

fn command(argv: &[String]) -> io::Result<Command> {
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "empty command"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn signal_group(pid: u32, signal: i32) -> io::Result<Answer> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let signal = rustix::process::Signal::from_named_raw(signal);
    rustix::process::kill_process_group(
        pid.ok_or_else(|| invalid("process id"))?,
        signal.ok_or_else(|| invalid("signal"))?,
    )?;
    Ok(Answer::Done)
}

fn put(path: &str, mode: u32, append: bool, bytes: &[u8]) -> io::Result<Answer> {
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(!append)
        .append(append)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    Ok(Answer::Done)
}

fn get(path: &str, offset: u64, piece: &mut Vec<u8>) -> io::Result<Answer> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let wanted = u64::from(PAYLOAD_BYTES_MAX).min(PIECE_BYTES as u64);
    file.take(wanted).read_to_end(piece)?;
    Ok(Answer::Piece {
        last: piece.len() < PIECE_BYTES,
    })
}

fn uptime_ms() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text
        .split(' ')
        .next()
        .and_then(|s| s.parse::<f64>().ok())
        .unwrap_or(0.0);
    // The kernel prints hundredths of a second of at most a few years: no loss that matters.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small, positive"
    )]
    let ms = (seconds * 1000.0) as u64;
    ms
}
