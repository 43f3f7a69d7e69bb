//! Who is let in, and why others are not: over real sockets on loopback.

use super::issue::{Issued, authority, certificate, is_name};
use super::*;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// An authority and what it issued, in a directory of its own.
struct Shop {
    authority: Issued,
    directory: tempfile::TempDir,
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

impl Shop {
    fn open() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority(now(), 10).unwrap();
        std::fs::write(directory.path().join("ca.pem"), &authority.certificate).unwrap();
        Self {
            authority,
            directory,
        }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn files(&self, title: &str, issued: &Issued) -> IdentityFiles {
        IdentityFiles {
            certificate: self.write(&format!("{title}.pem"), &issued.certificate),
            key: self.write(&format!("{title}.key"), &issued.key),
            authority: self.directory.path().join("ca.pem"),
        }
    }

    fn identity_from(&self, name: &str, from: OffsetDateTime) -> Identity {
        let issued = certificate(&self.authority.key, name, from, 2).unwrap();
        Identity::load(&self.files(name, &issued)).unwrap()
    }

    fn identity(&self, name: &str) -> Identity {
        self.identity_from(name, now())
    }
}

/// A door of `host-a` for `host-b`; what it lets in is answered with `hello` and told.
async fn door(shop: &Shop) -> (SocketAddr, mpsc::UnboundedReceiver<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let identity = shop.identity("host-a");
    let mut door = Door::tls(listener, &identity, &set(&["host-b"]), Purpose::Channel).unwrap();
    let (told, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let mut accepted = door.next().await;
            assert!(door.handshakes() <= door::HANDSHAKES_MAX);
            accepted.stream.write_all(b"hello").await.unwrap();
            accepted.stream.flush().await.unwrap();
            told.send(accepted.names).unwrap();
            tokio::spawn(async move {
                let mut rest = Vec::new();
                let _ = accepted.stream.read_to_end(&mut rest).await;
            });
        }
    });
    (address, seen)
}

/// What `identity` finds at `address`: the greeting, or why not.
async fn greeting(
    address: SocketAddr,
    identity: &Identity,
    names: &[&str],
    purpose: Purpose,
) -> Result<String, String> {
    let dial = Dial::tls(identity, &set(names), purpose).unwrap();
    let mut stream = dial
        .connect(address)
        .await
        .map_err(|error| error.to_string())?;
    let mut bytes = [0; 5];
    stream
        .read_exact(&mut bytes)
        .await
        .map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn the_named_are_let_in_and_others_are_told_why_not() {
    let shop = Shop::open();
    let (address, mut seen) = door(&shop).await;
    let ours = &["host-a"];
    let channel = Purpose::Channel;
    let backup = shop.identity("host-b");
    assert_eq!(backup.names(), ["host-b"]);
    assert_eq!(
        greeting(address, &backup, ours, channel).await.unwrap(),
        "hello"
    );
    assert_eq!(seen.recv().await.unwrap(), ["host-b"]);

    let long_ago = shop.identity_from("host-b", now() - Duration::days(30));
    let to_come = shop.identity_from("host-b", now() + Duration::days(30));
    let foreign = Shop::open();
    let stranger = Identity::load(&IdentityFiles {
        authority: shop.directory.path().join("ca.pem"),
        ..foreign.files(
            "host-b",
            &certificate(&foreign.authority.key, "host-b", now(), 2).unwrap(),
        )
    })
    .unwrap();
    let other = shop.identity("host-c");
    for (identity, reason) in [
        (&long_ago, "CertificateExpired"),
        (&to_come, "CertificateExpired"),
        (&stranger, "UnknownCA"),
        (&other, "CertificateUnknown"),
    ] {
        let error = greeting(address, identity, ours, channel)
            .await
            .unwrap_err();
        assert!(
            error.contains(reason) || error.contains("BadCertificate"),
            "{reason}: {error}"
        );
    }
    // A host that expects somebody else, or another service, does not speak either.
    let error = greeting(address, &backup, &["host-c"], channel)
        .await
        .unwrap_err();
    assert!(
        error.contains("host-a") && error.contains("host-c"),
        "{error}"
    );
    let error = greeting(address, &backup, ours, Purpose::Http)
        .await
        .unwrap_err();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    // Nobody but the first came through.
    assert_eq!(
        greeting(address, &backup, ours, channel).await.unwrap(),
        "hello"
    );
    assert_eq!(seen.recv().await.unwrap(), ["host-b"]);
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn without_a_certificate_nobody_is_let_in() {
    let shop = Shop::open();
    let (address, mut seen) = door(&shop).await;
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said).await;
    assert!(
        !said.windows(5).any(|window| window == b"hello"),
        "{said:?}"
    );
    let mut nobody = shop.identity("host-b");
    nobody.forget_certificate();
    let error = greeting(address, &nobody, &["host-a"], Purpose::Channel)
        .await
        .unwrap_err();
    assert!(error.contains("CertificateRequired"), "{error}");
    assert!(seen.try_recv().is_err());
}

/// Everything that a client says passes here; what it said is kept.
async fn listening_proxy(to: SocketAddr) -> (SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(to).await.unwrap();
        let (mut near_read, mut near_write) = near.into_split();
        let (mut far_read, mut far_write) = far.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
        let mut buffer = vec![0; 16_384];
        while let Ok(length @ 1..) = near_read.read(&mut buffer).await {
            far_write.write_all(&buffer[..length]).await.unwrap();
            let _ = tell.send(buffer[..length].to_vec());
        }
    });
    (address, heard)
}

