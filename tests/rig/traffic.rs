//! Plain traffic for measurements: HTTP requests, bytes in, bytes out. Nothing is checked here.
//!
//! Like the client it runs as a process of its own in the namespace `client`; it prints one JSON
//! line and ends.

use crate::netns::{Namespace, address};
use crate::wait::now;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

/// First argument that makes a program of the rig this.
pub const ARGUMENT: &str = "__traffic";

const BUFFER_BYTES: usize = 64 * 1024;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// One HTTP request after the other, each on a connection of its own.
    Http,
    /// Send to the guest as fast as it takes it.
    Receive,
    /// Take from the guest as fast as it sends.
    Transmit,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Amount {
    /// Requests completed, or calls that moved bytes.
    pub operations: u64,
    /// Payload bytes moved.
    pub bytes: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Amount {
    /// Payload rate in Mbit/s.
    #[must_use]
    pub fn mbit_s(&self) -> f64 {
        // Counts of a few seconds are far below 2^52.
        self.bytes as f64 * 8.0 / 1e6 / self.seconds.max(1e-9)
    }

    /// Operations per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.seconds.max(1e-9)
    }
}

/// Makes traffic from the client's namespace for `seconds` and returns what was reached.
///
/// # Errors
/// When the guest does not accept or breaks the connection.
pub fn make(kind: Kind, seconds: u64) -> Result<Amount> {
    let mut command = Namespace::named("client").command(&std::env::current_exe()?);
    command
        .arg(ARGUMENT)
        .arg(serde_json::to_string(&(kind, seconds))?);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("{kind:?} traffic failed"))
}

/// If this process was started as traffic, makes it and returns true.
///
/// # Errors
/// As [`make`].
pub fn run_if_asked() -> Result<bool> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(ARGUMENT) {
        return Ok(false);
    }
    let what = arguments.next().context("the traffic needs its kind")?;
    let (kind, seconds) = serde_json::from_str(&what)?;
    let amount = perform(kind, Duration::from_secs(seconds))?;
    println!("{}", serde_json::to_string(&amount)?);
    Ok(true)
}

fn perform(kind: Kind, lasting: Duration) -> Result<Amount> {
    let began = now();
    let mut amount = Amount::default();
    let mut stream = match kind {
        Kind::Http => None,
        Kind::Receive => Some(connect(witness::SINK_PORT)?),
        Kind::Transmit => Some(connect(witness::SOURCE_PORT)?),
    };
    let mut buffer = vec![0x55; BUFFER_BYTES];
    while began.elapsed() < lasting {
        let moved = match (kind, &mut stream) {
            (Kind::Receive, Some(stream)) => patient(stream.write(&buffer))?,
            (Kind::Transmit, Some(stream)) => patient(stream.read(&mut buffer))?,
            _ => http_request(&mut buffer)?,
        };
        amount.operations += 1;
        amount.bytes += moved as u64;
    }
    amount.seconds = began.elapsed().as_secs_f64();
    Ok(amount)
}

/// A stall is part of what is measured; only a broken connection is an error.
fn patient(moved: std::io::Result<usize>) -> Result<usize> {
    match moved {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(0),
        other => Ok(other?),
    }
}

fn http_request(buffer: &mut [u8]) -> Result<usize> {
    let mut stream = connect(HTTP_PORT)?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: guest\r\n\r\n")?;
    let mut bytes = 0;
    loop {
        match stream.read(buffer)? {
            0 => return Ok(bytes),
            n => bytes += n,
        }
    }
}

const HTTP_PORT: u16 = 80;

fn connect(port: u16) -> Result<TcpStream> {
    let server: SocketAddr = format!("{}:{port}", address::GUEST).parse()?;
    let stream = TcpStream::connect_timeout(&server, CONNECT_LIMIT)?;
    stream.set_read_timeout(Some(CONNECT_LIMIT))?;
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    Ok(stream)
}
