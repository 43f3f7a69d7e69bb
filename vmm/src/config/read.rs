//! Reads the sections of a configuration file, one function each, and checks every value.

#![forbid(unsafe_code)]

use super::protection::{Protection, read_protection};
use super::section::{ConfigError, Found, Section, Source, refuse_unknown_sections};
use super::{
    CMDLINE_EXTRA_BYTES_MAX, Channel, ClockChoice, Config, Console, FILE_BYTES_MAX, Fence, Log,
    Network, Vm,
};
use crate::machine::layout;
use arbiter::address::Address;
use logging_channel::failure_detector::DetectorConfig;
use logging_channel::flow::FlowConfig;
use logging_channel::segment::{SyncPolicy, WriterOptions};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// Longest path of a Unix socket, bytes (sun_path, with its terminating zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Longest name of a network interface, bytes (IFNAMSIZ, with its terminating zero).
const INTERFACE_BYTES_MAX: usize = 15;
/// Most addresses announced at go-live.
const ANNOUNCE_MAX: usize = 16;
/// Most processes that stand by for one virtual machine.
const STANDBYS_MAX: usize = 16;
/// Heartbeats that may be missed at least before a peer is suspected.
const HEARTBEATS_PER_SUSPICION_MIN: u64 = 3;

/// Log that the backup may hold unreplayed, in windows: the default of `FlowConfig`.
const WINDOWS_PER_BACKLOG: u64 = 8;
/// Most words of the fence command.
const FENCE_WORDS_MAX: usize = 64;
const NS_PER_MS: u64 = 1_000_000;

const SECTIONS: [&str; 11] = [
    "vm", "network", "console", "channel", "arbiter", "log", "clock", "verify", "control", "tls",
    "fence",
];

/// Checks `text`, the content of `file`. Total: any text gives a configuration or an error.
///
/// # Errors
/// When the text is not TOML, a section or key is not known or missing, or a value is out of range.
pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigError> {
    let source = Source { file, text };
    if text.len() > FILE_BYTES_MAX {
        let problem = format!("is longer than {FILE_BYTES_MAX} bytes");
        return Err(source.error(None, None, problem, "give the path of a configuration file"));
    }
    let mut root: DeTable<'_> = DeTable::parse(text)
        .map_err(|error| {
            let problem = format!("this is not TOML: {}", error.message());
            let offset = error.span().map(|span| span.start);
            source.error(offset, None, problem, "see docs/examples/guest.toml")
        })?
        .into_inner();
    let mut take = |name| Section::take(source, &mut root, name);
    let vm = read_vm(take("vm")?)?;
    let protection = read_protection(take("tls")?)?;
    let (verify_memory_every, settle_ns) = read_verify(take("verify")?)?;
    let (clock, stall_ns) = read_clock(take("clock")?)?;
    let config = Config {
        file: file.into(),
        network: read_network(take("network")?)?,
        console: read_console(take("console")?)?,
        channel: read_channel(take("channel")?, &protection)?,
        arbiter: read_arbiter(take("arbiter")?, &protection)?,
        fence: read_fence(take("fence")?)?,
        log: read_log(take("log")?)?,
        clock,
        stall_ns,
        verify_memory_every,
        settle_ns,
        control_socket: read_control(take("control")?, vm.name.as_str())?,
        protection,
        vm,
    };
    refuse_unknown_sections(source, &root, &SECTIONS)?;
    Ok(config)
}

fn read_vm(mut section: Section<'_>) -> Result<Vm, ConfigError> {
    let source = section.source();
    let name_remedy = "name the virtual machine, the same on both hosts";
    let name = required(&mut section, "name", name_remedy)?;
    let name = arbiter::register::VmName::new(name.value.clone())
        .map_err(|error| name.wrong(source, format!("is no name: {error}"), error.remedy()))?;
    let memory = layout::MEMORY_MIB_MIN..=layout::MEMORY_MIB_MAX;
    let memory_mib = section.number("memory_mib", memory, " MiB", None)?;
    let kernel = required(
        &mut section,
        "kernel",
        "give the path of a kernel image (vmlinux or bzImage)",
    )?;
    let kernel = path_of(source, &kernel)?;
    let initramfs = section.text("initramfs", "give the path of an initramfs")?;
    let initramfs = initramfs.map(|found| path_of(source, &found)).transpose()?;
    let cmdline = read_cmdline(&mut section)?;
    let mac_remedy =
        "write six bytes in hexadecimal, as in \"52:54:00:12:34:56\", the first of them even";
    let mac = match section.text("mac", mac_remedy)? {
        Some(found) => {
            parse_mac(&found.value).map_err(|problem| found.wrong(source, problem, mac_remedy))?
        }
        None => default_mac(name.as_str()),
    };
    section.finish()?;
    Ok(Vm {
        name,
        memory_mib,
        kernel,
        initramfs,
        cmdline,
        mac,
    })
}

