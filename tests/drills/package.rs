//! What an operator does (`docs/installing.md`): the Debian package on three machines, certificates, the units of
//! arbiter, primary, backup and standby started, the primary's host killed, then the backup's.

use crate::Drill;
use anyhow::{Context, Result, ensure};
use rig::arbiter::Arbiter;
use rig::debian_root::{self, Debian, inside};
use rig::images::Images;
use rig::lab::{GUEST_INITRAMFS, GUEST_KERNEL, Lab, Side};
use rig::netns::Namespace;
use rig::observation::{Load, Order};
use rig::oracle::Oracle;
use rig::pair::{LOG_DIR, PairOptions, Status, TLS_DIR, VM};
use rig::progress::note;
use rig::scene::{GO_LIVE_LIMIT, PROGRESS_LIMIT, PROTECTED_LIMIT};
use rig::wait::until;
use std::fs;
use std::path::Path;
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[Drill {
    name: PACKAGE,
    shows: "the .deb in a clean Debian, certificates, units of arbiter, both sides and a standby; two hosts killed",
    run: package,
}];

/// Needs a package, and debootstrap.
pub(crate) const PACKAGE: &str = "package";

/// As in `docs/installing.md`.
const CONFIG: &str = "/etc/understudy/web.toml";
const ACCESS: &str = "/etc/understudy/access.toml";
const ENVIRONMENT: &str = "/etc/understudy/arbiter.env";
const TLS: &str = "/etc/understudy/tls";
const STATE: &str = "/var/lib/understudy";
const STORE: &str = "/var/lib/understudy/arbiter.redb";
const EXAMPLES: &str = "/usr/share/doc/understudy/examples";

/// The third host is the arbiter's; the standby is there, too.
const ARBITER: Side = Side::Spare;
const ARBITER_UNIT: &str = "understudy-arbiter";
const STANDBY_UNIT: &str = "understudy-standby@web";
/// In the example of its environment file.
const EXAMPLE_ADDRESS: &str = "10.0.0.9:7070";

/// The names in the hosts' certificates.
const HOSTS: &str = "[\"primary\", \"backup\", \"spare\"]";

/// Who may read everything at the arbiter.
const OPERATOR: &str = "operator";

const REQUESTS: u64 = 50;
const INTERVAL: Duration = Duration::from_millis(200);

fn package(lab: &mut Lab) -> Result<()> {
    let root = lab.run_dir().join("debian");
    let result = prepare(lab, &root).and_then(|()| drill(lab, &root));
    let _ = fs::remove_dir_all(&root);
    if result.is_ok() {
        // Their disks are no others' business.
        for side in lab.sides() {
            lab.host_mut(side).kill();
        }
    }
    result
}

fn unit(side: Side) -> String {
    format!("understudy-{side}@web")
}

fn arbiter_address() -> String {
    format!("{}:7070", ARBITER.address())
}

/// The Debian that all hosts get, with everything that the guest's file names.
fn prepare(lab: &Lab, root: &Path) -> Result<()> {
    debian_root::with_package(root)?;
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let images = Images::load()?;
    fs::create_dir_all(below(STATE).join("images"))?;
    let options = PairOptions {
        tls: true,
        spare: true,
        ..lab.options()
    };
    let config = options.config();
    let url = format!("https://{}", arbiter_address());
    let paths = [
        (TLS_DIR, TLS.into()),
        (&Arbiter::url(), url),
        ("plain_text = true", "arbiter = [\"arbiter\"]".into()),
        ("primary = [\"primary\"]", format!("primary = {HOSTS}")),
        ("backup = [\"backup\"]", format!("backup = {HOSTS}")),
        (GUEST_KERNEL, format!("{STATE}/images/kernel")),
        (GUEST_INITRAMFS, format!("{STATE}/images/initramfs")),
        (LOG_DIR, format!("{STATE}/web/log")),
        (
            "/run/host/state/console.log",
            format!("{STATE}/console.log"),
        ),
        (
            "/run/host/understudy.sock",
            "/run/understudy/web.sock".into(),
        ),
    ];
    let mut text = config;
    for (ours, theirs) in &paths {
        ensure!(text.contains(ours), "the configuration lacks {ours}");
        text = text.replace(ours, theirs);
    }
    fs::copy(
        &images.guest_kernel,
        below(&format!("{STATE}/images/kernel")),
    )?;
    fs::copy(
        &images.guest_initramfs,
        below(&format!("{STATE}/images/initramfs")),
    )?;
    fs::write(below(CONFIG), text)?;
    arbiter_files(root)?;
    certificates(root)?;
    let own = ["chown", "-R", "understudy:understudy", STATE];
    inside(root, &own).map(drop)
}

