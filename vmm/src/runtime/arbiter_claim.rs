//! Claims at the arbiter, off the node's loop.
//!
//! One request, one answer: the node itself decides when to ask again.

use super::node_task::Claimant;
use crate::replication::node::ArbiterReply;
use arbiter::client::{ArbiterClient, ClientError};
use arbiter::register::{Claim, Holder, Outcome, VmName};
use tokio::sync::mpsc::Sender;

/// A claimant for `vm`, in the name of `holder`.
pub(super) fn claimant(client: ArbiterClient, vm: VmName, holder: Holder) -> Claimant {
    Box::new(move |expected, new, answers: Sender<ArbiterReply>| {
        let (client, vm, holder) = (client.clone(), vm.clone(), holder.clone());
        tokio::spawn(async move {
            let reply = ask(&client, &vm, expected, new, holder).await;
            // The node may be over: then the answer has no reader.
            let _ = answers.send(reply).await;
        });
    })
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
