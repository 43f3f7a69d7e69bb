//! The witness binary: the guest's service, its benchmarks of processor and memory, its debugger, and its first process.
//!
//! Called as `init` (the initramfs links `/init` here) it forbids the time-stamp counter to itself
//! and to everything started after it, then becomes the start script.

#![forbid(unsafe_code)]

mod debugger;
mod server;
mod spin;
mod writing;

use rustix::process::{TimeStampCounterReadability, set_time_stamp_counter_readability};
use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

const USAGE: &str = "\
usage: witness serve [--requests N]   serve TCP ports 7 (witness), 9 (sink), 19 (source);
                                      exit once N requests were applied and answered
       witness spin N                 N million rounds of integer work; prints result and guest time
       witness write MIB PAGES        fill so much memory, then write into so many pages each second
       witness debug PID N            steps and stops a program that computes, N rounds of 500 traps
       witness init-exec CMD [ARG..]  run CMD with the time-stamp counter forbidden";

/// Start script of the initramfs.
const START_SCRIPT: &str = "/etc/start";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [name, ..] if name.rsplit('/').next() == Some("init") => without_tsc(&[START_SCRIPT]),
        [_, "serve"] => serve(None),
        [_, "serve", "--requests", count] => count
            .parse()
            .map_or_else(|_| usage(), |count| serve(Some(count))),
        [_, "spin", count] => count.parse().map_or_else(|_| usage(), spin::run),
        [_, "write", mib, pages] => match (mib.parse(), pages.parse()) {
            (Ok(mib), Ok(pages)) => writing::run(mib, pages),
            _ => usage(),
        },
        [_, "debug", process, rounds] => match (process.parse(), rounds.parse()) {
            (Ok(process), Ok(rounds)) => debugger::run(process, rounds),
            _ => usage(),
        },
        [_, "init-exec", command @ ..] if !command.is_empty() => without_tsc(command),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn serve(requests: Option<u64>) -> ExitCode {
    match server::serve(requests) {
        Ok(applied) => {
            println!("witness: served {applied} requests");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("witness: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Replaces this process by `command`; RDTSC and RDTSCP in it and in all its children end in
/// SIGSEGV (CR4.TSD), because their value would differ between primary and backup.
fn without_tsc(command: &[&str]) -> ExitCode {
    if let Err(error) =
        set_time_stamp_counter_readability(TimeStampCounterReadability::RaiseSIGSEGV)
    {
        eprintln!("witness: cannot forbid the time-stamp counter: {error}");
        return ExitCode::FAILURE;
    }
    let error = Command::new(command[0]).args(&command[1..]).exec();
    eprintln!("witness: cannot run {}: {error}", command[0]);
    ExitCode::FAILURE
}
