//! The client outside: one TCP connection, a steady load, every reply checked against the model.
//!
//! It runs as a process of its own in the namespace `client`, takes [`Order`]s as JSON lines on
//! standard input and answers each with an [`Observation`] as a JSON line. There is no code here
//! that reconnects: a lost connection is the end, and is reported as such.
//!
//! One thread, one `poll`: it sleeps until a reply, an order or the time of the next request.

use crate::observation::{Load, Observation, Order, Phase};
use crate::wait::now;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use witness::expectation::{Expectation, Fault};
use witness::ledger::Ledger;
use witness::wire::{REPLY_BYTES, Reply, burst_byte};

/// First argument that makes a program of the rig the client.
pub const ARGUMENT: &str = "__client";

/// Round trips kept for the percentiles; later ones are counted but not kept.
const ROUND_TRIPS_MAX: usize = 1 << 20;

/// Longest time for one attempt to connect.
const ATTEMPT: Duration = Duration::from_millis(1_000);

/// Longest sleep when nothing is due.
const IDLE: Duration = Duration::from_millis(500);

const SOCKET_BUFFER_BYTES: usize = 64 * 1024;

/// If this process was started as the client, is the client until told to finish and returns true.
///
/// # Errors
/// When the orders or the load make no sense.
pub fn run_if_asked() -> Result<bool> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(ARGUMENT) {
        return Ok(false);
    }
    let load = arguments.next().context("the client needs its load")?;
    run(serde_json::from_str(&load)?)?;
    Ok(true)
}

fn run(load: Load) -> Result<()> {
    let stream = connect(&load)?;
    let mut client = Client::new(load, stream);
    client.tell()?;
    while !client.ended {
        client.turn()?;
    }
    client.tell()
}

/// A guest that is still booting does not answer: try again until the limit.
fn connect(load: &Load) -> Result<TcpStream> {
    let server: SocketAddr = load.server.parse().context("server address")?;
    let deadline = now() + Duration::from_millis(load.connect_limit_ms);
    loop {
        match TcpStream::connect_timeout(&server, ATTEMPT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                return Ok(stream);
            }
            Err(error) if now() >= deadline => bail!("{server} does not accept: {error}"),
            Err(_) => crate::wait::pause(Duration::from_millis(100)),
        }
    }
}

struct Client {
    load: Load,
    stream: TcpStream,
    expectation: Expectation,
    ledger: Ledger,
    seen: Observation,
    phase_began: Instant,
    /// When each request in flight was sent, oldest first.
    sent_at: VecDeque<Instant>,
    /// Since when a reply has been due.
    silent_since: Option<Instant>,
    next_send: Option<Instant>,
    burst_wanted: u32,
    /// Position in and length of the burst that is being received.
    burst: (u32, u32),
    input: Vec<u8>,
    output: Vec<u8>,
    orders: Vec<u8>,
    round_trips_us: Vec<u32>,
    /// Whether the guest has been asked what it knows of this client, and has not answered.
    returning: bool,
    /// Set by [`Order::Finish`]: until when to wait for outstanding replies.
    finishing: Option<Instant>,
    report_asked: bool,
    ended: bool,
}

impl Client {
    fn new(load: Load, stream: TcpStream) -> Self {
        let first = Phase {
            name: "start".into(),
            ..Phase::default()
        };
        let seen = Observation {
            connected: true,
            same_connection: true,
            phases: vec![first],
            ..Observation::default()
        };
        let mut client = Self {
            expectation: Expectation::new(load.client),
            load,
            stream,
            ledger: Ledger::default(),
            seen,
            phase_began: now(),
            sent_at: VecDeque::new(),
            silent_since: None,
            next_send: Some(now()),
            burst_wanted: 0,
            burst: (0, 0),
            input: Vec::new(),
            output: Vec::new(),
            orders: Vec::new(),
            round_trips_us: Vec::new(),
            returning: false,
            finishing: None,
            report_asked: false,
            ended: false,
        };
        client.return_to_the_guest();
        client
    }

    /// Makes the requests of the connection before again, and asks the guest which of them it knows.
    fn return_to_the_guest(&mut self) {
        let Some((least, most)) = self.load.known else {
            return;
        };
        let payloads = (0..least).map(|sent| payload(&self.load, sent));
        self.expectation = Expectation::after(self.load.client, payloads);
        for sent in least..most {
            let payload = payload(&self.load, sent);
            if self.expectation.next_request(payload, 0).is_none() {
                self.seen.fault = Some("too many requests may have been applied".into());
            }
        }
        self.seen.sent = most;
        self.returning = true;
        self.expectation.report_request().encode(&mut self.output);
    }

