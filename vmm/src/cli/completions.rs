//! `understudy completions` and `understudy man`: what shells and man want to know about the commands.

#![forbid(unsafe_code)]

use super::exit::Failure;
use super::{Cli, unless_reader_left};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::{self, Write};
use std::path::PathBuf;

/// Print completions of all commands for a shell.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy completions bash > /etc/bash_completion.d/understudy
    $ understudy completions zsh > \"${fpath[1]}/_understudy\"
    $ understudy completions fish > ~/.config/fish/completions/understudy.fish")]
pub(super) struct CompletionsArguments {
    /// Which shell.
    shell: Shell,
}

/// Write a manual page per command.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
    $ understudy man /usr/local/share/man/man1
    $ man understudy-log-ls")]
pub(super) struct ManArguments {
    /// Directory for the pages; it must be there.
    dir: PathBuf,
}

pub(super) fn completions(arguments: &CompletionsArguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Cli::command(),
        "understudy",
        &mut script,
    );
    unless_reader_left(io::stdout().write_all(&script))
}

pub(super) fn man(arguments: &ManArguments) -> Result<(), Failure> {
    clap_mangen::generate_to(Cli::command(), &arguments.dir)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        man(&ManArguments { dir: path.clone() }).unwrap();
        for page in ["understudy.1", "understudy-log-ls.1", "understudy-replay.1"] {
            let text = std::fs::read_to_string(path.join(page)).unwrap();
            assert!(text.contains(".SH"), "{page}");
        }
    }

    #[test]
    fn completions_know_the_commands() {
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "understudy", &mut script);
        let script = String::from_utf8(script).unwrap();
        assert!(
            script.contains("understudy__subcmd__log__subcmd__ls"),
            "{script}"
        );
    }
}
