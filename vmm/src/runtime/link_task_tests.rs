//! Strangers at the primary's port, in plain text and in TLS.

use super::*;
use logging_channel::clock_agreement::ClockOffer;
use logging_channel::flow::FlowConfig;
use logging_channel::host_time::HostTime;
use logging_channel::message::{Begins, Heartbeat, Identity as Identified};
use logging_channel::session::CloseReason;
use logging_channel::session::backup::{BackupCommand, BackupConfig, BackupEvent, BackupSession};
use logging_channel::session::primary::{
    PrimaryCommand, PrimaryConfig, PrimaryEvent, PrimarySession,
};
use std::collections::BTreeSet;
use time::OffsetDateTime;
use tls::issue::{Issued, authority, certificate};
use tls::{Identity, IdentityFiles, Purpose};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::channel;

const BEAT: Message = Message::Heartbeat(Heartbeat {
    released: logging_channel::record::LogIndex(0),
});

type Peer = (
    FrameReader<ReadHalf<Stream>>,
    FrameWriter<WriteHalf<Stream>>,
);

async fn connection(dial: &Dial, to: SocketAddr) -> Peer {
    let (reader, writer) = tokio::io::split(dial.connect(to).await.expect("listens"));
    (FrameReader::new(reader), FrameWriter::new(writer))
}

/// Connects until the one place is free again.
async fn connected(dial: &Dial, to: SocketAddr, link: &mut Receiver<LinkEvent>) -> (u64, Peer) {
    loop {
        let peer = connection(dial, to).await;
        tokio::select! {
            event = link.recv() => match event {
                Some(LinkEvent::Connected { number, .. }) => return (number, peer),
                Some(LinkEvent::Gone { .. }) => {}
                other => panic!("{other:?}"),
            },
            () = tokio::time::sleep(CONNECT_PAUSE) => {}
        }
    }
}

/// The pair noticed nothing, in either direction.
async fn undisturbed(
    link: &mut Receiver<LinkEvent>,
    writer: &UnboundedSender<Message>,
    peer: &mut Peer,
) {
    peer.1.send(&BEAT).await.expect("still open");
    let said = link.recv().await;
    let LinkEvent::Said { number: 1, message } = said.as_ref().expect("listens") else {
        panic!("{said:?}");
    };
    assert_eq!(*message, BEAT);
    writer.send(BEAT).expect("still open");
    assert_eq!(peer.0.next().await.expect("still open"), Some(BEAT));
}

#[tokio::test]
async fn strangers_are_turned_away_while_a_connection_is_in_use() {
    let door = Door::plain(TcpListener::bind(("127.0.0.1", 0)).await.expect("binds"));
    let address = door.local_address().expect("bound");
    let (events, mut link) = channel(EVENTS_MAX);
    let task = tokio::spawn(listen(door, events, Numbers::default()));
    let dial = Dial::plain();
    let mut peer = connection(&dial, address).await;
    let Some(LinkEvent::Connected { number: 1, writer }) = link.recv().await else {
        panic!("the first is welcome");
    };
    for _ in 0..100 {
        let (mut reader, _writer) = connection(&dial, address).await;
        // Closed or reset, without a word.
        assert!(!matches!(reader.next().await, Ok(Some(_))));
    }
    undisturbed(&mut link, &writer, &mut peer).await;
    // When the node lets go of it, the next is welcome.
    drop((writer, peer));
    let (number, _peer) = connected(&dial, address, &mut link).await;
    assert_eq!(number, 2);
    task.abort();
}

struct Authority {
    issued: Issued,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let issued = authority(OffsetDateTime::now_utc(), 10).expect("made");
        std::fs::write(directory.path().join("ca.pem"), &issued.certificate).expect("written");
        Self { issued, directory }
    }

    fn identity(&self, name: &str) -> Identity {
        let now = OffsetDateTime::now_utc();
        let issued = certificate(&self.issued.key, name, now, 2).expect("made");
        let path = |suffix: &str| self.directory.path().join(format!("{name}.{suffix}"));
        std::fs::write(path("pem"), issued.certificate).expect("written");
        std::fs::write(path("key"), issued.key).expect("written");
        Identity::load(&IdentityFiles {
            certificate: path("pem"),
            key: path("key"),
            authority: self.directory.path().join("ca.pem"),
        })
        .expect("fits")
    }

    fn dial(&self, name: &str) -> Dial {
        Dial::tls(&self.identity(name), &set("host-a"), Purpose::Channel).expect("fits")
    }
}

