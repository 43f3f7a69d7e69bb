//! A host on a machine whose own KVM runs Linux: a process group in namespaces of its own.
//!
//! Network, mount and process namespaces are the host's; its first process is the agent, which
//! listens at a unix socket instead of a serial port. Killing the process namespace kills everything
//! in it at once, as a loss of power does; `kill -STOP -1` inside freezes everything but the agent.
//! The "disk" is a directory of this machine, bind-mounted at [`crate::host::STATE_DIR`].

use crate::agent::Agent;
use crate::host::{Host, PROGRAM_DIR, last_words, run_tool};
use crate::netns::Namespace;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Time for anything that the rig itself asks of the agent.
const PROMPTLY: Duration = Duration::from_secs(10);

/// What a host is made of.
#[derive(Debug, Clone)]
pub struct NamespaceConfig {
    /// Its name, such as `primary`; its network namespace is `host-NAME` and exists already.
    pub name: String,
    /// Directory for everything of this host.
    pub dir: PathBuf,
    /// The agent.
    pub agent: PathBuf,
    /// Files that appear in [`PROGRAM_DIR`]: name there, where to read it here.
    pub files: Vec<(String, PathBuf)>,
}

/// A host; it dies with this value.
#[derive(Debug)]
pub struct NamespaceHost {
    config: NamespaceConfig,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    namespaces: Child,
    agent: Agent,
    since: Instant,
}

impl NamespaceHost {
    /// Prepares a host (its directory, programs and an empty disk) without starting it.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(config: NamespaceConfig) -> Result<Self> {
        let host = Self {
            config,
            running: None,
        };
        std::fs::create_dir_all(host.root())?;
        for (name, source) in &host.config.files {
            let to = host.root().join(name);
            std::fs::copy(source, &to)
                .with_context(|| format!("cannot copy {}", source.display()))?;
        }
        std::fs::copy(&host.config.agent, host.root().join(AGENT))?;
        host.wipe_disk()?;
        Ok(host)
    }

    fn root(&self) -> PathBuf {
        self.config.dir.join("root")
    }

    fn running(&self) -> Result<&Running> {
        self.running
            .as_ref()
            .with_context(|| format!("{} is off", self.config.name))
    }

    /// Signals every process of the host but its first, the agent.
    fn signal_all(&self, signal: &str) -> Result<()> {
        // There may be none.
        let kill = format!("kill -{signal} -1 2>/dev/null; true");
        self.agent()?
            .exec(&["sh", "-c", &kill], PROMPTLY)?
            .success()
            .map(|_| ())
    }

    fn last_words(&self) -> String {
        last_words(&self.config.dir.join("serial.log"))
    }
}

const AGENT: &str = "rig-agent";

impl Host for NamespaceHost {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn dir(&self) -> &Path {
        &self.config.dir
    }

    fn wipe_disk(&self) -> Result<()> {
        let state = self.root().join("state");
        let _ = std::fs::remove_dir_all(&state);
        Ok(std::fs::create_dir_all(state)?)
    }

    fn power_on(&mut self) -> Result<()> {
        if self.running.is_some() {
            bail!("{} is on already", self.config.name);
        }
        std::fs::create_dir_all(PROGRAM_DIR)?;
        let socket = self.config.dir.join("agent.sock");
        let _ = std::fs::remove_file(&socket);
        let setup = format!(
            "mount --bind {root} {PROGRAM_DIR} && exec {PROGRAM_DIR}/{AGENT} --listen {socket}",
            root = self.root().display(),
            socket = socket.display(),
        );
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.config.dir.join("serial.log"))?;
        let namespace = Namespace::named(&format!("host-{}", self.config.name));
        let mut namespaces = namespace
            .command(Path::new("unshare"))
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child=KILL",
                "--mount-proc",
            ])
            .args(["sh", "-c", &setup])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the host")?;
        let since = crate::wait::now();
        match Agent::connect_when_listening(&socket, &mut namespaces) {
            Ok(agent) => {
                self.running = Some(Running {
                    namespaces,
                    agent,
                    since,
                });
                Ok(())
            }
            Err(error) => {
                let _ = namespaces.kill();
                let _ = namespaces.wait();
                Err(error.context(self.last_words()))
            }
        }
    }

    fn wait_booted(&self, limit: Duration) -> Result<Duration> {
        let running = self.running()?;
        running
            .agent
            .wait_ready(limit)
            .with_context(|| self.last_words())?;
        Ok(running.since.elapsed())
    }

    fn agent(&self) -> Result<&Agent> {
        Ok(&self.running()?.agent)
    }

    fn is_on(&mut self) -> bool {
        match &mut self.running {
            None => false,
            Some(running) => matches!(running.namespaces.try_wait(), Ok(None)),
        }
    }

    fn pause(&self) -> Result<()> {
        self.signal_all("STOP")
    }

    fn resume(&self) -> Result<()> {
        self.signal_all("CONT")
    }

    fn stop_everything(&self) -> Result<()> {
        self.signal_all("KILL")
    }

    fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.namespaces.kill();
            let _ = running.namespaces.wait();
        }
    }

    fn read_disk(&mut self, to: &Path) -> Result<()> {
        if self.is_on() {
            bail!(
                "{} is on: its disk may change while it is read",
                self.config.name
            );
        }
        std::fs::create_dir_all(to)?;
        run_tool(
            Command::new("cp")
                .arg("-r")
                .arg(self.root().join("state/."))
                .arg(to),
        )
        .map(drop)
    }
}

impl Drop for NamespaceHost {
    fn drop(&mut self) {
        self.kill();
    }
}
