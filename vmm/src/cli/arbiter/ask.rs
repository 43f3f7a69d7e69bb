//! `understudy arbiter show | history | override`: what an operator asks an arbiter.

use super::protection::Certificate;
use crate::cli::exit::{Exit, Failure};
use crate::cli::unless_reader_left;
use arbiter::client::{ArbiterClient, RetryPolicy};
use arbiter::protocol::{HistoryReply, VmReply};
use arbiter::register::{Claim, Holder, Outcome, VmName};
use clap::{Args, Subcommand};
use std::fmt::Write as _;
use std::io::{self, Write as _};

/// What the holder's name of an override begins with, in the register and in the history.
const OVERRIDE: &str = "override";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Show(ShowArguments),
    History(HistoryArguments),
    Override(OverrideArguments),
}

/// Show what an arbiter knows: the generation and holder of one virtual machine, or of all.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy arbiter show --url http://127.0.0.1:7070
    $ understudy arbiter show --url etcd://10.0.0.1,10.0.0.2,10.0.0.3/understudy web --json --plain-text

Ends with status 7 when the arbiter does not answer.")]
pub(super) struct ShowArguments {
    #[command(flatten)]
    place: Place,
    /// The virtual machine; all that were ever claimed when left out.
    vm: Option<String>,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

/// Show the newest grants of a virtual machine: which generation went to whom, oldest first.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy arbiter history --url http://10.0.0.9:7070 web --plain-text

An arbiter keeps no times: it has no clock that could be wrong. The service's own log has them. Ends
with status 7 when the arbiter does not answer.")]
pub(super) struct HistoryArguments {
    #[command(flatten)]
    place: Place,
    /// The virtual machine.
    vm: String,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

/// End a generation by hand, after its holder was fenced.
///
/// The register moves on to a new generation that no host holds. From then on every copy of the guest
/// that belongs to an older one is refused: it neither goes live nor continues alone, and halts when it
/// asks. What it does not do: it does not reach a holder that runs alone, which has nothing to ask. So
/// make sure first that the holder is off (pull its plug, fence it), and name it: the name must be the
/// register's, or nothing happens.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  Both hosts of `web` are gone, or halted; host-a was the last holder, and is powered off:
    $ understudy arbiter show --url http://127.0.0.1:7070 web
    $ understudy arbiter override --url http://127.0.0.1:7070 web --fenced host-a.6f1c22a07d18b3e4.812
    $ understudy primary --config guest.toml --after-generation 4

  The arbiter's store was lost; generation 17 was the last that anybody saw:
    $ understudy arbiter override --url http://127.0.0.1:7070 web --fenced nobody --generation 18

Ends with status 4 when the register has another holder, 7 when the arbiter does not answer.")]
pub(super) struct OverrideArguments {
    #[command(flatten)]
    place: Place,
    /// The virtual machine.
    vm: String,
    /// The holder that was fenced, as `arbiter show` names it; `nobody` where none is known.
    #[arg(long, value_name = "HOLDER")]
    fenced: String,
    /// The generation to move to; the next one when left out.
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
}

#[derive(Debug, Args)]
struct Place {
    /// The arbiter's address, https://HOST:PORT or etcds://HOST:PORT,HOST:PORT/PREFIX; http and etcd in
    /// plain text.
    #[arg(long, value_name = "URL")]
    url: String,
    /// Names that the arbiter's certificate may have.
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "arbiter"
    )]
    name: Vec<String>,
    #[command(flatten)]
    certificate: Certificate,
}

impl Place {
    fn client(&self) -> Result<ArbiterClient, Failure> {
        // A person waits, not a guest: longer tries than a claim's.
        let policy = RetryPolicy {
            try_ms_max: 2_000,
            tries_max: 2,
            ..RetryPolicy::default()
        };
        self.certificate.client(&self.url, &self.name, policy)
    }
}

pub(super) async fn run(command: &Command) -> Result<(), Failure> {
    let text = match command {
        Command::Show(arguments) => show(arguments).await?,
        Command::History(arguments) => history(arguments).await?,
        Command::Override(arguments) => override_holder(arguments).await?,
    };
    unless_reader_left(io::stdout().write_all(text.as_bytes()))
}

fn vm_name(text: &str) -> Result<VmName, Failure> {
    VmName::new(text).map_err(|error| {
        let remedy = error.remedy();
        Failure::new(Exit::Usage, error).remedy(remedy)
    })
}

fn json(reply: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(reply).map_err(|error| Failure::new(Exit::Failed, error))?;
    Ok(text + "\n")
}

async fn show(arguments: &ShowArguments) -> Result<String, Failure> {
    let client = arguments.place.client()?;
    match &arguments.vm {
        Some(vm) => {
            let reply = client.read(&vm_name(vm)?).await?;
            match arguments.json {
                true => json(&reply),
                false => Ok(table(&[reply])),
            }
        }
        None => {
            let reply = client.list().await?;
            match arguments.json {
                true => json(&reply),
                false => Ok(table(&reply.vms)),
            }
        }
    }
}

async fn history(arguments: &HistoryArguments) -> Result<String, Failure> {
    let client = arguments.place.client()?;
    let reply = client.history(&vm_name(&arguments.vm)?).await?;
    match arguments.json {
        true => json(&reply),
        false => Ok(lines(&reply)),
    }
}

