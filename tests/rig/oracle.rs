//! The rig's handle on the client outside ([`crate::client`]): start it, give orders, ask what it saw.

use crate::client::ARGUMENT;
use crate::netns::Namespace;
use crate::observation::{Load, Observation, Order};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Time for the client to answer an order.
const PROMPTLY: Duration = Duration::from_secs(30);

/// A running client; it is killed with this value.
#[derive(Debug)]
pub struct Oracle {
    process: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
    load: Load,
}

impl Oracle {
    /// Starts a client in `namespace`; it begins to connect at once.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(namespace: &Namespace, load: &Load) -> Result<Self> {
        let mut command = namespace.command(&std::env::current_exe()?);
        command.arg(ARGUMENT).arg(serde_json::to_string(load)?);
        Self::watch(&mut command, load)
    }

    fn watch(command: &mut Command, load: &Load) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the client")?;
        let orders = process.stdin.take().context("the client's input")?;
        let output = process.stdout.take().context("the client's output")?;
        let (sender, answers) = channel();
        std::thread::Builder::new()
            .name("client-answers".into())
            .spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            process,
            orders,
            answers,
            load: load.clone(),
        })
    }

    /// Waits until the client has its connection.
    ///
    /// # Errors
    /// When it gives up.
    pub fn wait_connected(&self) -> Result<()> {
        let limit = Duration::from_millis(self.load.connect_limit_ms) + PROMPTLY;
        self.answer(limit)
            .map(|_| ())
            .context("the client got no connection")
    }

    /// Gives an order and returns what the client has seen so far.
    ///
    /// # Errors
    /// When the client ended or does not answer.
    pub fn order(&mut self, order: &Order) -> Result<Observation> {
        self.send(order)?;
        self.answer(PROMPTLY)
    }

    /// Lets the client finish and returns everything it saw.
    ///
    /// # Errors
    /// When it ended without a word.
    pub fn finish(&mut self) -> Result<Observation> {
        // A client that lost its connection has ended by itself; its last words are still to come.
        let _ = self.send(&Order::Finish);
        let limit = Duration::from_millis(self.load.drain_limit_ms) + PROMPTLY;
        self.answer(limit)
    }

    /// Waits until `wanted` more requests are acknowledged than `since`, within `limit`.
    ///
    /// # Errors
    /// When they are not, or the client is no longer content.
    pub fn wait_progress(
        &mut self,
        since: u64,
        wanted: u64,
        limit: Duration,
    ) -> Result<Observation> {
        let interval = Duration::from_millis(50);
        crate::wait::until("the client's progress", limit, interval, || {
            let seen = self.order(&Order::Tell)?;
            if let Some(fault) = &seen.fault {
                bail!("the client: {fault}");
            }
            Ok((seen.acknowledged >= since + wanted).then_some(seen))
        })
    }

    fn send(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.orders.write_all(&line).context("the client is gone")
    }

    fn answer(&self, limit: Duration) -> Result<Observation> {
        match self.answers.recv_timeout(limit) {
            Ok(line) => Ok(serde_json::from_str(&line)?),
            Err(RecvTimeoutError::Timeout) => bail!("the client does not answer"),
            Err(RecvTimeoutError::Disconnected) => bail!("the client ended"),
        }
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
