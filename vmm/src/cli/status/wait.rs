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
    let Ok(sending) = serde_json::from_value::<TransferStatus>(node["last_transfer"].clone())
    else {
        return meter.tell(without_transfer(node));
    };
    match (sending.doing(), sending.failure) {
        (Some(doing), _) if sending.phase == TransferPhase::Copying => {
            let doing = format!("{doing}, {:.1} MiB sent", mib(sending.bytes));
            meter.show(sending.round_sent, sending.round_pages, doing);
        }
        (Some(doing), _) => meter.tell(doing),
        (None, None) => meter.tell("waiting for a backup".into()),
        (None, Some(why)) => {
            meter.tell(format!(
                "waiting for a backup; the last transfer failed: {why}"
            ));
        }
    }
}

/// What a side does that has given nobody the guest's state.
fn without_transfer(node: &Value) -> String {
    match node["transfer"][0].as_u64() {
        Some(bytes) => format!("taking in the guest's state, {:.1} MiB", mib(bytes)),
        None => {
            let role = node["role"].as_str().unwrap_or("starting");
            format!("{role}, waiting for the other side")
        }
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
    fn a_side_without_a_transfer_says_what_it_does() {
        let joining = json!({ "role": "joining", "transfer": [3 << 20, 3] });
        assert_eq!(
            without_transfer(&joining),
            "taking in the guest's state, 3.0 MiB"
        );
        assert_eq!(
            without_transfer(&Value::Null),
            "starting, waiting for the other side"
        );
    }
}
