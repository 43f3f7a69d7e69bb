//! `understudy arbiter`: serve a store; `ask` is the operator's side.

mod ask;
mod protection;

use super::exit::{Exit, Failure};
use arbiter::client::RetryPolicy;
use arbiter::server;
use arbiter::store::{EmbeddedStore, EtcdStore, Store, StoreError};
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Serve the arbiter, which decides which host may run a guest.
///
/// The arbiter keeps one register per virtual machine: a generation, and who was granted it. A host
/// that wants to start a guest, to go live or to continue alone claims the next generation; exactly one
/// claim wins, for good, and the loser halts. Run one arbiter for any number of pairs, on a third
/// machine. While a pair is healthy it is not asked; while it is down, a pair that breaks waits for it.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "\
Examples:
  The first time, make the store; a store is never made without being told to, because an arbiter
  that does not find its store must not begin anew:
    $ understudy arbiter --listen 10.0.0.9:7070 --store /var/lib/understudy/arbiter.redb --create \\
        --tls-certificate arbiter.pem --tls-key arbiter.key --tls-authority ca.pem --access access.toml

  From then on the same without --create. On a private link, without certificates:
    $ understudy arbiter --listen 10.0.0.9:7070 --store /var/lib/understudy/arbiter.redb --plain-text

  What does it know?
    $ understudy arbiter show --url https://10.0.0.9:7070 --name arbiter \\
        --tls-certificate alice.pem --tls-key alice.key --tls-authority ca.pem
    $ curl --cert alice.pem --key alice.key --cacert ca.pem --resolve arbiter:7070:10.0.0.9 \\
        https://arbiter:7070/v1/vms/web

  From a replicated store, an etcd cluster (hosts can also ask the cluster themselves, without this
  service: [arbiter] url = \"etcd://10.0.0.1,10.0.0.2,10.0.0.3/understudy\"):
    $ understudy arbiter --listen 10.0.0.9:7070 --store etcd://10.0.0.1,10.0.0.2,10.0.0.3/understudy --plain-text

  SIGTERM or SIGINT ends it after the requests in progress. In plain text, whoever reaches the port
  can claim."
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<ask::Command>,
    /// Where to listen, IP:PORT.
    #[arg(long, value_name = "IP:PORT", required = true)]
    listen: Option<SocketAddr>,
    /// The store's file, or a cluster: etcd://HOST:PORT,HOST:PORT/PREFIX.
    #[arg(long, value_name = "FILE|URL", required = true)]
    store: Option<PathBuf>,
    /// Make the store if there is none.
    #[arg(long)]
    create: bool,
    /// Who may do what, TOML: `operators = ["alice"]`, then `[hosts]` with `web = ["host-a", "host-b"]`.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    access: Option<PathBuf>,
    /// Names in the certificates of the etcd cluster that the store is in (etcds://...).
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    cluster: Vec<String>,
    #[command(flatten)]
    certificate: protection::Certificate,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, error))?;
    match (&arguments.command, arguments.listen, &arguments.store) {
        (Some(command), ..) => runtime.block_on(ask::run(command)),
        (None, Some(listen), Some(store)) => match store.to_str() {
            Some(url) if url.starts_with("etcd://") => {
                let handle = runtime.handle().clone();
                let dial = arguments.certificate.dial(url, &arguments.cluster)?;
                let store = EtcdStore::new(url, RetryPolicy::default(), &dial, handle)?;
                runtime.block_on(serve(listen, &arguments, store))
            }
            _ => {
                let store = open(store.clone(), arguments.create)?;
                runtime.block_on(serve(listen, &arguments, store))
            }
        },
        // clap demands both.
        (None, ..) => Err(Failure::new(
            Exit::Usage,
            anyhow::anyhow!("--listen and --store are needed"),
        )),
    }
}

fn open(path: PathBuf, create: bool) -> Result<EmbeddedStore, StoreError> {
    match EmbeddedStore::open(&path) {
        Err(StoreError::Missing { .. }) if create => {
            tracing::info!(store = %path.display(), "making a new store: no generation was granted yet");
            match EmbeddedStore::create(&path) {
                // Another process was faster; it says so itself if it still has the store open.
                Err(StoreError::Exists { .. }) => EmbeddedStore::open(&path),
                made => made,
            }
        }
        opened => opened,
    }
}

async fn serve(
    listen: SocketAddr,
    arguments: &Arguments,
    store: impl Store,
) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let certificate = &arguments.certificate;
    let (door, access) = certificate
        .door(listen, arguments.access.as_deref())
        .await?;
    let (address, tls) = (door.local_address()?, access.is_some());
    tracing::info!(%address, tls, "arbiter listening");
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    match server::serve_behind(door, access, Arc::new(store), stop).await {
        Ok(()) => Ok(()),
        Err(server::ServeError::Store(error)) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_made_only_when_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        assert!(matches!(
            open(path.clone(), false),
            Err(StoreError::Missing { .. })
        ));
        drop(open(path.clone(), true).unwrap());
        drop(open(path.clone(), true).unwrap());
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(open(path, true), Err(StoreError::Damaged { .. })));
    }
}