fn set(name: &str) -> BTreeSet<String> {
    BTreeSet::from([name.to_owned()])
}

/// How `dial` fares: the error of its first read, if it is not turned away before.
async fn refusal(dial: &Dial, to: SocketAddr) -> String {
    match dial.connect(to).await {
        Err(error) => error.to_string(),
        Ok(mut stream) => match stream.read(&mut [0; 64]).await {
            Err(error) => error.to_string(),
            Ok(0) => "closed".into(),
            Ok(_) => panic!("a stranger was answered"),
        },
    }
}

#[tokio::test]
async fn in_tls_only_the_pairs_own_certificates_reach_the_node() {
    const STRANGERS: usize = 200;
    let ours = Authority::new();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("binds");
    let door = Door::tls(
        listener,
        &ours.identity("host-a"),
        &set("host-b"),
        Purpose::Channel,
    )
    .expect("fits");
    let address = door.local_address().expect("bound");
    let (events, mut link) = channel(EVENTS_MAX);
    let task = tokio::spawn(listen(door, events, Numbers::default()));

    // Strangers before the backup: the one place stays free.
    let mut silent = Vec::new();
    for _ in 0..STRANGERS {
        let mut stranger = TcpStream::connect(address).await.expect("listens");
        stranger.write_all(&[0x16]).await.expect("written");
        silent.push(stranger);
    }
    let foreign = Authority::new().dial("host-b");
    assert!(refusal(&foreign, address).await.contains("UnknownIssuer"));
    assert!(
        refusal(&ours.dial("host-c"), address)
            .await
            .contains("alert")
    );
    let dial = ours.dial("host-b");
    let mut peer = connection(&dial, address).await;
    let Some(LinkEvent::Connected { number: 1, writer }) = link.recv().await else {
        panic!("the backup is welcome");
    };
    // And while it is attached: a second one with a good certificate is turned away, too.
    assert!(
        refusal(&ours.dial("host-c"), address)
            .await
            .contains("alert")
    );
    let second = refusal(&dial, address).await;
    assert!(
        second.contains("closed") || second.contains("eof"),
        "{second}"
    );
    undisturbed(&mut link, &writer, &mut peer).await;
    task.abort();
}

#[tokio::test]
async fn an_oversized_frame_ends_the_connection_with_its_reason() {
    let door = Door::plain(TcpListener::bind(("127.0.0.1", 0)).await.expect("binds"));
    let address = door.local_address().expect("bound");
    let (events, mut link) = channel(EVENTS_MAX);
    let task = tokio::spawn(listen(door, events, Numbers::default()));
    let mut rude = TcpStream::connect(address).await.expect("listens");
    let Some(LinkEvent::Connected { writer, .. }) = link.recv().await else {
        panic!("welcome");
    };
    // A sound header that claims the longest payload there is: refused from the header, before
    // anything is reserved for it. Its own check is found by trying.
    let beat = logging_channel::codec::encode_message(&BEAT).expect("valid");
    let too_long = |check: u8| {
        let header = [beat[0], beat[1], 0xff, 0xff, 0xff, check, 0, 0, 0, 0];
        let error = logging_channel::frame::parse(&header).expect_err("no frame");
        error.to_string().contains("longer than").then_some(header)
    };
    let header = (0..=u8::MAX).find_map(too_long).expect("one fits");
    rude.write_all(&header).await.expect("written");
    let gone = link.recv().await;
    let Some(LinkEvent::Gone { number: 1, cause }) = gone else {
        panic!("{gone:?}");
    };
    assert!(
        cause.contains("byte 0") && cause.contains("longer than"),
        "{cause}"
    );
    drop(writer);
    let (number, _peer) = connected(&Dial::plain(), address, &mut link).await;
    assert_eq!(number, 2, "the next is welcome");
    task.abort();
}

/// What both ends of a pair in TLS are made of.
struct Ends {
    link: Receiver<LinkEvent>,
    writer: UnboundedSender<Message>,
    peer: Peer,
    task: tokio::task::JoinHandle<()>,
}