fn read_cmdline(section: &mut Section<'_>) -> Result<String, ConfigError> {
    let remedy = "give words for the kernel, such as \"quiet loglevel=3\"";
    let Some(found) = section.text("cmdline", remedy)? else {
        return Ok(String::new());
    };
    if found.value.len() > CMDLINE_EXTRA_BYTES_MAX {
        let problem = format!("is longer than {CMDLINE_EXTRA_BYTES_MAX} bytes");
        return Err(found.wrong(section.source(), problem, remedy));
    }
    if let Some(bad) = found
        .value
        .chars()
        .find(|c| !(c.is_ascii_graphic() || *c == ' '))
    {
        let problem = format!("contains {bad:?}; the kernel's command line is printable ASCII");
        return Err(found.wrong(section.source(), problem, remedy));
    }
    Ok(found.value)
}

fn read_network(mut section: Section<'_>) -> Result<Option<Network>, ConfigError> {
    if !section.is_present() {
        return Ok(None);
    }
    let source = section.source();
    let tap_remedy = "name the TAP interface, as in \"tap0\"";
    let tap = required(&mut section, "tap", tap_remedy)?;
    let good = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
    let dots = tap.value == "." || tap.value == "..";
    if tap.value.is_empty()
        || tap.value.len() > INTERFACE_BYTES_MAX
        || !tap.value.chars().all(good)
        || dots
    {
        let problem =
            format!("is no interface name (1 to {INTERFACE_BYTES_MAX} characters, no '/' or ':')");
        return Err(tap.wrong(source, problem, tap_remedy));
    }
    let remedy = "list the guest's IPv4 addresses, as in [\"10.0.0.5\"]";
    let mut announce = Vec::new();
    if let Some(found) = section.texts("announce", ANNOUNCE_MAX, remedy)? {
        for text in &found.value {
            let address: Ipv4Addr = text.parse().map_err(|_| {
                found.wrong(
                    source,
                    format!("has {text:?}, which is no IPv4 address"),
                    remedy,
                )
            })?;
            if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
                let problem = format!("has {address}, which no guest can have");
                return Err(found.wrong(source, problem, remedy));
            }
            announce.push(address);
        }
    }
    let promiscuous = section.flag("promiscuous", false)?;
    section.finish()?;
    Ok(Some(Network {
        tap: tap.value,
        announce,
        promiscuous,
    }))
}

fn read_console(mut section: Section<'_>) -> Result<Console, ConfigError> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mode {
        Stdio,
        Socket,
        File,
        None,
    }
    let modes = [
        ("stdio", Mode::Stdio),
        ("socket", Mode::Socket),
        ("file", Mode::File),
        ("none", Mode::None),
    ];
    let mode = section.choice("mode", &modes, Mode::Stdio)?;
    let source = section.source();
    let path = section.text("path", "give the path of the console's socket or file")?;
    let console = match (mode, path) {
        (Mode::Stdio, None) => Console::Stdio,
        (Mode::None, None) => Console::None,
        (Mode::Socket, Some(found)) => Console::Socket(socket_path_of(source, &found)?),
        (Mode::File, Some(found)) => Console::File(path_of(source, &found)?),
        (Mode::Socket, None) => {
            return Err(section.missing("path", "give the path of the console's socket"));
        }
        (Mode::File, None) => return Err(section.missing("path", "give the path of the file")),
        (Mode::Stdio | Mode::None, Some(found)) => {
            let problem = "has no meaning in this mode";
            return Err(found.wrong(
                source,
                problem,
                "remove it, or set mode to \"socket\" or \"file\"",
            ));
        }
    };
    section.finish()?;
    Ok(console)
}

