//! Server and client over loopback, and a real server process that is killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use arbiter::client::{ArbiterClient, ClientError, RetryPolicy};
use arbiter::protocol::Grant;
use arbiter::register::{Claim, Holder, Outcome, Register, VmName};
use arbiter::server::{ServeError, serve};
use arbiter::store::{EmbeddedStore, MemoryStore, Store, StoreError};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

fn vm(name: &str) -> VmName {
    VmName::new(name).unwrap()
}

fn claim(expected: u64, new: u64, holder: &str) -> Claim {
    Claim::new(expected, new, Holder::new(holder).unwrap()).unwrap()
}

/// Patient, since the machines that run tests can be slow: what is tested here is not time.
fn patient() -> RetryPolicy {
    RetryPolicy {
        try_ms_max: 10_000,
        ..RetryPolicy::default()
    }
}

struct Running {
    url: String,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<Result<(), ServeError>>,
}

async fn start<S: Store>(store: S) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::spawn(serve(listener, Arc::new(store), async {
        let _ = stopped.await;
    }));
    Running { url, stop, ended }
}

/// Sends `request` as it is on a connection of its own and reads to the end.
async fn raw(url: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://"))
        .await
        .unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn claims_over_loopback() {
    let server = start(MemoryStore::default()).await;
    let client = ArbiterClient::new(&server.url, patient()).unwrap();
    assert!(client.warm().await);
    assert_eq!(client.read(&vm("m")).await.unwrap().generation, 0);
    assert_eq!(
        client.claim(&vm("m"), &claim(0, 1, "a")).await.unwrap(),
        Outcome::Granted
    );
    assert_eq!(
        client.claim(&vm("m"), &claim(0, 1, "a")).await.unwrap(),
        Outcome::Granted
    );
    let refused = Outcome::Refused {
        generation: 1,
        holder: Some(Holder::new("a").unwrap()),
    };
    assert_eq!(
        client.claim(&vm("m"), &claim(0, 1, "b")).await.unwrap(),
        refused
    );
    assert_eq!(
        client.list().await.unwrap().vms,
        [client.read(&vm("m")).await.unwrap()]
    );
    assert_eq!(client.health().await.unwrap().vms, 1);
    assert_eq!(
        client.history(&vm("m")).await.unwrap().grants,
        [Grant::from(&claim(0, 1, "a"))]
    );
    assert_eq!(client.history(&vm("n")).await.unwrap().grants, []);

    let behind = client.claim(&vm("m"), &claim(7, 8, "b")).await.unwrap_err();
    assert!(
        matches!(
            behind,
            ClientError::Behind {
                known: 1,
                expected: 7,
                ..
            }
        ),
        "{behind}"
    );

    server.stop.send(()).unwrap();
    server.ended.await.unwrap().unwrap();
    let quick = RetryPolicy {
        tries_max: 2,
        pause_ms_min: 1,
        ..RetryPolicy::default()
    };
    let client = ArbiterClient::new(&server.url, quick).unwrap();
    let error = client.claim(&vm("m"), &claim(1, 2, "b")).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(!client.warm().await);
}

#[tokio::test]
async fn plain_requests_and_wrong_ones() {
    let server = start(MemoryStore::default()).await;
    let good = r#"{"expected_generation":0,"new_generation":1,"holder":"a"}"#;
    let answer = raw(&server.url, &post("/v1/vms/m/claim", good)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.ends_with(r#"{"outcome":"granted","generation":1,"holder":"a"}"#),
        "{answer}"
    );
    let other = good.replace("\"a\"", "\"b\"");
    let answer = raw(&server.url, &post("/v1/vms/m/claim", &other)).await;
    assert!(answer.starts_with("HTTP/1.1 409"), "{answer}");
    assert!(
        answer.ends_with(r#"{"outcome":"refused","generation":1,"holder":"a"}"#),
        "{answer}"
    );

    let long = post("/v1/vms/m/claim", &" ".repeat(5_000));
    let wrong = [
        (post("/v1/vms/m/claim", "{"), "400", "malformed"),
        (post("/v1/vms/a%2Fb/claim", good), "400", "invalid"),
        (
            post("/v1/vms/m/claim", &good.replace('1', "0")),
            "400",
            "invalid",
        ),
        (post("/v1/vms/m", good), "405", "method_not_allowed"),
        (post("/v2/vms/m/claim", good), "404", "not_found"),
        (long, "413", "too_large"),
    ];
    for (request, status, code) in wrong {
        let answer = raw(&server.url, &request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{request} -> {answer}"
        );
        assert!(
            answer.contains(&format!(r#"{{"error":{{"code":"{code}","message":""#)),
            "{answer}"
        );
        assert!(answer.contains(r#""remedy":""#), "{answer}");
    }
}

/// Answers nothing useful a few times, then hands over to a register.
#[derive(Default)]
struct Flaky {
    store: MemoryStore,
    failures: AtomicU32,
}

impl Store for Flaky {
    fn claim(&self, vm: &VmName, claim: &Claim) -> Result<Outcome, StoreError> {
        let outcome = self.store.claim(vm, claim)?;
        match self
            .failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
        {
            Ok(_) => Err(StoreError::Io {
                path: "flaky".into(),
                operation: "written",
                source: "the disk is full".into(),
            }),
            Err(_) => Ok(outcome),
        }
    }

    fn read(&self, vm: &VmName) -> Result<Register, StoreError> {
        self.store.read(vm)
    }

    fn list(&self) -> Result<Vec<(VmName, Register)>, StoreError> {
        self.store.list()
    }

    fn history(&self, vm: &VmName) -> Result<Vec<Claim>, StoreError> {
        self.store.history(vm)
    }
}

#[tokio::test]
async fn a_failed_store_stops_the_server() {
    let server = start(Flaky {
        failures: AtomicU32::new(1),
        ..Flaky::default()
    })
    .await;
    let once = RetryPolicy {
        tries_max: 1,
        ..patient()
    };
    let client = ArbiterClient::new(&server.url, once).unwrap();
    let error = client.claim(&vm("m"), &claim(0, 1, "a")).await.unwrap_err();
    assert!(
        error.is_unreachable() && error.to_string().contains("not known"),
        "{error}"
    );
    assert!(matches!(
        server.ended.await.unwrap(),
        Err(ServeError::Store(_))
    ));
}

/// A link that loses the first `lost` answers: the request arrives, then the connection breaks.
async fn lossy(url: &str, lost: u32) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let target = url.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        let mut number = 0;
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(&target).await.unwrap();
            number += 1;
            if number > lost {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                continue;
            }
            let mut request = [0; 4_096];
            let length = near.read(&mut request).await.unwrap();
            far.write_all(&request[..length]).await.unwrap();
            // The answer has been made, durable; nobody gets it.
            assert!(far.read(&mut request).await.unwrap() > 0);
        }
    });
    address
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again() {
    let server = start(MemoryStore::default()).await;
    let client = ArbiterClient::new(&lossy(&server.url, 2).await, patient()).unwrap();
    assert_eq!(
        client.claim(&vm("m"), &claim(0, 1, "a")).await.unwrap(),
        Outcome::Granted
    );
    let direct = ArbiterClient::new(&server.url, patient()).unwrap();
    assert_eq!(direct.read(&vm("m")).await.unwrap().generation, 1);
}

#[tokio::test]
async fn something_else_is_not_an_arbiter() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1_024]).await;
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhey\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let client = ArbiterClient::new(&url, patient()).unwrap();
    let error = client.claim(&vm("m"), &claim(0, 1, "a")).await.unwrap_err();
    assert!(matches!(error, ClientError::NotAnArbiter { .. }), "{error}");
}

#[test]
fn addresses_are_checked() {
    let policy = RetryPolicy::default();
    for url in [
        "",
        "host:7070",
        "ftp://host:7070",
        "http://host/x",
        "http://u@host",
        "http://",
    ] {
        let error = ArbiterClient::new(url, policy).unwrap_err();
        assert!(error.to_string().contains("http://HOST:PORT"), "{error}");
    }
    let client = ArbiterClient::new("http://10.0.0.9:7070/", policy).unwrap();
    assert_eq!(client.url(), "http://10.0.0.9:7070");
}

const CHILD_STORE: &str = "ARBITER_TEST_CHILD_STORE";

/// Not a test by itself: the server process of the next one, which starts this very program again.
#[test]
fn child_process() {
    let Some(path) = std::env::var_os(CHILD_STORE) else {
        return;
    };
    let store = EmbeddedStore::open(Path::new(&path)).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut out = std::io::stdout();
        writeln!(out, "\nlistening {}", listener.local_addr().unwrap()).unwrap();
        out.flush().unwrap();
        serve(listener, Arc::new(store), std::future::pending())
            .await
            .unwrap();
    });
}

fn spawn_server(store: &Path) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_process", "--nocapture"])
        .env(CHILD_STORE, store)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("listening ").map(str::to_owned));
    (
        child,
        format!(
            "http://{}",
            address.expect("the child says where it listens")
        ),
    )
}

#[test]
fn a_grant_survives_sigkill_right_after_the_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    drop(EmbeddedStore::create(&path).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for generation in 0..4 {
        let wish = claim(generation, generation + 1, "winner");
        let (mut child, url) = spawn_server(&path);
        let client = ArbiterClient::new(&url, patient()).unwrap();
        let outcome = runtime.block_on(client.claim(&vm("m"), &wish));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(outcome.unwrap(), Outcome::Granted);

        let store = EmbeddedStore::open(&path).unwrap();
        assert_eq!(store.claim(&vm("m"), &wish).unwrap(), Outcome::Granted);
        let rival = claim(generation, generation + 1, "loser");
        assert_ne!(store.claim(&vm("m"), &rival).unwrap(), Outcome::Granted);
    }
}