/// A connection in TLS between two hosts of one authority.
async fn ends() -> Ends {
    let ours = Authority::new();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("binds");
    let (host, backup) = (ours.identity("host-a"), set("host-b"));
    let door = Door::tls(listener, &host, &backup, Purpose::Channel).expect("fits");
    let address = door.local_address().expect("bound");
    let (events, mut link) = channel(EVENTS_MAX);
    let task = tokio::spawn(listen(door, events, Numbers::default()));
    let peer = connection(&ours.dial("host-b"), address).await;
    let Some(LinkEvent::Connected { number: 1, writer }) = link.recv().await else {
        panic!("welcome");
    };
    Ends {
        link,
        writer,
        peer,
        task,
    }
}

fn identity_of(vm: &str) -> Identified {
    Identified {
        vm: vm.into(),
        cpu_model: "understudy-v1".into(),
        memory_bytes: 64 << 20,
        kernel_sha256: [1; 32],
        initramfs_sha256: [2; 32],
        cmdline: "console=ttyS0".into(),
        mac: [2, 0, 0, 0, 0, 1],
    }
}

fn primary_of(vm: &str, generation: u64, begins: Begins) -> PrimarySession {
    let config = PrimaryConfig {
        holder: "host-a.1".into(),
        identity: identity_of(vm),
        clocks: ClockOffer::Either,
        generation,
        begins,
        heartbeat_interval_ns: 20_000_000,
        flow: FlowConfig::default(),
    };
    PrimarySession::new(config, HostTime(0))
}

fn backup_of(vm: &str, newest_generation: u64) -> BackupSession {
    let config = BackupConfig {
        holder: "host-b.1".into(),
        identity: identity_of(vm),
        clocks: ClockOffer::Either,
        heartbeat_interval_ns: 20_000_000,
        newest_generation,
    };
    BackupSession::new(config, HostTime(0))
}

/// Introduces `backup` over the connection and has `primary` answer; why either closed.
async fn introduce(
    ends: &mut Ends,
    mut primary: PrimarySession,
    mut backup: BackupSession,
) -> (Option<CloseReason>, Option<CloseReason>) {
    for command in backup.handle(HostTime(0), BackupEvent::Connected) {
        if let BackupCommand::Send(message) = command {
            ends.peer.1.send(&message).await.expect("open");
        }
    }
    let Some(LinkEvent::Said { message, .. }) = ends.link.recv().await else {
        panic!("nothing was said");
    };
    let mut primary_closed = None;
    for command in primary.handle(HostTime(1), PrimaryEvent::Received(message)) {
        match command {
            PrimaryCommand::Send(message) => ends.writer.send(message).expect("open"),
            PrimaryCommand::Close(reason) => primary_closed = Some(reason),
            _ => {}
        }
    }
    let answer = ends.peer.0.next().await.expect("sound").expect("an answer");
    let commands = backup.handle(HostTime(2), BackupEvent::Received(answer));
    let close = commands.into_iter().find_map(|command| match command {
        BackupCommand::Close(reason) => Some(reason),
        _ => None,
    });
    (primary_closed, close)
}

#[tokio::test]
async fn in_tls_a_good_certificate_does_not_pass_for_another_virtual_machine() {
    let mut ends = ends().await;
    let primary = primary_of("web", 1, Begins::WithStart);
    let (closed, told) = introduce(&mut ends, primary, backup_of("mail", 0)).await;
    for reason in [closed, told] {
        let reason = reason.expect("refused").to_string();
        assert_eq!(reason, "vm differs: web here, mail there");
    }
    ends.task.abort();
}

#[tokio::test]
async fn in_tls_a_primary_of_an_older_generation_is_not_followed() {
    for begins in [Begins::WithStart, Begins::WithTransfer] {
        let mut ends = ends().await;
        let primary = primary_of("web", 2, begins);
        let (closed, told) = introduce(&mut ends, primary, backup_of("web", 3)).await;
        assert_eq!(closed, None);
        let older = CloseReason::OlderGeneration {
            generation: 2,
            newest: 3,
        };
        assert_eq!(told, Some(older));
        ends.task.abort();
        // The same two are a pair when nothing newer was seen.
        let mut ends = self::ends().await;
        let primary = primary_of("web", 2, begins);
        let (closed, told) = introduce(&mut ends, primary, backup_of("web", 2)).await;
        assert_eq!((closed, told), (None, None));
        ends.task.abort();
    }
}