    /// What the guest knows: the rest is sent again.
    fn returned(&mut self, report: &Reply) -> Result<(), Fault> {
        let again = self.expectation.resume(report)?;
        self.returning = false;
        self.seen.acknowledged = self.expectation.acknowledged();
        for request in again {
            request.encode(&mut self.output);
            self.sent_at.push_back(now());
        }
        if !self.sent_at.is_empty() {
            self.silent_since = Some(now());
        }
        Ok(())
    }

    /// Waits for whatever comes next and deals with it.
    fn turn(&mut self) -> Result<()> {
        self.send_what_is_due();
        let stdin = io::stdin();
        let mut interest = PollFlags::IN;
        if !self.output.is_empty() {
            interest |= PollFlags::OUT;
        }
        let timeout = Timespec::try_from(self.sleep()).context("timeout")?;
        let mut ready = [
            PollFd::new(&self.stream, interest),
            PollFd::new(&stdin, PollFlags::IN),
        ];
        match poll(&mut ready, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let (network, orders) = (ready[0].revents(), ready[1].revents());
        if !network.is_empty() {
            self.receive();
            self.flush();
        }
        if !orders.is_empty() {
            self.take_orders()?;
        }
        self.end_when_done();
        Ok(())
    }

    fn sleep(&self) -> Duration {
        let due = [self.next_send.filter(|_| self.may_send()), self.finishing];
        let next = due.into_iter().flatten().min();
        next.map_or(IDLE, |at| at.saturating_duration_since(now()))
            .min(IDLE)
    }

    fn may_send(&self) -> bool {
        self.finishing.is_none()
            && !self.returning
            && self.sent_at.len() < self.load.window
            && !self.all_sent()
            && self.sound()
    }

    const fn all_sent(&self) -> bool {
        self.load.requests_max > 0 && self.seen.sent >= self.load.requests_max
    }

    const fn sound(&self) -> bool {
        self.seen.same_connection && self.seen.fault.is_none()
    }

    fn send_what_is_due(&mut self) {
        while self.may_send() && self.next_send.is_some_and(|at| at <= now()) {
            let payload = payload(&self.load, self.seen.sent);
            let burst = std::mem::take(&mut self.burst_wanted);
            let Some(request) = self.expectation.next_request(payload, burst) else {
                break;
            };
            request.encode(&mut self.output);
            let at = now();
            self.seen.sent += 1;
            self.sent_at.push_back(at);
            self.silent_since.get_or_insert(at);
            self.next_send = Some(at + Duration::from_micros(self.load.interval_us));
        }
        self.flush();
    }

    fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.lose_connection(&error.to_string()),
            }
        }
    }

    fn receive(&mut self) {
        let mut buffer = vec![0; SOCKET_BUFFER_BYTES];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return self.lose_connection("the server closed it"),
                Ok(n) => {
                    self.input.extend_from_slice(&buffer[..n]);
                    self.take_replies();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.lose_connection(&error.to_string()),
            }
        }
    }

    fn lose_connection(&mut self, why: &str) {
        self.ended = true;
        if self.all_sent() && self.sent_at.is_empty() {
            return;
        }
        self.seen.same_connection = false;
        self.seen
            .fault
            .get_or_insert_with(|| format!("connection lost: {why}"));
        self.output.clear();
    }

    fn take_replies(&mut self) {
        let mut used = 0;
        while used < self.input.len() && self.seen.fault.is_none() {
            if self.burst.0 < self.burst.1 {
                used += self.take_burst(used);
                continue;
            }
            match Reply::decode(&self.input[used..]) {
                Ok(None) => break,
                Ok(Some(reply)) => {
                    used += REPLY_BYTES;
                    self.burst = (0, reply.burst_bytes);
                    self.take_reply(&reply);
                }
                Err(error) => {
                    self.seen.fault = Some(format!("not a reply: {error:?}"));
                }
            }
        }
        self.input.drain(..used);
    }

    fn take_burst(&mut self, from: usize) -> usize {
        let left = (self.burst.1 - self.burst.0) as usize;
        let bytes = &self.input[from..];
        let bytes = &bytes[..bytes.len().min(left)];
        let right = bytes
            .iter()
            .zip(self.burst.0..)
            .all(|(&byte, at)| byte == burst_byte(at));
        if !right {
            self.seen.fault = Some(format!("a burst is damaged near byte {}", self.burst.0));
        }
        // At most `left`, which came from a u32.
        self.burst.0 += u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.seen.burst_bytes += bytes.len() as u64;
        bytes.len()
    }

    fn take_reply(&mut self, reply: &Reply) {
        if self.returning {
            if let Err(fault) = self.returned(reply) {
                self.blame(fault);
            }
            return;
        }
        let checked = if self.report_asked {
            self.compare_totals(reply)
        } else {
            self.expectation.check(reply)
        };
        if let Err(fault) = checked {
            self.blame(fault);
            return;
        }
        if self.report_asked {
            return;
        }
        if let Err(fault) = self.ledger.enter(reply) {
            self.seen.fault = Some(fault.to_string());
        }
        let at = now();
        if let Some(sent) = self.sent_at.pop_front()
            && self.round_trips_us.len() < ROUND_TRIPS_MAX
        {
            let us = at.duration_since(sent).as_micros();
            self.round_trips_us
                .push(u32::try_from(us).unwrap_or(u32::MAX));
        }
        self.seen.acknowledged += 1;
        let silence = self
            .silent_since
            .map_or(0.0, |since| ms(at.duration_since(since)));
        self.silent_since = (!self.sent_at.is_empty()).then_some(at);
        self.seen.gap_ms = self.seen.gap_ms.max(silence);
        if let Some(phase) = self.seen.phases.last_mut() {
            phase.acknowledged += 1;
            phase.silence_ms = phase.silence_ms.max(silence);
        }
    }

    fn compare_totals(&mut self, report: &Reply) -> Result<(), Fault> {
        self.expectation.resume(report)?;
        if let Err(fault) = self.ledger.verify() {
            self.seen.fault = Some(fault.to_string());
        }
        self.seen.finished = true;
        self.ended = true;
        Ok(())
    }

    fn blame(&mut self, fault: Fault) {
        match fault {
            Fault::RolledBack {
                acknowledged,
                found,
            } => self.seen.lost += acknowledged - found,
            Fault::OutOfTurn { due, guest_expects } => {
                self.seen.lost += due.saturating_sub(guest_expects);
                self.seen.repeated += guest_expects.saturating_sub(due);
            }
            Fault::NeverSent { sent, found } => self.seen.repeated += found - sent,
            _ => {}
        }
        self.seen.fault = Some(fault.to_string());
        self.ended = self.finishing.is_some();
    }

    fn take_orders(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        let n = io::stdin().read(&mut buffer)?;
        if n == 0 {
            self.ended = true;
            return Ok(());
        }
        self.orders.extend_from_slice(&buffer[..n]);
        while let Some(end) = self.orders.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.orders.drain(..=end).collect();
            self.obey(serde_json::from_slice(&line)?)?;
        }
        Ok(())
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Tell => {}
            Order::Phase(name) => {
                self.close_phase();
                self.seen.phases.push(Phase {
                    name,
                    ..Phase::default()
                });
                self.phase_began = now();
            }
            Order::Pace(interval_us) => {
                self.load.interval_us = interval_us;
                self.next_send = Some(now());
            }
            Order::Rest => self.next_send = None,
            Order::Burst(bytes) => self.burst_wanted = bytes,
            Order::Finish => {
                let limit = Duration::from_millis(self.load.drain_limit_ms);
                self.finishing = Some(now() + limit);
                // The answer is what is told at the end.
                return Ok(());
            }
        }
        self.tell()
    }

    /// While finishing: asks for the totals once nothing is outstanding, ends at the limit.
    fn end_when_done(&mut self) {
        let Some(limit) = self.finishing else { return };
        if !self.sound() || now() >= limit {
            self.seen.lost += self.seen.sent - self.seen.acknowledged;
            self.seen
                .fault
                .get_or_insert_with(|| "requests were never answered".into());
            self.ended = true;
        } else if !self.returning
            && self.sent_at.is_empty()
            && self.burst.0 >= self.burst.1
            && !self.report_asked
        {
            self.report_asked = true;
            self.expectation.report_request().encode(&mut self.output);
            self.flush();
        }
    }

    fn close_phase(&mut self) {
        let lasted = ms(self.phase_began.elapsed());
        if let Some(phase) = self.seen.phases.last_mut() {
            phase.lasted_ms = lasted;
        }
    }

    fn tell(&mut self) -> Result<()> {
        self.close_phase();
        let mut sorted = self.round_trips_us.clone();
        sorted.sort_unstable();
        self.seen.round_trip_p50_us = percentile(&sorted, 50);
        self.seen.round_trip_p99_us = percentile(&sorted, 99);
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &self.seen)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }
}

/// The payload of the request after `sent` others.
fn payload(load: &Load, sent: u64) -> Vec<u8> {
    vec![sent.to_le_bytes()[0]; load.payload_bytes]
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn percentile(sorted: &[u32], percent: usize) -> u64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().map_or(0, u64::from)
}
