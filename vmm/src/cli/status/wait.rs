//! `understudy status --wait`: until the guest has a backup, with a bar while it is given the guest's state.

use super::{ask, mib};
use crate::cli::exit::{Exit, Failure};
use crate::cli::meter::{self, Meter};
use serde_json::Value;
use std::path::Path;
use vmm::replication::transfer_watch::{TransferPhase, TransferStatus};
use vmm::runtime::control_socket::Request;

/// What a status says about the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// A backup follows.
    Over,
    /// Not yet.
    On,
    /// It never will from here.
    InVain,
}

/// Asks again and again; the first status in which there is a backup that follows.
pub(super) fn until_protected(path: &Path, meter: &Meter) -> Result<Value, Failure> {
    let mut last = Value::Null;
    loop {
        let document = match ask(path, &Request::Status {}) {
            Ok(answer) => answer.status.unwrap_or_default(),
            // It halted, does not stand by, and is gone: what it said last is the better answer.
            Err(_) if last["node"]["halted"].is_string() => return Err(in_vain(&last["node"])),
            Err(failure) => return Err(failure),
        };
        match judge(&document) {
            Wait::Over => {
                meter.end();
                return Ok(document);
            }
            Wait::InVain => {
                meter.end();
                return Err(in_vain(&document["node"]));
            }
            Wait::On => draw(&document["node"], meter),
        }
        last = document;
        meter::pause();
    }
}

fn judge(document: &Value) -> Wait {
    match document["node"]["role"].as_str() {
        Some("protected" | "following") => Wait::Over,
        Some("ended") => Wait::InVain,
        // Whoever halted may stand by, in another life, a moment later.
        _ => Wait::On,
    }
}

fn in_vain(node: &Value) -> Failure {
    let why = node["halted"].as_str().unwrap_or("the guest ended");
    let error = anyhow::anyhow!("there will be no backup from here: {why}");
    let remedy = "`understudy status` on the other hosts shows who has the guest";
    Failure::new(Exit::Failed, error).remedy(remedy)
}

fn draw(node: &Value, meter: &Meter) {
    let sending = serde_json::from_value::<TransferStatus>(node["last_transfer"].clone());
    match sending {
        Ok(sending) => match sending.phase {
            TransferPhase::Copying => {
                let (round, sent) = (sending.rounds, mib(sending.bytes));
                let doing = format!("round {round} of copying memory, {sent:.1} MiB sent");
                meter.show(sending.round_sent, sending.round_pages, doing);
            }
            TransferPhase::Pausing => meter.tell("sending what the guest wrote last".into()),
            TransferPhase::Waiting => meter.tell("waiting for the new backup".into()),
            TransferPhase::Done => meter.tell("waiting for a backup".into()),
            TransferPhase::Failed => {
                let why = sending.failure.unwrap_or_default();
                meter.tell(format!(
                    "waiting for a backup; the last transfer failed: {why}"
                ));
            }
        },
        Err(_) => match node["transfer"][0].as_u64() {
            Some(bytes) => meter.tell(format!(
                "taking in the guest's state, {:.1} MiB",
                mib(bytes)
            )),
            None => {
                let role = node["role"].as_str().unwrap_or("starting");
                meter.tell(format!("{role}, waiting for the other side"));
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_backup_that_follows_ends_the_wait_and_only_an_end_makes_it_vain() {
        for (role, expected) in [
            ("protected", Wait::Over),
            ("following", Wait::Over),
            ("solo", Wait::On),
            ("joining", Wait::On),
            ("contested", Wait::On),
            ("halted", Wait::On),
            ("ended", Wait::InVain),
        ] {
            assert_eq!(
                judge(&json!({ "node": { "role": role } })),
                expected,
                "{role}"
            );
        }
        assert_eq!(judge(&json!({ "node": null })), Wait::On);
        let halted = json!({ "role": "halted", "halted": "the arbiter refused" });
        assert!(in_vain(&halted).text().contains("the arbiter refused"));
    }

    #[test]
    fn every_state_can_be_drawn() {
        let meter = Meter::begin(false);
        draw(&json!({ "role": "joining", "transfer": [5, 3] }), &meter);
        draw(&Value::Null, &meter);
    }
}