/// The arbiter's two files, from the package's examples: its own address, and who may do what.
fn arbiter_files(root: &Path) -> Result<()> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let example = fs::read_to_string(below(&format!("{EXAMPLES}/arbiter.env")))?;
    ensure!(
        example.contains(EXAMPLE_ADDRESS),
        "no {EXAMPLE_ADDRESS}: {example}"
    );
    let own = example.replace(EXAMPLE_ADDRESS, &arbiter_address());
    fs::write(below(ENVIRONMENT), own)?;
    let access = format!("operators = [\"{OPERATOR}\"]\n[hosts]\n{VM} = {HOSTS}\n");
    Ok(fs::write(below(ACCESS), access)?)
}

/// All certificates, made by the installed program; each machine picks its own out of them.
fn certificates(root: &Path) -> Result<()> {
    let (authority, issued) = (format!("{TLS}/authority"), format!("{TLS}/issued"));
    let install = [
        "install",
        "-d",
        "-m",
        "0750",
        "-o",
        "root",
        "-g",
        "understudy",
        TLS,
    ];
    inside(root, &install)?;
    inside(
        root,
        &["understudy", "cert", "authority", "--dir", &authority],
    )?;
    let hosts = Side::ALL.map(Side::name);
    for name in hosts.into_iter().chain(["arbiter", OPERATOR]) {
        let issue = [
            "understudy",
            "cert",
            "issue",
            "--dir",
            &authority,
            "--name",
            name,
        ];
        inside(root, &[&issue[..], &["--out", &issued]].concat())?;
    }
    Ok(())
}

/// Gives a machine its certificates under the names that its files have, and takes the others' away.
fn install_certificates(debian: &Debian<'_>, side: Side) -> Result<()> {
    let more = if side == ARBITER {
        format!("cp issued/arbiter.* issued/{OPERATOR}.* .; ")
    } else {
        String::new()
    };
    let script = format!(
        "set -e; cd {TLS}; cp issued/ca.pem .; cp issued/{side}.pem host.pem; cp issued/{side}.key host.key; {more}\
         rm -r authority issued; chgrp understudy *; chmod 640 *"
    );
    debian.run(&["sh", "-c", &script])?.success().map(drop)
}

/// Starts the standby's unit, which is told where to listen.
fn start_standby(third: &Debian<'_>) -> Result<()> {
    let standby = format!("{}:7072", Side::Spare.address());
    let tell = format!("echo STANDBY={standby} >> /etc/understudy/web.env");
    third.run(&["sh", "-c", &tell])?.success()?;
    third.start_unit(STANDBY_UNIT)
}

/// Makes the store by hand, once, and starts the service.
fn start_arbiter(arbiter: &Debian<'_>) -> Result<()> {
    let listen = ["--listen", "127.0.0.1:0", "--store", STORE, "--create"];
    let by_hand = [
        "runuser",
        "-u",
        "understudy",
        "--",
        "timeout",
        "-s",
        "INT",
        "-k",
        "5",
        "5",
        "understudy",
        "arbiter",
    ];
    let made = arbiter.run(&[&by_hand[..], &listen[..]].concat())?;
    let there = arbiter.run(&["test", "-s", STORE])?;
    ensure!(there.code == 0, "no store was made: {}", made.text());
    arbiter.start_unit(ARBITER_UNIT)
}

/// The generation that the arbiter's register holds, as the operator is told.
fn register(arbiter: &Debian<'_>) -> Result<u64> {
    let url = format!("https://{}", arbiter_address());
    let (certificate, key) = (
        format!("{TLS}/{OPERATOR}.pem"),
        format!("{TLS}/{OPERATOR}.key"),
    );
    let authority = format!("{TLS}/ca.pem");
    let argv = [
        "understudy",
        "arbiter",
        "show",
        VM,
        "--json",
        "--url",
        &url,
        "--tls-certificate",
        &certificate,
        "--tls-key",
        &key,
        "--tls-authority",
        &authority,
    ];
    let told = arbiter.run(&argv)?.success()?;
    let reply: serde_json::Value = serde_json::from_slice(&told.stdout)?;
    reply["generation"]
        .as_u64()
        .with_context(|| format!("no generation: {reply}"))
}