fn read_standbys(
    section: &mut Section<'_>,
    protection: &Protection,
) -> Result<Vec<SocketAddr>, ConfigError> {
    let source = section.source();
    let remedy = "list the addresses of `understudy standby` processes, as in [\"10.1.0.3:7072\"]";
    let mut standbys = Vec::new();
    if let Some(found) = section.texts("standbys", STANDBYS_MAX, remedy)? {
        for text in &found.value {
            let address: SocketAddr = text.parse().map_err(|_| {
                let problem = format!("has {text:?}, which is no IP address with a port");
                found.wrong(source, problem, remedy)
            })?;
            protection.check_channel(source, &found.with(text.clone()), address)?;
            standbys.push(address);
        }
    }
    Ok(standbys)
}

fn read_channel(
    mut section: Section<'_>,
    protection: &Protection,
) -> Result<Option<Channel>, ConfigError> {
    if !section.is_present() {
        return Ok(None);
    }
    let source = section.source();
    let remedy = "give the IP address and port where the primary listens, as in \"10.1.0.1:7071\"";
    let found = required(&mut section, "address", remedy)?;
    let address: SocketAddr = found
        .value
        .parse()
        .map_err(|_| found.wrong(source, "is no IP address with a port", remedy))?;
    if address.port() == 0 {
        return Err(found.wrong(
            source,
            "has port 0, which both hosts could not agree on",
            remedy,
        ));
    }
    protection.check_channel(source, &found, address)?;
    let standbys = read_standbys(&mut section, protection)?;
    let heartbeat_ms = section.number("heartbeat_ms", 1..=10_000, " ms", Some(20))?;
    let least = heartbeat_ms * HEARTBEATS_PER_SUSPICION_MIN;
    let unit = " ms, at least three heartbeats";
    let default = (heartbeat_ms * 6).max(120);
    let suspect_ms = section.number("suspect_ms", least..=600_000, unit, Some(default))?;
    let mark_ms = section.number("mark_ms", 1..=1_000, " ms", Some(5))?;
    let window_mib = section.number("window_mib", 1..=1_024, " MiB", Some(8))?;
    let lag_ms = section.number("lag_ms", 10..=60_000, " ms", Some(400))?;
    section.finish()?;
    let window_bytes = window_mib << 20;
    let flow = FlowConfig {
        window_bytes,
        backlog_bytes_max: window_bytes * WINDOWS_PER_BACKLOG,
        lag_ns_max: lag_ms * NS_PER_MS,
        ..FlowConfig::default()
    };
    let detector = DetectorConfig {
        heartbeat_interval_ns: heartbeat_ms * NS_PER_MS,
        timeout_ns: suspect_ms * NS_PER_MS,
    };
    Ok(Some(Channel {
        address,
        standbys,
        detector,
        flow,
        mark_interval_ns: mark_ms * NS_PER_MS,
    }))
}

fn read_arbiter(
    mut section: Section<'_>,
    protection: &Protection,
) -> Result<Option<String>, ConfigError> {
    if !section.is_present() {
        return Ok(None);
    }
    let remedy = "give the arbiter's address, as in \"http://10.0.0.9:7070\", or \"etcd://a,b,c/understudy\"";
    let url = required(&mut section, "url", remedy)?;
    let address = Address::parse(&url.value)
        .map_err(|error| url.wrong(section.source(), &error.reason, remedy))?;
    protection.check_arbiter(section.source(), &url, &address)?;
    section.finish()?;
    Ok(Some(url.value))
}

fn read_fence(mut section: Section<'_>) -> Result<Option<Fence>, ConfigError> {
    if !section.is_present() {
        return Ok(None);
    }
    let remedy =
        "list an absolute path and its arguments, as in [\"/usr/local/sbin/fence\", \"other\"]";
    let found = section.texts("command", FENCE_WORDS_MAX, remedy)?;
    let command = found.ok_or_else(|| section.missing("command", remedy))?;
    if !command
        .value
        .first()
        .is_some_and(|program| program.starts_with('/'))
    {
        let problem = "does not begin with an absolute path";
        return Err(command.wrong(section.source(), problem, remedy));
    }
    let time_limit_s = section.number("time_limit_s", 1..=3_600, " s", Some(30))?;
    section.finish()?;
    Ok(Some(Fence {
        command: command.value,
        time_limit_s,
    }))
}