#[tokio::test]
async fn a_replayed_handshake_opens_nothing() {
    let shop = Shop::open();
    let (address, mut seen) = door(&shop).await;
    let (proxy, mut heard) = listening_proxy(address).await;
    let backup = shop.identity("host-b");
    assert_eq!(
        greeting(proxy, &backup, &["host-a"], Purpose::Channel)
            .await
            .unwrap(),
        "hello"
    );
    assert_eq!(seen.recv().await.unwrap(), ["host-b"]);
    let mut recorded = Vec::new();
    while let Some(bytes) = heard.recv().await {
        recorded.extend(bytes);
    }
    assert!(recorded.len() > 500, "a whole handshake");
    let mut replay = TcpStream::connect(address).await.unwrap();
    replay.write_all(&recorded).await.unwrap();
    let mut answer = Vec::new();
    // Answered with a hello of its own and an alert, then closed; or reset.
    let _ = replay.read_to_end(&mut answer).await;
    assert!(seen.try_recv().is_err(), "a recorded handshake was let in");
}

#[tokio::test]
async fn ten_thousand_strangers_keep_nobody_out() {
    const STRANGERS: usize = 10_000;
    /// Open at a time on this side: more than the door has places for.
    const OPEN_MAX: usize = 4 * door::HANDSHAKES_MAX;
    let shop = Shop::open();
    let (address, mut seen) = door(&shop).await;
    let backup = shop.identity("host-b");
    let mut silent = std::collections::VecDeque::new();
    for number in 0..STRANGERS {
        // Slow: a byte of a greeting, then nothing.
        let mut stranger = TcpStream::connect(address).await.unwrap();
        let _ = stranger.write_all(&[0x16]).await;
        silent.push_back(stranger);
        if silent.len() > OPEN_MAX {
            silent.pop_front();
        }
        if number % 1_000 == 999 {
            let found = greeting(address, &backup, &["host-a"], Purpose::Channel).await;
            assert_eq!(found.unwrap(), "hello", "after {number} strangers");
            assert_eq!(seen.recv().await.unwrap(), ["host-b"]);
        }
    }
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn a_slow_handshake_ends() {
    tokio::time::pause();
    let shop = Shop::open();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let identity = shop.identity("host-a");
    let mut door = Door::tls(listener, &identity, &set(&["host-b"]), Purpose::Channel).unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(&[0x16, 3]).await.unwrap();
    // Time passes by itself while nothing else happens.
    let closed = async {
        let mut rest = Vec::new();
        let _ = slow.read_to_end(&mut rest).await;
    };
    tokio::select! {
        _ = door.next() => panic!("let in"),
        () = closed => {}
    }
}

#[tokio::test]
async fn plain_text_is_said_to_be_plain() {
    let mut door = Door::plain(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = door.local_address().unwrap();
    let (accepted, dialled) = tokio::join!(door.next(), async {
        Dial::plain().connect(address).await.unwrap()
    });
    assert!(!accepted.stream.is_tls() && !dialled.is_tls());
    assert_eq!(accepted.names, Vec::<String>::new());
}

#[test]
fn files_that_hold_something_else_are_named() {
    let shop = Shop::open();
    let issued = certificate(&shop.authority.key, "host-a", now(), 2).unwrap();
    let good = shop.files("host-a", &issued);
    let other = certificate(&shop.authority.key, "host-a", now(), 2).unwrap();
    let says = |files: &IdentityFiles| Identity::load(files).unwrap_err().to_string();
    let swapped = IdentityFiles {
        key: good.certificate.clone(),
        ..good.clone()
    };
    assert!(
        says(&swapped).contains("host-a.pem holds no private key"),
        "{}",
        says(&swapped)
    );
    let swapped = IdentityFiles {
        certificate: good.key.clone(),
        ..good.clone()
    };
    assert!(
        says(&swapped).contains("host-a.key holds no certificate"),
        "{}",
        says(&swapped)
    );
    let foreign_key = IdentityFiles {
        key: shop.write("other.key", &other.key),
        ..good.clone()
    };
    assert!(
        says(&foreign_key).contains("cannot be used"),
        "{}",
        says(&foreign_key)
    );
    let absent = IdentityFiles {
        authority: Path::new("/nonexistent").into(),
        ..good
    };
    assert!(
        says(&absent).contains("cannot read authority's certificate /nonexistent"),
        "{}",
        says(&absent)
    );
}

#[test]
fn names_are_host_names() {
    for good in ["host-a", "host-a.example.org", "h1"] {
        assert!(is_name(good), "{good}");
    }
    let long = "a".repeat(64);
    for bad in [
        "",
        "*",
        "*.example.org",
        "a b",
        "-a",
        "a-",
        "a..b",
        "10.0.0.1",
        long.as_str(),
    ] {
        assert!(!is_name(bad), "{bad}");
        let key = authority(now(), 1).unwrap().key;
        assert!(certificate(&key, bad, now(), 1).is_err(), "{bad}");
    }
}
