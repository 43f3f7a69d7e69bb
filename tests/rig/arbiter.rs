//! The arbiter of a lab: a process in its own network namespace that can be killed and restarted.
//!
//! Its store lies in the run directory and outlives the process, so that a drill can show that a
//! grant survives.

use crate::netns::{Namespace, address};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// Its TCP port.
pub const PORT: u16 = 7780;

/// Time for it to listen after a start.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Time for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Longest answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// The arbiter; the process dies with this value.
#[derive(Debug)]
pub struct Arbiter {
    program: PathBuf,
    dir: PathBuf,
    process: Option<Child>,
}

impl Arbiter {
    /// Prepares an arbiter with an empty store below `dir`.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(program: &Path, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self {
            program: program.to_owned(),
            dir: dir.to_owned(),
            process: None,
        })
    }

    /// The product's program, on this machine.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The URL for `[arbiter] url`.
    #[must_use]
    pub fn url() -> String {
        format!("http://{}:{PORT}", address::ARBITER)
    }

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When it runs already, ends at once, or does not listen in time.
    pub fn start(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("the arbiter runs already");
        }
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = Namespace::named("arbiter").command(&self.program);
        command
            .arg("arbiter")
            .args(["--listen", &format!("{}:{PORT}", address::ARBITER)])
            .arg("--plain-text");
        command.arg("--store").arg(self.store());
        if !self.store().exists() {
            command.arg("--create");
        }
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the arbiter")?;
        self.process = Some(process);
        self.wait_listening()
    }

    fn wait_listening(&mut self) -> Result<()> {
        let interval = Duration::from_millis(20);
        crate::wait::until("the arbiter to listen", START_LIMIT, interval, || {
            let status = self
                .process
                .as_mut()
                .map(Child::try_wait)
                .transpose()?
                .flatten();
            if let Some(status) = status {
                let said = std::fs::read_to_string(self.log()).unwrap_or_default();
                bail!("the arbiter ended: {status}: {said}");
            }
            Ok(get("/v1/health").ok().map(|_| ()))
        })
    }

    /// The generation that the register of `vm` holds, and who holds it.
    ///
    /// # Errors
    /// When the arbiter does not answer.
    pub fn register(&self, vm: &str) -> Result<(u64, String)> {
        let reply: serde_json::Value = serde_json::from_str(&get(&format!("/v1/vms/{vm}"))?)?;
        let generation = reply["generation"]
            .as_u64()
            .context("no generation in the answer")?;
        Ok((
            generation,
            reply["holder"].as_str().unwrap_or_default().to_owned(),
        ))
    }

    /// Kills it; the store stays. Harmless when it does not run.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Kills it and empties the store.
    ///
    /// # Errors
    /// When the store cannot be removed.
    pub fn forget(&mut self) -> Result<()> {
        self.kill();
        std::fs::remove_dir_all(&self.dir)?;
        Ok(std::fs::create_dir_all(&self.dir)?)
    }

    fn store(&self) -> PathBuf {
        self.dir.join("register.redb")
    }

    /// What it printed.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("arbiter.log")
    }
}

/// One HTTP GET; the body. The service bridge has an address of its own for this.
fn get(path: &str) -> Result<String> {
    let server: SocketAddr = format!("{}:{PORT}", address::ARBITER).parse()?;
    let mut stream = TcpStream::connect_timeout(&server, ANSWER_LIMIT)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: arbiter\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("not an HTTP answer")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("GET {path}: {head}");
    }
    Ok(body.to_owned())
}

impl Drop for Arbiter {
    fn drop(&mut self) {
        self.kill();
    }
}