fn read_log(mut section: Section<'_>) -> Result<Option<Log>, ConfigError> {
    if !section.is_present() {
        return Ok(None);
    }
    let source = section.source();
    let dir = required(
        &mut section,
        "dir",
        "give the directory for the log's segment files",
    )?;
    let dir = path_of(source, &dir)?;
    let segment_mib = section.number("segment_mib", 1..=4_096, " MiB", Some(64))?;
    let interval_ms = section.number("sync_ms", 1..=3_600_000, " ms", Some(1_000))?;
    let policies = [
        ("never", SyncPolicy::Never),
        ("interval", SyncPolicy::EveryMs(interval_ms)),
        ("always", SyncPolicy::Always),
    ];
    let sync = section.choice("sync", &policies, SyncPolicy::EveryMs(interval_ms))?;
    let keep_mib = section.number("keep_mib", 0..=1 << 30, " MiB", Some(0))?;
    section.finish()?;
    let options = WriterOptions {
        segment_bytes_max: segment_mib << 20,
        sync,
        keep_bytes: (keep_mib > 0).then_some(keep_mib << 20),
    };
    Ok(Some(Log { dir, options }))
}

fn read_clock(mut section: Section<'_>) -> Result<(ClockChoice, Option<u64>), ConfigError> {
    let kinds = [
        ("auto", ClockChoice::Auto),
        ("branches", ClockChoice::Branches),
        ("exits", ClockChoice::Exits),
    ];
    let kind = section.choice("kind", &kinds, ClockChoice::Auto)?;
    let stall_ms = section.number("stall_ms", 0..=10_000, " ms; 0 for ever", Some(50))?;
    section.finish()?;
    Ok((kind, (stall_ms > 0).then_some(stall_ms * NS_PER_MS)))
}

fn read_verify(mut section: Section<'_>) -> Result<(Option<u32>, Option<u64>), ConfigError> {
    let every = section.number("memory_every", 0..=1_000_000, " marks; 0 never", Some(0))?;
    let settle_ms = section.number("settle_ms", 0..=3_600_000, " ms; 0 never", Some(0))?;
    section.finish()?;
    let every = u32::try_from(every).ok().filter(|every| *every > 0);
    Ok((every, (settle_ms > 0).then_some(settle_ms * NS_PER_MS)))
}

fn read_control(mut section: Section<'_>, vm: &str) -> Result<PathBuf, ConfigError> {
    let source = section.source();
    let found = section.text("socket", "give the path of the control socket")?;
    section.finish()?;
    match found {
        Some(found) => socket_path_of(source, &found),
        None => Ok(PathBuf::from(format!("/run/understudy/{vm}.sock"))),
    }
}

fn required(
    section: &mut Section<'_>,
    key: &'static str,
    remedy: &str,
) -> Result<Found<String>, ConfigError> {
    section
        .text(key, remedy)?
        .ok_or_else(|| section.missing(key, remedy))
}

/// A path, relative to the directory of the configuration file.
pub(super) fn path_of(source: Source<'_>, found: &Found<String>) -> Result<PathBuf, ConfigError> {
    if found.value.is_empty() {
        return Err(found.wrong(source, "is empty", "give a path"));
    }
    let directory = source.file.parent().unwrap_or(Path::new(""));
    Ok(directory.join(&found.value))
}

fn socket_path_of(source: Source<'_>, found: &Found<String>) -> Result<PathBuf, ConfigError> {
    let path = path_of(source, found)?;
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let problem = format!("is too long for a socket ({SOCKET_PATH_BYTES_MAX} bytes)");
        return Err(found.wrong(source, problem, "give a shorter path"));
    }
    Ok(path)
}

fn parse_mac(text: &str) -> Result<[u8; 6], &'static str> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts
            .next()
            .filter(|part| part.len() == 2)
            .ok_or("is no MAC address")?;
        if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err("is no MAC address");
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| "is no MAC address")?;
    }
    match (parts.next(), mac[0] & 1, mac) {
        (Some(_), ..) => Err("is no MAC address"),
        (None, 1, _) => Err("is a group address"),
        (None, _, [0, 0, 0, 0, 0, 0]) => Err("is the null address"),
        _ => Ok(mac),
    }
}

/// A locally administered address made from the name (FNV-1a), the same on both hosts.
fn default_mac(name: &str) -> [u8; 6] {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [.., a, b, c] = hash.to_be_bytes();
    [0x52, 0x54, 0x00, a, b, c]
}