async fn override_holder(arguments: &OverrideArguments) -> Result<String, Failure> {
    let client = arguments.place.client()?;
    let vm = vm_name(&arguments.vm)?;
    let now = client.read(&vm).await?;
    let claim = override_claim(&now, &arguments.fenced, arguments.generation, &operator()?)?;
    match client.claim(&vm, &claim).await? {
        Outcome::Granted => Ok(done(&vm, &arguments.fenced, &claim)),
        Outcome::Refused { generation, holder } => {
            let holder = holder.map_or_else(|| "nobody".into(), |holder| holder.to_string());
            Err(changed(&vm, generation, &holder))
        }
    }
}

/// The claim that ends the generation in `now`, if `fenced` is its holder.
fn override_claim(
    now: &VmReply,
    fenced: &str,
    generation: Option<u64>,
    operator: &str,
) -> Result<Claim, Failure> {
    let holder = now
        .holder
        .as_ref()
        .map_or("nobody", |holder| holder.as_str());
    if holder != fenced {
        return Err(changed(&now.vm, now.generation, holder));
    }
    let new = generation.unwrap_or(now.generation.saturating_add(1));
    let usage = |error: arbiter::register::Invalid| {
        let remedy = error.remedy();
        Failure::new(Exit::Usage, error).remedy(remedy)
    };
    let operator = Holder::new(format!("{OVERRIDE}.{operator}")).map_err(usage)?;
    Claim::new(now.generation, new, operator).map_err(usage)
}

fn changed(vm: &VmName, generation: u64, holder: &str) -> Failure {
    let error =
        anyhow::anyhow!("nothing was done: generation {generation} of {vm} is held by {holder}");
    let remedy = "fence that host, then name it exactly so with --fenced";
    Failure::new(Exit::Refused, error).remedy(remedy)
}

fn done(vm: &VmName, fenced: &str, claim: &Claim) -> String {
    let (old, new) = (claim.expected_generation(), claim.new_generation());
    format!(
        "{vm}: generation {old} of {fenced} is over; {new} is held by {}\n\
         Every copy of an older generation is refused from now on. A host that runs {vm} alone is not\n\
         reached by this: {fenced} must stay off.\n\
         Start the guest again with: understudy primary --config FILE --after-generation {new}\n",
        claim.holder()
    )
}

/// Who does it, made unique to this run: an override that is repeated must not be taken for the same.
fn operator() -> Result<String, Failure> {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    let plain: String = user
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        .take(32)
        .collect();
    let host = crate::cli::guest::holder_name()?;
    Ok(if plain.is_empty() {
        host
    } else {
        format!("{plain}.{host}")
    })
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
        let (vm, generation) = (reply.vm.as_str(), reply.generation);
        let _ = writeln!(text, "{vm:width$}  {generation:>10}  {holder}");
    }
    text
}

fn lines(reply: &HistoryReply) -> String {
    if reply.grants.is_empty() {
        return format!("{} was never claimed\n", reply.vm);
    }
    let mut text = format!("generation  after       holder of {}\n", reply.vm);
    for grant in &reply.grants {
        let (generation, after) = (grant.generation, grant.expected_generation);
        let _ = writeln!(text, "{generation:>10}  {after:<10}  {}", grant.holder);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use arbiter::protocol::Grant;

    fn reply(vm: &str, generation: u64, holder: Option<&str>) -> VmReply {
        VmReply {
            vm: VmName::new(vm).unwrap(),
            generation,
            holder: holder.map(|holder| Holder::new(holder).unwrap()),
        }
    }

    #[test]
    fn table_is_aligned() {
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
    fn history_is_aligned() {
        let claim = Claim::new(3, 5, Holder::new("host-a#6f").unwrap()).unwrap();
        let grants = vec![Grant::from(&claim)];
        let vm = VmName::new("web").unwrap();
        let text = lines(&HistoryReply { vm, grants });
        assert_eq!(
            text,
            "generation  after       holder of web\n         5  3           host-a#6f\n"
        );
    }

    #[test]
    fn an_override_demands_the_holders_name() {
        let now = reply("web", 4, Some("host-a.1"));
        let wish = |fenced, generation| override_claim(&now, fenced, generation, "op.1");
        let claim = wish("host-a.1", None).unwrap();
        assert_eq!(
            (claim.expected_generation(), claim.new_generation()),
            (4, 5)
        );
        assert_eq!(claim.holder().as_str(), "override.op.1");
        assert!(done(&now.vm, "host-a.1", &claim).contains("--after-generation 5"));
        for wrong in ["host-a", "host-b.1", "nobody", ""] {
            let failure = wish(wrong, None).unwrap_err();
            assert_eq!(failure.exit, Exit::Refused);
            assert!(
                failure.text().contains("held by host-a.1"),
                "{}",
                failure.text()
            );
        }
        assert_eq!(wish("host-a.1", Some(18)).unwrap().new_generation(), 18);
        assert_eq!(wish("host-a.1", Some(4)).unwrap_err().exit, Exit::Usage);
        let never = reply("web", 0, None);
        assert!(override_claim(&never, "nobody", Some(18), "op.1").is_ok());
        assert!(override_claim(&never, "host-a.1", None, "op.1").is_err());
    }
}
