//! A guest of two parts is saved, given up and refused, without KVM.

use super::*;
use crate::replication::node::{ArbiterReply, NodeConfig, NodeEvent, Part};
use crate::snapshot::file::SnapshotReader;
use logging_channel::clock_agreement::ClockOffer;
use logging_channel::host_time::HostTime;
use std::path::Path;

fn identity() -> Identity {
    Identity {
        vm: "web".into(),
        cpu_model: "understudy-v1".into(),
        memory_bytes: 64 << 20,
        kernel_sha256: [1; 32],
        initramfs_sha256: [2; 32],
        cmdline: "console=ttyS0".into(),
        mac: [2, 0, 0, 0, 0, 1],
    }
}

fn saver() -> Saver {
    Saver::new(identity(), SnapshotBoard::new(None))
}

/// Copies the parts in one round and is ready.
fn begin(saver: &mut Saver, path: &Path, parts: Vec<Vec<u8>>) -> Result<u64, AnswerError> {
    saver.begin_with(path.into(), ClockKind::Exits, move |_, work| {
        work(&|say: Say<'_>| {
            say(TransferEvent::Round {
                number: 1,
                pages: 1,
            })?;
            for part in &parts {
                say(TransferEvent::Part(part.clone()))?;
            }
            say(TransferEvent::Ready)
        });
    })
}

fn node(part: Part) -> Node {
    let mut node = Node::new(NodeConfig {
        part,
        holder: "a".into(),
        identity: identity(),
        clocks: ClockOffer::Only(ClockKind::Exits),
        detector: Default::default(),
        flow: Default::default(),
        retry: Default::default(),
        gate_bytes_max: 1_000,
        generation: 4,
        newest_generation: 0,
    });
    node.handle(HostTime(0), NodeEvent::Start);
    node
}

/// The state that a recorder says for `attempt`.
fn said(attempt: u64) -> Vec<Emitted> {
    let state = Emitted::Snapshot {
        attempt,
        next: LogIndex(70),
        parts: vec![vec![3; 30]],
    };
    vec![Emitted::Rested, state, Emitted::Drained]
}

fn shown(saver: &Saver) -> SnapshotStatus {
    saver.board.borrow().clone().expect("something is shown")
}

fn files_in(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

async fn ready(saver: &mut Saver) -> u64 {
    match saver.next().await {
        SavingEvent::Ready { attempt } => attempt,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_snapshot_has_all_parts_and_says_where_it_stands() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.snapshot");
    std::fs::write(&path, "an older one").unwrap();
    let mut saver = saver();
    let copied = vec![vec![1; 10], vec![2; 20]];
    assert_eq!(begin(&mut saver, &path, copied.clone()), Ok(1));
    let second = begin(&mut saver, &path, copied).expect_err("one at a time");
    assert!(second.message.contains("already"), "{second:?}");
    let attempt = ready(&mut saver).await;
    // What was said for somebody else stays where it is.
    let mut others = said(3);
    saver.take_state(&mut others);
    assert_eq!(others, said(3));
    let mut items = said(attempt);
    saver.take_state(&mut items);
    assert_eq!(items, [Emitted::Rested, Emitted::Drained]);
    let waiting = shown(&saver);
    assert_eq!(
        (waiting.phase, waiting.next),
        (SnapshotPhase::Waiting, Some(70))
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"an older one");
    saver.look(&node(Part::Alone));
    let SavingEvent::Ended(result) = saver.next().await else {
        panic!("nothing slows it");
    };
    saver.ended(result);
    let done = shown(&saver);
    assert_eq!(
        (done.phase, done.bytes, done.round),
        (SnapshotPhase::Done, 60, 1)
    );
    let mut reader = SnapshotReader::open(std::fs::File::open(&path).unwrap()).unwrap();
    let about = reader.about().clone();
    assert_eq!((about.generation, about.next), (4, 70));
    let parts: Vec<_> = std::iter::from_fn(|| reader.next_part().unwrap()).collect();
    assert_eq!(parts, [vec![1; 10], vec![2; 20], vec![3; 30]]);
    assert_eq!(files_in(directory.path()), 1);
}

/// A file shows what the guest did: it waits as output does.
#[tokio::test]
async fn nothing_is_shown_before_the_arbiter_or_the_backup_allows_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.snapshot");
    let mut saver = saver();
    begin(&mut saver, &path, Vec::new()).unwrap();
    let attempt = ready(&mut saver).await;
    saver.take_state(&mut said(attempt));
    let mut primary = node(Part::Primary {
        after_generation: 0,
    });
    saver.look(&primary);
    let granted = ArbiterReply::Granted { generation: 1 };
    primary.handle(HostTime(1), NodeEvent::Arbiter(granted));
    saver.look(&primary);
    assert_eq!(shown(&saver).phase, SnapshotPhase::Waiting);
    saver.close().await;
    assert_eq!(shown(&saver).phase, SnapshotPhase::Failed);
    assert_eq!(files_in(directory.path()), 0);
}

#[tokio::test]
async fn what_is_given_up_leaves_nothing_and_the_next_may_come() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.snapshot");
    let mut saver = saver();
    begin(&mut saver, &path, vec![vec![1; 10]]).unwrap();
    let first = ready(&mut saver).await;
    assert!(saver.give_up("something came"));
    let failure = shown(&saver).failure.expect("it says why");
    assert_eq!(failure.message, "something came");
    assert!(!saver.give_up("again"));
    assert_eq!(begin(&mut saver, &path, Vec::new()), Ok(2));
    let second = ready(&mut saver).await;
    // The first state comes late; it is nobody's.
    saver.take_state(&mut said(first));
    assert_eq!(shown(&saver).phase, SnapshotPhase::Pausing);
    saver.take_state(&mut said(second));
    saver.look(&node(Part::Alone));
    saver.close().await;
    assert_eq!(shown(&saver).phase, SnapshotPhase::Done);
    assert!(path.exists());
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().to_owned(), directory.path().join("no/web")] {
        let mut saver = saver();
        begin(&mut saver, &path, Vec::new()).unwrap();
        let SavingEvent::Ended(Err(failure)) = saver.next().await else {
            panic!("{} was written", path.display());
        };
        let name = path.display().to_string();
        assert!(failure.message.starts_with(&name), "{failure:?}");
        assert!(failure.remedy.contains("may write"), "{failure:?}");
    }
}
