//! What an operator does: the Debian package on two hosts, its units started, one host killed.

use crate::Drill;
use anyhow::{Context, Result, ensure};
use rig::debian_root::{self, Debian, inside};
use rig::images::Images;
use rig::lab::{GUEST_INITRAMFS, GUEST_KERNEL, Lab, Side};
use rig::netns::Namespace;
use rig::observation::{Load, Order};
use rig::oracle::Oracle;
use rig::pair::{LOG_DIR, Status, VM};
use rig::progress::note;
use rig::scene::{GO_LIVE_LIMIT, PROGRESS_LIMIT, PROTECTED_LIMIT};
use rig::wait::until;
use std::fs;
use std::path::Path;
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[Drill {
    name: PACKAGE,
    shows: "the .deb in a clean Debian, its units on two hosts, one of them killed",
    run: package,
}];

/// Needs a package, and debootstrap.
pub(crate) const PACKAGE: &str = "package";

/// As in `docs/installing.md`.
const CONFIG: &str = "/etc/understudy/web.toml";
const STATE: &str = "/var/lib/understudy";

const REQUESTS: u64 = 50;
const INTERVAL: Duration = Duration::from_millis(200);

fn package(lab: &mut Lab) -> Result<()> {
    let root = lab.run_dir().join("debian");
    let result = prepare(lab, &root).and_then(|()| drill(lab, &root));
    let _ = fs::remove_dir_all(&root);
    if result.is_ok() {
        // Their disks are no others' business.
        for side in Side::BOTH {
            lab.host_mut(side).kill();
        }
    }
    result
}

fn unit(side: Side) -> String {
    format!("understudy-{side}@web")
}

/// The Debian that both hosts get, with everything that the guest's file names.
fn prepare(lab: &Lab, root: &Path) -> Result<()> {
    debian_root::with_package(root)?;
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let images = Images::load()?;
    fs::create_dir_all(below(STATE).join("images"))?;
    let config = lab.options().config();
    let paths = [
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
    fs::copy(&images.guest_kernel, below(&paths[0].1))?;
    fs::copy(&images.guest_initramfs, below(&paths[1].1))?;
    fs::write(below(CONFIG), text)?;
    let own = ["chown", "-R", "understudy:understudy", STATE];
    inside(root, &own).map(drop)
}

fn drill(lab: &mut Lab, root: &Path) -> Result<()> {
    lab.reboot_filled(root)?;
    lab.arbiter.start()?;
    let (mut client, survivor) = {
        let start = |side| Debian::start(lab.host(side).agent()?);
        let (primary, backup) = (start(Side::Primary)?, start(Side::Backup)?);
        let doctor = primary.run(&["understudy", "doctor"])?;
        ensure!(doctor.code == 0, "doctor: {}", doctor.text());
        primary.start_unit(&unit(Side::Primary))?;
        backup.start_unit(&unit(Side::Backup))?;
        wait_role(&primary, Side::Primary, "protected", PROTECTED_LIMIT)?;
        wait_role(&backup, Side::Backup, "following", PROTECTED_LIMIT)?;
        confined(&primary)?;
        let mut client = Oracle::start(&Namespace::named("client"), &Load::default())?;
        client.wait_connected()?;
        client.wait_progress(0, REQUESTS, PROGRESS_LIMIT)?;
        (client, backup.first_process().to_owned())
    };
    lab.host_mut(Side::Primary).kill();
    let backup = Debian::running(lab.host(Side::Backup).agent()?, survivor);
    let alone = wait_role(&backup, Side::Backup, "solo", GO_LIVE_LIMIT)?;
    ensure!(alone.generation == 2, "generation {}", alone.generation);
    let before = client.order(&Order::Tell)?.acknowledged;
    client.wait_progress(before, REQUESTS, PROGRESS_LIMIT)?;
    let seen = client.finish()?;
    let complaints = seen.complaints();
    ensure!(complaints.is_empty(), "{}: {seen:?}", complaints.join("; "));
    ensure!(lab.arbiter.register(VM)?.0 == 2, "the arbiter knows better");
    // `stop` and the unit's own ExecStop.
    backup
        .run(&["systemctl", "stop", &unit(Side::Backup)])?
        .success()?;
    note("systemd started both sides; the survivor served, and stopped when told");
    Ok(())
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

fn wait_role(debian: &Debian<'_>, side: Side, role: &str, limit: Duration) -> Result<Status> {
    let argv = ["understudy", "status", "--json", "--config", CONFIG];
    let mut last = String::new();
    let result = until(&format!("{side} to be {role}"), limit, INTERVAL, || {
        let told = debian.run(&argv)?;
        if told.code != 0 {
            last = String::from_utf8_lossy(&told.stderr).into_owned();
            return Ok(None);
        }
        let status = Status::parse(&told.stdout)?;
        last.clone_from(&status.role);
        Ok((status.role == role).then_some(status))
    });
    result.with_context(|| format!("last: {last}\n{}", debian.journal(&unit(side))))
}
