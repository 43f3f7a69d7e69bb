//! The etcd store on a real cluster: three members on loopback, one killed, one stopped, two gone.
//!
//! Needs Debian's `etcd-server` (`cargo xtask test` installs it); without it the tests print `SKIP`, or
//! fail where `REQUIRE` names `etcd`. A member dies with the thread that started it.

use super::conformance::{self, claim, vm};
use super::{EtcdStore, Store, StoreError};
use crate::client::{ArbiterClient, ClientError};
use crate::register::Outcome;
use crate::retry::RetryPolicy;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use tls::Dial;
use tokio::runtime::Runtime;

const MEMBERS: usize = 3;
/// Tries before a cluster that should answer is given up: minutes, on a machine that is busy.
const PATIENCE_TRIES: u32 = 400;

fn policy(tries_max: u32) -> RetryPolicy {
    RetryPolicy {
        try_ms_max: 1_000,
        tries_max,
        pause_ms_min: 50,
        pause_ms_max: 200,
    }
}

struct Member {
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Member {
    fn start(&mut self) {
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.process.as_ref().unwrap().id();
        let line = format!("kill -{name} {pid}");
        let status = Command::new("sh").args(["-c", &line]).status().unwrap();
        assert!(status.success(), "{line}");
    }
}

/// An address on loopback for each member of one cluster, which no other process and no other test
/// uses: a free port of 127.0.0.1 may be somebody's before the member that is started for it binds it.
fn own_hosts() -> impl Iterator<Item = Ipv4Addr> {
    static CLUSTERS: AtomicU8 = AtomicU8::new(0);
    let cluster = CLUSTERS.fetch_add(1, Ordering::SeqCst);
    let [.., high, low] = std::process::id().to_be_bytes();
    // 127.0 is what others use.
    let high = high.max(1);
    (1..=MEMBERS).map(move |member| {
        let last = usize::from(cluster) * 10 + member;
        Ipv4Addr::new(127, high, low, u8::try_from(last).unwrap())
    })
}

struct Cluster {
    members: Vec<Member>,
    addresses: Vec<String>,
    _directory: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.kill();
        }
    }
}

impl Cluster {
    /// Three members that answer; none where there is no etcd.
    fn start() -> Option<Self> {
        if !["/usr/bin/etcd", "/usr/local/bin/etcd"]
            .iter()
            .any(|path| Path::new(path).exists())
        {
            let required = std::env::var("REQUIRE").unwrap_or_default();
            assert!(
                !required.split(',').any(|name| name == "etcd"),
                "etcd is required and missing"
            );
            eprintln!("SKIP no etcd here: apt-get install etcd-server");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let (clients, peers): (Vec<_>, Vec<_>) = own_hosts()
            .map(|host| (format!("{host}:2379"), format!("{host}:2380")))
            .unzip();
        let all: Vec<_> = peers
            .iter()
            .enumerate()
            .map(|(n, peer)| format!("m{n}=http://{peer}"))
            .collect();
        let members = (0..MEMBERS).map(|n| {
            let (client, peer) = (
                format!("http://{}", clients[n]),
                format!("http://{}", peers[n]),
            );
            let data = directory.path().join(format!("m{n}")).display().to_string();
            let pairs = [
                ("name", format!("m{n}")),
                ("data-dir", data),
                ("listen-client-urls", client.clone()),
                ("advertise-client-urls", client),
                ("listen-peer-urls", peer.clone()),
                ("initial-advertise-peer-urls", peer),
                ("initial-cluster", all.join(",")),
                (
                    "initial-cluster-token",
                    directory.path().display().to_string(),
                ),
                ("heartbeat-interval", "100".into()),
                ("election-timeout", "1000".into()),
            ];
            let arguments = pairs
                .into_iter()
                .map(|(name, value)| format!("--{name}={value}"))
                .collect();
            Member {
                arguments,
                process: None,
            }
        });
        let mut cluster = Self {
            members: members.collect(),
            addresses: clients.clone(),
            _directory: directory,
        };
        cluster.members.iter_mut().for_each(Member::start);
        Some(cluster)
    }

    fn url(&self, prefix: &str) -> String {
        format!("etcd://{}/{prefix}", self.addresses.join(","))
    }

    fn store(&self, prefix: &str, runtime: &Runtime) -> EtcdStore {
        let handle = runtime.handle().clone();
        EtcdStore::new(
            &self.url(prefix),
            policy(PATIENCE_TRIES),
            &Dial::plain(),
            handle,
        )
        .unwrap()
    }
}

#[test]
fn conforms() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let runtime = Runtime::new().unwrap();
    let mut made = 0;
    conformance::suite(|| {
        made += 1;
        cluster.store(&format!("test/{made}"), &runtime)
    });
    what_we_did_not_write_is_refused(&cluster, &runtime);
}

fn what_we_did_not_write_is_refused(cluster: &Cluster, runtime: &Runtime) {
    let peer = crate::http::HttpPeer::new(&cluster.addresses[0], Dial::plain());
    // foreign/vms/m = {}
    let body = br#"{"key":"Zm9yZWlnbi92bXMvbQ==","value":"e30="}"#;
    let put = runtime.block_on(peer.exchange("/v3/kv/put", Some(body), 10_000));
    assert_eq!(put.unwrap().0, 200);
    let store = cluster.store("foreign", runtime);
    let wish = claim(0, 1, "a");
    for error in [
        store.claim(&vm("m"), &wish).unwrap_err(),
        store.read(&vm("m")).map(|_| ()).unwrap_err(),
        store.list().map(|_| ()).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Cluster { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("foreign/vms/m holds no register"),
            "{error}"
        );
    }
    let client = ArbiterClient::new(&cluster.url("foreign"), policy(1)).unwrap();
    let error = runtime.block_on(client.claim(&vm("m"), &wish)).unwrap_err();
    assert!(matches!(error, ClientError::NotAnArbiter { .. }), "{error}");
}

