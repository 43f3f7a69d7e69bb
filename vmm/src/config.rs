//! One TOML file per virtual machine, the same on both hosts, turned into a checked [`Config`].
//!
//! [`parse`] is pure: text in, a configuration or one error out. [`load`] adds the file system: it reads
//! the file and looks whether the images it names are there. Paths in the file are relative to the
//! file's own directory. What a command needs beyond the common sections it asks for by name
//! ([`Config::channel`] and so on), so that `run` works from a file without a pair.
//!
//! `docs/examples/guest.toml` shows every key; a test parses it and compares it with the defaults.

#![forbid(unsafe_code)]

mod protection;
mod read;
mod section;
#[cfg(test)]
mod tests;

pub use protection::{Protection, Tls};
pub use read::parse;
pub use section::ConfigError;

use crate::machine::layout;
use logging_channel::failure_detector::DetectorConfig;
use logging_channel::flow::FlowConfig;
use logging_channel::segment::WriterOptions;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Longest configuration file, bytes.
pub const FILE_BYTES_MAX: usize = 64 * 1024;
/// Longest addition to the kernel command line, bytes: the monitor adds its own words.
pub const CMDLINE_EXTRA_BYTES_MAX: usize = layout::CMDLINE_BYTES_MAX / 2;

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// The guest.
    pub vm: Vm,
    /// Its network device's other end; a guest without one is not reachable.
    pub network: Option<Network>,
    /// Where its console goes.
    pub console: Console,
    /// The logging channel between the hosts.
    pub channel: Option<Channel>,
    /// The arbiter's address, `http://HOST:PORT`, or an etcd cluster's.
    pub arbiter: Option<String>,
    /// How connections to other machines are protected.
    pub protection: Protection,
    /// What has to succeed before this host goes live.
    pub fence: Option<Fence>,
    /// Where the log is kept on disk.
    pub log: Option<Log>,
    /// Which execution clock names the points.
    pub clock: ClockChoice,
    /// Longest time that a timer or input waits for a guest that makes no exit (exit clock),
    /// nanoseconds; none: for ever.
    pub stall_ns: Option<u64>,
    /// Put a digest of all guest memory into every n-th mark; never when none.
    pub verify_memory_every: Option<u32>,
    /// How often the guest is settled, so that a replay can be saved there, nanoseconds; never when none.
    pub settle_ns: Option<u64>,
    /// The control socket's path.
    pub control_socket: PathBuf,
}

/// The guest itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Its name, the arbiter's key.
    pub name: arbiter::register::VmName,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial file system.
    pub initramfs: Option<PathBuf>,
    /// Words added to the kernel command line.
    pub cmdline: String,
    /// MAC address of its network device.
    pub mac: [u8; 6],
}

/// The host's side of the guest's network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// TAP interface.
    pub tap: String,
    /// The guest's addresses, announced (gratuitous ARP) when this host goes live.
    pub announce: Vec<Ipv4Addr>,
    /// Whether the guest is given frames for other stations, too.
    pub promiscuous: bool,
}

/// Where the guest's console goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Console {
    /// The terminal that the program was started from.
    Stdio,
    /// A Unix socket that one client at a time can connect to.
    Socket(PathBuf),
    /// Output to a file, no input.
    File(PathBuf),
    /// Nowhere.
    None,
}

/// The logging channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Where the primary listens and the backup connects.
    pub address: SocketAddr,
    /// Where processes stand by that the side that runs the guest alone may invite, in this order.
    pub standbys: Vec<SocketAddr>,
    /// Heartbeats, and the silence after which the peer is suspected.
    pub detector: DetectorConfig,
    /// How far the backup may be behind.
    pub flow: FlowConfig,
    /// Longest time between two marks, nanoseconds.
    pub mark_interval_ns: u64,
}

/// The operator's own fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Program, an absolute path, and its arguments.
    pub command: Vec<String>,
    /// Longest time for it.
    pub time_limit_s: u64,
}

/// The log on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Directory of its segment files.
    pub dir: PathBuf,
    /// Size of segments, and when they are synced.
    pub options: WriterOptions,
}

/// Which execution clock is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockChoice {
    /// The best clock that both hosts can be trusted with: for now the exit clock.
    Auto,
    /// The branch clock, or none.
    Branches,
    /// The exit clock.
    Exits,
}

impl Config {
    /// The logging channel, for a command that needs one.
    ///
    /// # Errors
    /// When the file has no such section.
    pub fn channel(&self) -> Result<&Channel, ConfigError> {
        let remedy = "add [channel] with address = \"IP:PORT\", where the primary listens";
        self.channel
            .as_ref()
            .ok_or_else(|| self.section_missing("channel", remedy))
    }

    /// The arbiter's address, for a command that needs one.
    ///
    /// # Errors
    /// When the file has no such section.
    pub fn arbiter(&self) -> Result<&str, ConfigError> {
        let remedy = "add [arbiter] with url = \"http://HOST:PORT\"";
        self.arbiter
            .as_deref()
            .ok_or_else(|| self.section_missing("arbiter", remedy))
    }

    /// The log on disk, for a command that needs one.
    ///
    /// # Errors
    /// When the file has no such section.
    pub fn log(&self) -> Result<&Log, ConfigError> {
        let remedy = "add [log] with dir = \"DIRECTORY\"";
        self.log
            .as_ref()
            .ok_or_else(|| self.section_missing("log", remedy))
    }

    fn section_missing(&self, section: &str, remedy: &str) -> ConfigError {
        ConfigError {
            file: self.file.clone(),
            line: None,
            key: Some(section.into()),
            problem: format!("there is no section [{section}], which this command needs"),
            remedy: remedy.into(),
        }
    }
}

/// Reads the file at `path` and checks it, and that the images it names can be read.
///
/// # Errors
/// When it cannot be read, is not right, or names an image that is not there.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let whole = |problem: String, remedy: &str| ConfigError {
        file: path.into(),
        line: None,
        key: None,
        problem,
        remedy: remedy.into(),
    };
    let unreadable = |error: std::io::Error| {
        whole(
            format!("cannot be read: {error}"),
            "give the path of a configuration file",
        )
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    std::io::Read::read_to_end(
        &mut std::io::Read::take(file, FILE_BYTES_MAX as u64 + 1),
        &mut bytes,
    )
    .map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        whole(
            format!("is not UTF-8 text: {error}"),
            "give the path of a configuration file",
        )
    })?;
    let config = parse(&text, path)?;
    for (key, image) in [
        ("kernel", Some(&config.vm.kernel)),
        ("initramfs", config.vm.initramfs.as_ref()),
    ] {
        let Some(image) = image else { continue };
        if let Err(error) = std::fs::File::open(image) {
            let mut wrong = whole(
                format!("vm.{key}: {} cannot be read: {error}", image.display()),
                "`cargo xtask images` builds guest images; a path is relative to the file it stands in",
            );
            wrong.key = Some(format!("vm.{key}"));
            return Err(wrong);
        }
    }
    Ok(config)
}
