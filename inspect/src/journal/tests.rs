//! A failover's journal, as the backup wrote it.

use super::*;
use crate::sample;
use logging_channel::host_time::HostTime;
use logging_channel::journal::entry::{Begun, Release, Role, Standing};
use logging_channel::journal::{Happening, Interval, JournalWriter};

pub(crate) fn entries() -> Vec<Entry> {
    let entry = |at_us, what| Entry { at_us, what };
    let role = |at_us, role, generation, next: u64| {
        let standing = Standing {
            role,
            generation,
            next,
            guest_time_us: next * 100_000,
            seen_us: next * 100_000 + 7,
        };
        entry(at_us, What::Role(standing))
    };
    let happened = |at_us, happening| entry(at_us, What::Happened(happening));
    let interval = |at_us, next: u64, gate: &[u64]| {
        let mut interval = Interval {
            us: 250_000,
            next,
            guest_time_us: next * 100_000,
            seen_us: next * 100_000 + 7,
            unreleased_us: at_us / 10,
            ..Interval::default()
        };
        for us in gate {
            interval.gate.add(*us);
            interval.releases.push(Release {
                after_us: 100_000,
                index: 2,
                waited_us: *us,
            });
        }
        interval.lag.add(3_000);
        entry(at_us, What::Interval(interval))
    };
    let peer = "a.1".to_owned();
    vec![
        role(10, Role::Joining, 0, 0),
        happened(20, Happening::Paired { peer }),
        role(20, Role::Following, 3, 0),
        interval(300_007, 3, &[]),
        happened(
            1_000_000,
            Happening::Suspected {
                silence_us: 300_000,
            },
        ),
        role(1_000_000, Role::Finishing, 3, 23),
        role(1_000_500, Role::GoingLive, 3, 23),
        happened(1_001_000, Happening::Granted { generation: 4 }),
        role(1_001_000, Role::Solo, 4, 23),
        role(1_500_000, Role::Protected, 4, 24),
        interval(2_000_000, 25, &[500, 1_000, 9_000]),
    ]
}

pub(crate) fn write(dir: &Path, holder: &str) {
    let begun = Begun {
        vm: "web".into(),
        holder: holder.into(),
        wall_clock_us: 3_600_000_000,
    };
    let what = What::Begun(begun);
    let mut writer = JournalWriter::open(dir, "web", Entry { at_us: 0, what }, None).unwrap();
    writer.append(&entries(), HostTime(0)).unwrap();
}

#[test]
fn a_failover_is_summed_up() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        gather(dir.path()).unwrap().is_none(),
        "without files there is nothing to say"
    );
    write(dir.path(), "an earlier run");
    write(dir.path(), "b.2");
    let report = gather(dir.path()).unwrap().unwrap();
    assert_eq!(report.holder, "b.2", "only the last run counts");
    let spans: Vec<_> = report
        .roles
        .iter()
        .map(|s| (s.role, s.generation, s.live))
        .collect();
    assert_eq!(
        spans,
        [
            ("joining", 0, false),
            ("backup", 3, false),
            ("finishing the log", 3, false),
            ("going live", 3, false),
            ("solo", 4, true),
            ("primary", 4, true)
        ]
    );
    assert_eq!(
        (report.roles[1].from_us, report.roles[1].to_us),
        (20, 1_000_000)
    );
    assert_eq!(
        (report.roles[1].from_record, report.roles[1].to_record),
        (0, 23)
    );
    assert_eq!(report.live_in(3), Some("a.1"));
    assert_eq!(report.live_in(4), Some("b.2"));
    assert_eq!(report.live_in(5), None);
    let gate = report.gate.unwrap();
    assert_eq!((gate.count, gate.max_us), (3, 9_000));
    assert!((1_000..=1_062).contains(&gate.p50_us), "{gate:?}");
    assert_eq!(report.lag.unwrap().count, 2);
    assert!(
        report.acknowledgement.is_none(),
        "never measured, so not invented"
    );
    assert_eq!(report.unreleased.unwrap().us, 200_000);
    let text = report.text();
    for part in [
        "journal of b.2, 2.000 s of host time from 01:00:00.000010 UTC",
        "01:00:01.001000 solo               generation 4, live, 499.000 ms, records 23 to 23",
        "01:00:01.000000 peer suspected after 300.000 ms of silence",
        "gate                       3",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn what_is_torn_is_said() {
    let log = sample::log_in_segments(1 << 20);
    write(log.dir(), "b.2");
    let file = log
        .dir()
        .join(logging_channel::journal::format::journal_name(0));
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
    let report = gather(log.dir()).unwrap().unwrap();
    assert!(report.text().contains("\nunsynced: "), "{}", report.text());
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 4;
    std::fs::write(&file, &flipped).unwrap();
    let report = gather(log.dir()).unwrap().unwrap();
    assert!(report.text().contains("\ndamaged: "), "{}", report.text());
    assert_eq!(report.roles.first().map(|span| span.role), Some("joining"));
}

#[test]
fn host_time_becomes_guest_time() {
    let mut clock = clock::GuestClock::default();
    assert_eq!(clock.guest_time_us(500), 0, "the guest had not begun");
    entries().iter().for_each(|entry| clock.see(entry));
    assert_eq!(clock.guest_time_us(2_500_107), 2_500_100);
    assert_eq!(clock.guest_time_us(2_400_007), 2_400_000);
}
