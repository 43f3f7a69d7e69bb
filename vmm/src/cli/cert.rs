//! `understudy cert`: an authority of one's own, and certificates for hosts, for a start.

#![forbid(unsafe_code)]

use super::exit::{Exit, Failure};
use clap::{Args, Subcommand};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use tls::issue::{self, IssueError, Issued};

/// The authority's files in its directory.
const AUTHORITY: &str = "ca";

/// Make certificates: an authority, and one per host, arbiter and operator.
///
/// For a start, and for pairs without an authority of their own. Certificates of any other authority do
/// as well: a DNS name in each, good for both sides of a connection. What a name may do is said where
/// it is checked: [tls] in the virtual machine's file, and the arbiter's --access file.
#[derive(Debug, Subcommand)]
#[command(after_long_help = "\
Examples:
    $ understudy cert authority --dir ca
    $ understudy cert issue --dir ca --name host-a --out tls-a
    $ understudy cert issue --dir ca --name host-b --out tls-b
    $ understudy cert issue --dir ca --name arbiter --out tls-arbiter")]
pub(super) enum Command {
    Authority(AuthorityArguments),
    Issue(IssueArguments),
}

/// Make an authority: ca.pem, which every machine gets, and ca.key, which stays where it is.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy cert authority --dir ca

Whoever has ca.key can be anybody: keep it off the hosts.")]
pub(super) struct AuthorityArguments {
    /// Directory for its files; made if needed. Files that are there are never overwritten.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// How long it is valid.
    #[arg(long, value_name = "N", default_value_t = 3_650)]
    days: u32,
}

/// Make a certificate with one name: NAME.pem, NAME.key, and a copy of ca.pem beside them.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy cert issue --dir ca --name host-a --out tls-a
    $ scp -r tls-a host-a:/etc/understudy/tls")]
pub(super) struct IssueArguments {
    /// The authority's directory.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The name: a host name, such as host-a or arbiter.example.org.
    #[arg(long)]
    name: String,
    /// Directory for the files; made if needed. Files that are there are never overwritten.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long it is valid.
    #[arg(long, value_name = "N", default_value_t = 365)]
    days: u32,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    let now = OffsetDateTime::now_utc();
    match command {
        Command::Authority(arguments) => {
            fs::create_dir_all(&arguments.dir)?;
            write(
                &arguments.dir,
                AUTHORITY,
                &issue::authority(now, arguments.days)?,
            )
        }
        Command::Issue(arguments) => {
            let file = |suffix: &str| arguments.dir.join(format!("{AUTHORITY}.{suffix}"));
            let (certificate, key) = (read(&file("pem"))?, read(&file("key"))?);
            let issued = issue::certificate(&key, &arguments.name, now, arguments.days)?;
            fs::create_dir_all(&arguments.out)?;
            write(&arguments.out, &arguments.name, &issued)?;
            let copy = arguments.out.join(format!("{AUTHORITY}.pem"));
            match copy.exists() && read(&copy)? == certificate {
                true => Ok(()),
                false => create(&copy, 0o644, &certificate),
            }
        }
    }
}

fn write(dir: &Path, name: &str, issued: &Issued) -> Result<(), Failure> {
    // The key first: a certificate without its key would be in the way of a second try.
    create(&dir.join(format!("{name}.key")), 0o600, &issued.key)?;
    create(&dir.join(format!("{name}.pem")), 0o644, &issued.certificate)
}

fn create(path: &Path, mode: u32, text: &str) -> Result<(), Failure> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(mode);
    let written = options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("cannot write {}", path.display()));
        Failure::new(Exit::Failed, error)
            .remedy("files are never overwritten: move it away, or give another directory")
    })
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("cannot read {}", path.display()));
        Failure::new(Exit::Failed, error).remedy("`understudy cert authority` makes one")
    })
}

impl From<IssueError> for Failure {
    fn from(error: IssueError) -> Self {
        let exit = match &error {
            IssueError::Name(_) => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tls::{Identity, IdentityFiles};

    #[test]
    fn certificates_are_made_once_and_fit_together() {
        let scratch = tempfile::tempdir().unwrap();
        let (dir, out) = (scratch.path().join("ca"), scratch.path().join("tls"));
        let authority = || {
            Command::Authority(AuthorityArguments {
                dir: dir.clone(),
                days: 10,
            })
        };
        let issue = |name: &str| {
            Command::Issue(IssueArguments {
                dir: dir.clone(),
                name: name.into(),
                out: out.clone(),
                days: 10,
            })
        };
        assert!(
            run(&issue("host-a"))
                .unwrap_err()
                .text()
                .contains("cert authority")
        );
        run(&authority()).unwrap();
        run(&issue("host-a")).unwrap();
        run(&issue("host-b")).unwrap();
        for again in [authority(), issue("host-a")] {
            assert!(
                run(&again)
                    .unwrap_err()
                    .text()
                    .contains("never overwritten")
            );
        }
        assert_eq!(run(&issue("*")).unwrap_err().exit, Exit::Usage);
        for key in [dir.join("ca.key"), out.join("host-a.key")] {
            assert_eq!(
                fs::metadata(key).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        let identity = Identity::load(&IdentityFiles {
            certificate: out.join("host-a.pem"),
            key: out.join("host-a.key"),
            authority: out.join("ca.pem"),
        });
        assert_eq!(identity.unwrap().names(), ["host-a"]);
    }
}
