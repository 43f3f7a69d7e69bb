//! Claims at the arbiter, off the node's loop.
//!
//! One request, one answer: the node itself decides when to ask again.

use super::fence::Fencer;
use super::node_task::Claimant;
use crate::replication::node::ArbiterReply;
use arbiter::client::{ArbiterClient, ClientError};
use arbiter::register::{Claim, Holder, Outcome, VmName};
use tokio::sync::mpsc::Sender;

/// A claimant for `vm`, in the name of `holder`. A grant counts only when `fencer`, if there is one, has
/// succeeded; but for the claim with which this side starts, after `start_after`, when there is nobody to
/// fence yet.
pub(super) fn claimant(
    client: ArbiterClient,
    vm: VmName,
    holder: Holder,
    fencer: Option<Fencer>,
    start_after: u64,
) -> Claimant {
    Box::new(move |expected, new, answers: Sender<ArbiterReply>| {
        let (client, vm, holder) = (client.clone(), vm.clone(), holder.clone());
        let fencer = fencer.clone().filter(|_| expected > start_after);
        tokio::spawn(async move {
            let mut reply = ask(&client, &vm, expected, new, holder).await;
            if let (ArbiterReply::Granted { generation }, Some(fencer)) = (&reply, fencer) {
                reply = fenced(*generation, fencer).await;
            }
            // The node may be over: then the answer has no reader.
            let _ = answers.send(reply).await;
        });
    })
}

/// The grant of `generation`, once the other host is fenced; no answer while it is not.
async fn fenced(generation: u64, fencer: Fencer) -> ArbiterReply {
    let done = tokio::task::spawn_blocking(move || fencer.fence(generation)).await;
    match done {
        Ok(Ok(())) => {
            tracing::info!(generation, "fenced");
            ArbiterReply::Granted { generation }
        }
        Ok(Err(why)) => {
            tracing::error!(
                generation,
                why,
                "granted, but not fenced: nothing goes live"
            );
            ArbiterReply::Failed(why)
        }
        Err(ended) => ArbiterReply::Failed(ended.to_string()),
    }
}

async fn ask(
    client: &ArbiterClient,
    vm: &VmName,
    expected: u64,
    new: u64,
    holder: Holder,
) -> ArbiterReply {
    let claim = match Claim::new(expected, new, holder) {
        Ok(claim) => claim,
        Err(error) => return ArbiterReply::Failed(error.to_string()),
    };
    match client.claim(vm, &claim).await {
        Ok(Outcome::Granted) => ArbiterReply::Granted { generation: new },
        Ok(Outcome::Refused { generation, holder }) => ArbiterReply::Refused {
            generation,
            holder: holder.map_or_else(|| "nobody".to_owned(), |h| h.as_str().to_owned()),
        },
        Err(error @ ClientError::Unreachable { .. }) => {
            tracing::debug!(%error, "arbiter");
            ArbiterReply::Unreachable
        }
        Err(error) => ArbiterReply::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fence::Fencer;
    use arbiter::client::RetryPolicy;
    use arbiter::store::MemoryStore;
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use tokio::sync::mpsc::channel;

    /// A helper that answers with `answers`, one each.
    fn fencer(answers: &[&str]) -> Fencer {
        let script: String = answers
            .iter()
            .map(|answer| format!("read g; echo {answer};"))
            .collect();
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Fencer::converse(command).unwrap()
    }

    #[tokio::test]
    async fn a_grant_counts_only_when_the_fence_succeeded() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let store = Arc::new(MemoryStore::default());
        tokio::spawn(arbiter::server::serve(
            listener,
            store,
            std::future::pending(),
        ));
        let policy = RetryPolicy {
            try_ms_max: 10_000,
            ..RetryPolicy::default()
        };
        let client = ArbiterClient::new(&url, policy).unwrap();
        let (vm, holder) = (VmName::new("m").unwrap(), Holder::new("a").unwrap());
        let claims = claimant(client, vm, holder, Some(fencer(&["failed", "ok"])), 0);
        let (send, mut replies) = channel(1);
        // The first start has nobody to fence.
        claims(0, 1, send.clone());
        assert_eq!(
            replies.recv().await,
            Some(ArbiterReply::Granted { generation: 1 })
        );
        claims(1, 2, send.clone());
        let failed = ArbiterReply::Failed("the fence command failed".into());
        assert_eq!(replies.recv().await, Some(failed));
        // Asked again, granted again, fenced this time.
        claims(1, 2, send);
        assert_eq!(
            replies.recv().await,
            Some(ArbiterReply::Granted { generation: 2 })
        );
    }
}
