//! `understudy arbiter`: serve a store, and ask an arbiter what it knows.

use super::exit::{Exit, Failure};
use super::unless_reader_left;
use arbiter::client::{ArbiterClient, RetryPolicy};
use arbiter::protocol::VmReply;
use arbiter::register::VmName;
use arbiter::server;
use arbiter::store::{EmbeddedStore, StoreError};
use clap::{Args, Subcommand};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
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
    $ understudy arbiter --listen 10.0.0.9:7070 --store /var/lib/understudy/arbiter.redb --create

  From then on:
    $ understudy arbiter --listen 10.0.0.9:7070 --store /var/lib/understudy/arbiter.redb

  What does it know?
    $ understudy arbiter show --url http://10.0.0.9:7070
    $ curl http://10.0.0.9:7070/v1/vms/web

  SIGTERM or SIGINT ends it after the requests in progress. Whoever reaches the port can claim: keep
  it on a trusted network."
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where to listen, IP:PORT.
    #[arg(long, value_name = "IP:PORT", required = true)]
    listen: Option<SocketAddr>,
    /// The store's file.
    #[arg(long, value_name = "FILE", required = true)]
    store: Option<PathBuf>,
    /// Make the store if there is none.
    #[arg(long)]
    create: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(ShowArguments),
}

/// Show what an arbiter knows: the generation and holder of one virtual machine, or of all.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy arbiter show --url http://10.0.0.9:7070
    $ understudy arbiter show --url http://10.0.0.9:7070 web --json

Ends with status 7 when the arbiter does not answer.")]
struct ShowArguments {
    /// The arbiter's address, http://HOST:PORT.
    #[arg(long, value_name = "URL")]
    url: String,
    /// The virtual machine; all that were ever claimed when left out.
    vm: Option<String>,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, error))?;
    match (arguments.command, arguments.listen, arguments.store) {
        (Some(Command::Show(show)), ..) => runtime.block_on(print(&show)),
        (None, Some(listen), Some(store)) => {
            let store = open(store, arguments.create)?;
            runtime.block_on(serve(listen, store))
        }
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

async fn serve(listen: SocketAddr, store: EmbeddedStore) -> Result<(), Failure> {
    let cannot_listen = |error: io::Error| {
        let error = anyhow::Error::new(error).context(format!("cannot listen on {listen}"));
        Failure::new(Exit::Failed, error)
            .remedy("give an address of this machine and a port that is free")
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(listen).await.map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    tracing::info!(%address, "arbiter listening");
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    match server::serve(listener, Arc::new(store), stop).await {
        Ok(()) => Ok(()),
        Err(server::ServeError::Store(error)) => Err(error.into()),
    }
}

async fn print(arguments: &ShowArguments) -> Result<(), Failure> {
    // A person waits, not a guest: longer tries than a claim's.
    let policy = RetryPolicy {
        try_ms_max: 2_000,
        tries_max: 2,
        ..RetryPolicy::default()
    };
    let client = ArbiterClient::new(&arguments.url, policy)?;
    let (found, json) = match &arguments.vm {
        Some(vm) => {
            let vm = VmName::new(vm.as_str()).map_err(|error| {
                let remedy = error.remedy();
                Failure::new(Exit::Usage, error).remedy(remedy)
            })?;
            let reply = client.read(&vm).await?;
            let json = serde_json::to_string(&reply);
            (vec![reply], json)
        }
        None => {
            let reply = client.list().await?;
            let json = serde_json::to_string(&reply);
            (reply.vms, json)
        }
    };
    let text = if arguments.json {
        json.map_err(|error| Failure::new(Exit::Failed, error))? + "\n"
    } else {
        table(&found)
    };
    unless_reader_left(io::stdout().write_all(text.as_bytes()))
}

fn table(found: &[VmReply]) -> String {
    if found.is_empty() {
        return "no virtual machine was ever claimed\n".into();
    }
    let width = found
        .iter()
        .map(|reply| reply.vm.as_str().len())
        .max()
        .unwrap_or(0)
        .max(2);
    let mut text = format!("{:width$}  generation  holder\n", "vm");
    for reply in found {
        let holder = reply
            .holder
            .as_ref()
            .map_or("(never claimed)", |holder| holder.as_str());
        text += &format!(
            "{:width$}  {:>10}  {holder}\n",
            reply.vm.as_str(),
            reply.generation
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_aligned() {
        let reply = |vm: &str, generation, holder: Option<&str>| VmReply {
            vm: VmName::new(vm).unwrap(),
            generation,
            holder: holder.map(|holder| arbiter::register::Holder::new(holder).unwrap()),
        };
        let text = table(&[
            reply("web", 12, Some("host-a#6f")),
            reply("database", 0, None),
        ]);
        let expected = "\
vm        generation  holder
web               12  host-a#6f
database           0  (never claimed)
";
        assert_eq!(text, expected);
    }

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