/// Claimants that race for every generation until they are told to stop; each tells what it won.
struct Race {
    stop: Arc<AtomicBool>,
    /// The greatest generation that anybody won.
    reached: Arc<AtomicU64>,
    claimants: Vec<std::thread::JoinHandle<Vec<(u64, String)>>>,
}

impl Race {
    fn start(cluster: &Cluster, claimants: usize) -> Self {
        let (stop, reached) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let claimants = (0..claimants)
            .map(|who| {
                let client = ArbiterClient::new(&cluster.url("race"), policy(1)).unwrap();
                let (stop, reached) = (Arc::clone(&stop), Arc::clone(&reached));
                std::thread::spawn(move || claimant(who, &client, &stop, &reached))
            })
            .collect();
        Self {
            stop,
            reached,
            claimants,
        }
    }

    /// Waits until `more` further generations were won.
    fn advance(&self, more: u64) {
        let goal = self.reached.load(Ordering::SeqCst) + more;
        while self.reached.load(Ordering::SeqCst) < goal {
            assert!(
                !self
                    .claimants
                    .iter()
                    .any(std::thread::JoinHandle::is_finished),
                "a claimant gave up"
            );
            std::thread::yield_now();
        }
    }

    fn finish(self) -> Vec<(u64, String)> {
        self.stop.store(true, Ordering::SeqCst);
        self.claimants
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    }
}

fn claimant(
    who: usize,
    client: &ArbiterClient,
    stop: &AtomicBool,
    reached: &AtomicU64,
) -> Vec<(u64, String)> {
    let runtime = Runtime::new().unwrap();
    let (mut won, mut at, mut run, mut unanswered) = (Vec::new(), 0, 0, 0);
    while !stop.load(Ordering::SeqCst) {
        // One claim, the same until it is answered: as a host does.
        let holder = format!("h{who}.{run}");
        match runtime.block_on(client.claim(&vm("m"), &claim(at, at + 1, &holder))) {
            Ok(Outcome::Granted) => {
                at += 1;
                run += 1;
                won.push((at, holder));
                reached.fetch_max(at, Ordering::SeqCst);
            }
            Ok(Outcome::Refused { generation, .. }) => {
                assert!(generation > at, "a refusal tells of a later generation");
                (at, run) = (generation, run + 1);
            }
            Err(error) if error.is_unreachable() => {
                unanswered += 1;
                assert!(unanswered < PATIENCE_TRIES, "{error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        unanswered = 0;
    }
    won
}

#[test]
fn a_member_killed_and_one_stopped_grant_nothing_twice() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let runtime = Runtime::new().unwrap();
    cluster.store("race", &runtime).list().unwrap();
    let race = Race::start(&cluster, 3);
    race.advance(5);
    for round in 0..MEMBERS {
        cluster.members[round].kill();
        race.advance(5);
        cluster.members[round].start();
        race.advance(2);
        let stopped = (round + 1) % MEMBERS;
        cluster.members[stopped].signal("STOP");
        race.advance(5);
        cluster.members[stopped].signal("CONT");
        race.advance(2);
    }
    let mut won = race.finish();
    won.sort();
    let generations: Vec<u64> = won.iter().map(|(generation, _)| *generation).collect();
    // A claim whose answer was lost just before the end may be granted beside these.
    let store = cluster.store("race", &runtime);
    let granted: BTreeMap<u64, String> = store
        .history(&vm("m"))
        .unwrap()
        .iter()
        .map(|claim| (claim.new_generation(), claim.holder().to_string()))
        .collect();
    let mut once = generations.clone();
    once.dedup();
    assert_eq!(generations, once, "no generation was granted twice");
    for (generation, holder) in &won {
        let known = granted.get(generation);
        assert!(
            known.is_none_or(|known| known == holder),
            "{generation} was answered to {holder}, and is {known:?}'s"
        );
        assert!(known.is_some() || granted.len() == crate::register::HISTORY_MAX);
    }
}

#[test]
fn without_a_majority_nothing_is_granted_and_with_it_nothing_is_forgotten() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let runtime = Runtime::new().unwrap();
    let store = cluster.store("quorum", &runtime);
    assert_eq!(
        store.claim(&vm("m"), &claim(0, 1, "a")).unwrap(),
        Outcome::Granted
    );
    cluster.members[0].kill();
    cluster.members[1].kill();
    let hasty = EtcdStore::new(
        &cluster.url("quorum"),
        policy(1),
        &Dial::plain(),
        runtime.handle().clone(),
    )
    .unwrap();
    let error = hasty.claim(&vm("m"), &claim(1, 2, "b")).unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    let error = hasty.read(&vm("m")).unwrap_err();
    assert!(
        matches!(error, StoreError::Unavailable { .. }),
        "a stale answer: {error}"
    );
    cluster.members[0].start();
    cluster.members[1].start();
    assert_eq!(
        store.claim(&vm("m"), &claim(0, 1, "a")).unwrap(),
        Outcome::Granted
    );
    assert_eq!(
        store.claim(&vm("m"), &claim(1, 2, "b")).unwrap(),
        Outcome::Granted
    );
    cluster.members.iter_mut().for_each(Member::kill);
    cluster.members.iter_mut().for_each(Member::start);
    assert_eq!(
        store.history(&vm("m")).unwrap(),
        [claim(0, 1, "a"), claim(1, 2, "b")]
    );
}
