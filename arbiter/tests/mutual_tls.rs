//! An arbiter in TLS: a host claims its own virtual machine and no other's, strangers are turned away.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use arbiter::access::Access;
use arbiter::client::{ArbiterClient, ClientError, RetryPolicy};
use arbiter::register::{Claim, Holder, Outcome, VmName};
use arbiter::server::serve_behind;
use arbiter::store::MemoryStore;
use std::collections::BTreeSet;
use std::sync::Arc;
use time::OffsetDateTime;
use tls::issue::{Issued, authority, certificate};
use tls::{Dial, Door, Identity, IdentityFiles, Purpose};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

const PATIENT: RetryPolicy = RetryPolicy {
    try_ms_max: 10_000,
    tries_max: 1,
    pause_ms_min: 1,
    pause_ms_max: 1,
};

fn vm(name: &str) -> VmName {
    VmName::new(name).unwrap()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

struct Authority {
    issued: Issued,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let issued = authority(OffsetDateTime::now_utc(), 10).unwrap();
        std::fs::write(directory.path().join("ca.pem"), &issued.certificate).unwrap();
        Self { issued, directory }
    }

    fn identity(&self, name: &str) -> Identity {
        let issued = certificate(&self.issued.key, name, OffsetDateTime::now_utc(), 2).unwrap();
        let path = |suffix: &str| self.directory.path().join(format!("{name}.{suffix}"));
        std::fs::write(path("pem"), issued.certificate).unwrap();
        std::fs::write(path("key"), issued.key).unwrap();
        Identity::load(&IdentityFiles {
            certificate: path("pem"),
            key: path("key"),
            authority: self.directory.path().join("ca.pem"),
        })
        .unwrap()
    }

    fn client(&self, name: &str, port: u16) -> ArbiterClient {
        let dial = Dial::tls(&self.identity(name), &set(&["arbiter"]), Purpose::Http).unwrap();
        ArbiterClient::dialled(&format!("https://127.0.0.1:{port}"), PATIENT, dial).unwrap()
    }
}

/// An arbiter for `web` on host-a and host-b, and an operator.
async fn start(authority: &Authority) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let access = Access {
        operators: set(&["alice"]),
        hosts: [
            (vm("web"), set(&["host-a", "host-b"])),
            (vm("mail"), set(&["host-c"])),
        ]
        .into(),
    };
    let identity = authority.identity("arbiter");
    let door = Door::tls(listener, &identity, &access.names(), Purpose::Http).unwrap();
    let store = Arc::new(MemoryStore::default());
    tokio::spawn(serve_behind(
        door,
        Some(access),
        store,
        std::future::pending(),
    ));
    port
}

fn claim(expected: u64, holder: &str) -> Claim {
    Claim::new(expected, expected + 1, Holder::new(holder).unwrap()).unwrap()
}

#[tokio::test]
async fn a_host_claims_its_own_virtual_machine_and_no_other() {
    let authority = Authority::new();
    let port = start(&authority).await;
    let (a, c) = (
        authority.client("host-a", port),
        authority.client("host-c", port),
    );
    let granted = a.claim(&vm("web"), &claim(0, "host-a.1")).await.unwrap();
    assert_eq!(granted, Outcome::Granted);
    assert!(a.warm().await);

    let foreign = c
        .claim(&vm("web"), &claim(1, "host-c.1"))
        .await
        .unwrap_err();
    let reason = r#"["host-c"] may not claim or read web"#;
    assert!(matches!(foreign, ClientError::Rejected { .. }), "{foreign}");
    assert!(foreign.to_string().contains(reason), "{foreign}");
    assert!(
        c.read(&vm("web"))
            .await
            .unwrap_err()
            .to_string()
            .contains(reason)
    );
    assert!(c.history(&vm("web")).await.is_err());
    assert!(
        a.list()
            .await
            .unwrap_err()
            .to_string()
            .contains("may not see all")
    );

    let alice = authority.client("alice", port);
    assert_eq!(alice.list().await.unwrap().vms.len(), 1);
    let over = alice
        .claim(&vm("web"), &claim(1, "override.alice"))
        .await
        .unwrap();
    assert_eq!(over, Outcome::Granted);
}

#[tokio::test]
async fn strangers_reach_nothing_and_disturb_nobody() {
    const SILENT: usize = 300;
    let authority = Authority::new();
    let port = start(&authority).await;
    let a = authority.client("host-a", port);
    assert_eq!(a.read(&vm("web")).await.unwrap().generation, 0);
    // More silent connections than the arbiter has places.
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    let b = authority.client("host-b", port);
    assert_eq!(
        b.claim(&vm("web"), &claim(0, "host-b.1")).await.unwrap(),
        Outcome::Granted
    );

    let unlisted = authority.client("host-d", port);
    let error = unlisted.read(&vm("web")).await.unwrap_err();
    assert!(
        error.is_unreachable() && error.to_string().contains("alert"),
        "{error}"
    );
    let foreign = Authority::new().client("host-a", port);
    let error = foreign.read(&vm("web")).await.unwrap_err();
    assert!(
        error.is_unreachable() && error.to_string().contains("UnknownIssuer"),
        "{error}"
    );
    let mut plain = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET /v1/health HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said).await;
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
}

#[test]
fn tls_and_plain_addresses_are_not_mixed_up() {
    let authority = Authority::new();
    let dial = Dial::tls(&authority.identity("a"), &set(&["arbiter"]), Purpose::Http).unwrap();
    let error = ArbiterClient::dialled("http://a:1", PATIENT, dial).unwrap_err();
    assert!(error.to_string().contains("write https"), "{error}");
    let error = ArbiterClient::new("https://a:1", PATIENT).unwrap_err();
    assert!(error.to_string().contains("a certificate"), "{error}");
}