fn drill(lab: &mut Lab, root: &Path) -> Result<()> {
    lab.reboot_filled(root)?;
    let mut client;
    let (second, third) = {
        let start = |side| -> Result<Debian<'_>> {
            let debian = Debian::start(lab.host(side).agent()?)?;
            install_certificates(&debian, side)?;
            Ok(debian)
        };
        let (first, second) = (start(Side::Primary)?, start(Side::Backup)?);
        let third = start(ARBITER)?;
        start_arbiter(&third)?;
        start_pair(&first, &second)?;
        start_standby(&third)?;
        client = Oracle::start(&Namespace::named("client"), &Load::default())?;
        client.wait_connected()?;
        served(&mut client)?;
        [second, third]
            .map(|debian| debian.first_process().to_owned())
            .into()
    };
    lab.host_mut(Side::Primary).kill();
    let second = Debian::running(lab.host(Side::Backup).agent()?, second);
    let again = wait_role(&second, &unit(Side::Backup), "protected", PROTECTED_LIMIT)?;
    ensure!(again.generation == 2, "generation {}", again.generation);
    served(&mut client)?;
    lab.host_mut(Side::Backup).kill();
    let third = Debian::running(lab.host(Side::Spare).agent()?, third);
    let alone = wait_role(&third, STANDBY_UNIT, "solo", GO_LIVE_LIMIT)?;
    ensure!(alone.generation == 3, "generation {}", alone.generation);
    served(&mut client)?;
    let seen = client.finish()?;
    let complaints = seen.complaints();
    ensure!(complaints.is_empty(), "{}: {seen:?}", complaints.join("; "));
    let generation = register(&third)?;
    ensure!(generation == 3, "the arbiter is at generation {generation}");
    // `stop` and the units' own ExecStop.
    for unit in [STANDBY_UNIT, ARBITER_UNIT] {
        third.run(&["systemctl", "stop", unit])?.success()?;
    }
    note(
        "systemd started arbiter, both sides and a standby, in TLS; who was left served, and stopped when told",
    );
    Ok(())
}

fn start_pair(first: &Debian<'_>, second: &Debian<'_>) -> Result<()> {
    let doctor = first.run(&["understudy", "doctor"])?;
    ensure!(doctor.code == 0, "doctor: {}", doctor.text());
    let (primary, backup) = (unit(Side::Primary), unit(Side::Backup));
    first.start_unit(&primary)?;
    second.start_unit(&backup)?;
    wait_role(first, &primary, "protected", PROTECTED_LIMIT)?;
    wait_role(second, &backup, "following", PROTECTED_LIMIT)?;
    confined(first)
}

fn served(client: &mut Oracle) -> Result<()> {
    let before = client.order(&Order::Tell)?.acknowledged;
    let served = client.wait_progress(before, REQUESTS, PROGRESS_LIMIT);
    served.map(drop)
}

/// The unit's process is of the package's user, and has given its capabilities up.
fn confined(debian: &Debian<'_>) -> Result<()> {
    let show = "p=$(systemctl show -P MainPID understudy-primary@web); stat -c %U /proc/$p; grep CapEff /proc/$p/status";
    let told = debian.run(&["sh", "-c", show])?.success()?.text();
    let words: Vec<&str> = told.split_whitespace().collect();
    ensure!(
        matches!(words[..], ["understudy", "CapEff:", "0000000000000000"]),
        "its user and capabilities are {words:?}"
    );
    Ok(())
}

fn wait_role(debian: &Debian<'_>, unit: &str, role: &str, limit: Duration) -> Result<Status> {
    let argv = ["understudy", "status", "--json", "--config", CONFIG];
    let mut last = String::new();
    let result = until(&format!("{unit} to be {role}"), limit, INTERVAL, || {
        let told = debian.run(&argv)?;
        if told.code != 0 {
            last = String::from_utf8_lossy(&told.stderr).into_owned();
            return Ok(None);
        }
        // Just started, it has no node yet.
        let Ok(status) = Status::parse(&told.stdout) else {
            last = told.text();
            return Ok(None);
        };
        last.clone_from(&status.role);
        Ok((status.role == role).then_some(status))
    });
    result.with_context(|| format!("last: {last}\n{}", debian.journal(unit)))
}
