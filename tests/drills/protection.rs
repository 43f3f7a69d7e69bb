//! Outsiders are kept out, and a guest that broke out is stopped: the pair goes on in both cases.

use crate::Drill;
use anyhow::{Context, Result, bail, ensure};
use rig::fault::Fault;
use rig::lab::{BUSYBOX, Lab, Side, UNDERSTUDY};
use rig::netns::address;
use rig::observation::Load;
use rig::pair::{PairOptions, TLS_DIR};
use rig::scene::{GO_LIVE_LIMIT, Scene};
use rig::wait::until;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "tls-strangers",
        shows: "a pair in TLS under strangers' connections; then the primary's host dies",
        run: strangers,
    },
    Drill {
        name: "system-call-outside",
        shows: "the primary's vCPU thread is made to open a file: the kernel kills it, the backup goes live",
        run: trespass,
    },
];

const LIMIT: Duration = Duration::from_secs(60);

/// Connections of strangers to the primary's port, one after the other.
const STRANGERS: u32 = 100;

/// What a thread that makes a forbidden system call dies of.
const SIGSYS: i32 = 31;

/// System calls outside the lists that the hosts' kernels noted, one line for each thread's name and number.
pub(crate) fn noted_calls(lab: &Lab) -> Vec<String> {
    let mut found = BTreeSet::new();
    for side in lab.sides() {
        let asked = lab.host(side).agent();
        let asked = asked.and_then(|agent| agent.exec(&["dmesg"], LIMIT));
        let text = asked.map(|done| done.text()).unwrap_or_default();
        for line in text.lines().filter(|line| line.contains("type=1326")) {
            let words = line.split_whitespace();
            let wanted = |word: &&str| word.starts_with("comm=") || word.starts_with("syscall=");
            let told: Vec<_> = words.filter(wanted).collect();
            found.insert(told.join(" "));
        }
    }
    found.into_iter().collect()
}

fn strangers(lab: &mut Lab) -> Result<()> {
    let options = PairOptions {
        tls: true,
        ..lab.options()
    };
    certify(lab)?;
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    let port = format!("{} 7071", address::PRIMARY_LOG);
    let knock = format!(
        "i=0; while [ $i -lt {STRANGERS} ]; do echo hello | {BUSYBOX} timeout 1 {BUSYBOX} nc -w 1 {port} \
         >/dev/null; i=$((i+1)); done"
    );
    let backup = scene.lab.host(Side::Backup).agent()?;
    backup.exec(&["sh", "-c", &knock], 2 * LIMIT)?.success()?;
    scene.wait_served()?;
    for (side, role) in [(Side::Primary, "protected"), (Side::Backup, "following")] {
        let status = scene.pair.status(scene.lab, side)?;
        ensure!(
            status.role == role && status.generation == 1,
            "{side} noticed: {status:?}"
        );
    }
    scene.strike(Fault::Kill(Side::Primary))?;
    scene.wait_solo(Side::Backup)?;
    scene.wait_served()?;
    scene.check_register(2)?;
    scene.close().map(|_| ())
}

/// Gives each host a certificate of an authority that the rig makes.
fn certify(lab: &Lab) -> Result<()> {
    let dir = lab.run_dir().join("ca");
    let program = lab.arbiter.program();
    let cert = |arguments: &[&str]| -> Result<()> {
        let output = Command::new(program).arg("cert").args(arguments).output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    let _ = std::fs::remove_dir_all(&dir);
    let authority = dir.to_str().context("a path that is text")?;
    cert(&["authority", "--dir", authority])?;
    for side in Side::BOTH {
        let out = dir.join(side.name());
        let text = out.to_str().context("a path that is text")?;
        cert(&[
            "issue",
            "--dir",
            authority,
            "--name",
            side.name(),
            "--out",
            text,
        ])?;
        let agent = lab.host(side).agent()?;
        agent.exec(&["mkdir", "-p", TLS_DIR], LIMIT)?.success()?;
        let put = |from: &Path, name: &str| -> Result<()> {
            agent.put(&format!("{TLS_DIR}/{name}"), 0o600, &std::fs::read(from)?)
        };
        put(&out.join(format!("{}.pem", side.name())), "host.pem")?;
        put(&out.join(format!("{}.key", side.name())), "host.key")?;
        put(&out.join("ca.pem"), "ca.pem")?;
    }
    Ok(())
}

/// What an attacker in the vCPU thread would do, from outside: in the program's memory the C library's
/// `ioctl` becomes another system call, `open`, which that thread may not make. The next entry into the
/// guest is then a call outside the list.
fn trespass(lab: &mut Lab) -> Result<()> {
    let options = PairOptions {
        confine: "enforced".into(),
        ..lab.options()
    };
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    let pid = scene.pair.pid(Side::Primary)?;
    let agent = scene.lab.host(Side::Primary).agent()?;
    let maps = agent
        .exec(&["cat", &format!("/proc/{pid}/maps")], LIMIT)?
        .success()?
        .text();
    let program = std::fs::read(scene.lab.arbiter.program())?;
    let mut patched = 0;
    for address in ioctls(&program, &maps)? {
        // One byte: the number of the system call.
        let write = format!(
            "printf '\\002' | {BUSYBOX} dd of=/proc/{pid}/mem bs=1 seek={address} count=1 conv=notrunc"
        );
        agent.exec(&["sh", "-c", &write], LIMIT)?.success()?;
        patched += 1;
    }
    ensure!(patched > 0, "there is no ioctl in {UNDERSTUDY}");
    let interval = Duration::from_millis(50);
    let code = until("the primary to be killed", GO_LIVE_LIMIT, interval, || {
        scene.pair.ended(scene.lab, Side::Primary)
    })?;
    ensure!(
        code == 128 + SIGSYS,
        "the primary ended with status {code}, not killed by SIGSYS"
    );
    scene.wait_solo(Side::Backup)?;
    scene.wait_served()?;
    scene.check_register(2)?;
    scene.close().map(|_| ())
}

/// Addresses, in a process with these `maps` that runs `program`, of the low byte of the number in
/// `mov $16, %eax; syscall`.
fn ioctls(program: &[u8], maps: &str) -> Result<Vec<u64>> {
    const IOCTL: [u8; 7] = [0xb8, 16, 0, 0, 0, 0x0f, 0x05];
    let offsets = program.windows(IOCTL.len()).enumerate();
    let offsets = offsets
        .filter(|(_, bytes)| *bytes == IOCTL)
        .map(|(at, _)| at as u64 + 1);
    let mut found = Vec::new();
    for offset in offsets {
        found.push(address_of(offset, maps)?);
    }
    Ok(found)
}

/// Where the byte at `offset` of the program's file is mapped as code.
fn address_of(offset: u64, maps: &str) -> Result<u64> {
    for line in maps.lines() {
        // 00400000-00401000 r-xp 00001000 fe:00 12   /run/host/understudy
        let fields: Vec<_> = line.split_whitespace().collect();
        let [range, rights, at, _, _, path] = fields[..] else {
            continue;
        };
        let Some((start, end)) = range.split_once('-') else {
            continue;
        };
        if !rights.contains('x') || !path.ends_with("understudy") {
            continue;
        }
        let number = |text| u64::from_str_radix(text, 16);
        let (start, end, at) = (number(start)?, number(end)?, number(at)?);
        if (at..at + (end - start)).contains(&offset) {
            return Ok(start + offset - at);
        }
    }
    bail!("byte {offset} of the program is not mapped as code:\n{maps}")
}
