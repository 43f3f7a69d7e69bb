//! The command line: what each command takes, its help, and where it goes.
//!
//! Every command has an example in its long help. Results go to standard output, as text for people
//! or, with `--json`, as data; what happens meanwhile goes to standard error through `tracing`.

mod arbiter;
mod cert;
mod completions;
mod doctor;
mod exit;
mod fence_helper;
mod guest;
mod log;
mod meter;
mod replay;
mod snapshot;
mod status;

use clap::{Parser, Subcommand, ValueEnum};
use exit::{Exit, Failure};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Environment variable that chooses what is logged.
const FILTER_VARIABLE: &str = "UNDERSTUDY_LOG";

/// Keeps a Linux guest running when the x86 host under it dies.
#[derive(Debug, Parser)]
#[command(name = "understudy", version, about, max_term_width = 100)]
#[command(after_help = "\
Exit statuses and messages are explained in docs/errors.md.
UNDERSTUDY_LOG chooses what is logged, as in UNDERSTUDY_LOG=debug or UNDERSTUDY_LOG=vmm=trace,info.")]
pub(crate) struct Cli {
    /// How to write the program's own log to standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(guest::RunArguments),
    Primary(guest::PrimaryArguments),
    Backup(guest::BackupArguments),
    Standby(guest::StandbyArguments),
    Status(status::StatusArguments),
    Stop(status::StopArguments),
    Handover(status::HandoverArguments),
    Snapshot(snapshot::Arguments),
    Replay(replay::Arguments),
    Arbiter(arbiter::Arguments),
    #[command(subcommand)]
    Cert(cert::Command),
    Doctor(doctor::Arguments),
    #[command(subcommand)]
    Log(log::Command),
    #[command(hide = true)]
    FenceHelper(fence_helper::Arguments),
    Completions(completions::CompletionsArguments),
    Man(completions::ManArguments),
}

impl Cli {
    /// Runs the command.
    pub(crate) fn run(self) -> ExitCode {
        start_logging(self.log_format);
        let result = match self.command {
            Command::Run(arguments) => guest::run(&arguments),
            Command::Primary(arguments) => guest::primary(&arguments),
            Command::Backup(arguments) => guest::backup(&arguments),
            Command::Standby(arguments) => guest::standby(&arguments),
            Command::Status(arguments) => status::status(&arguments),
            Command::Stop(arguments) => status::stop(&arguments),
            Command::Handover(arguments) => status::handover(&arguments),
            Command::Snapshot(arguments) => snapshot::run(&arguments),
            Command::Replay(arguments) => replay::run(&arguments),
            Command::Arbiter(arguments) => arbiter::run(arguments),
            Command::Cert(command) => cert::run(&command),
            Command::Doctor(arguments) => doctor::run(&arguments),
            Command::Log(command) => log::run(&command),
            Command::FenceHelper(arguments) => fence_helper::run(&arguments),
            Command::Completions(arguments) => completions::completions(&arguments),
            Command::Man(arguments) => completions::man(&arguments),
        };
        match result {
            Ok(()) => Exit::Done.into(),
            Err(failure) => {
                // Nothing is left to tell it to when standard error is closed.
                let _ = writeln!(io::stderr(), "{}", failure.text());
                failure.exit.into()
            }
        }
    }
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::builder()
        .with_env_var(FILTER_VARIABLE)
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// Whether writing failed only because the reader has seen enough (`understudy log ls | head`).
fn unless_reader_left(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            Exit::Failed,
            anyhow::Error::new(error).context("cannot write the result"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_teaches_by_example() {
        fn check(command: &clap::Command) {
            let name = command.get_name();
            for sub in command.get_subcommands() {
                check(sub);
            }
            if name == "understudy" || command.get_subcommands().next().is_some() && name == "log" {
                return;
            }
            let help = command.clone().render_long_help().to_string();
            assert!(
                help.contains("$ understudy "),
                "{name} shows no example:\n{help}"
            );
            assert!(command.get_about().is_some(), "{name} has no one-line help");
        }
        check(&Cli::command());
    }
}
