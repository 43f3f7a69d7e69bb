//! The project's own commands. `cargo xtask --help` lists them.
//!
//! xtask runs commands and reads files; it imports no crate of the product. Every command prints what
//! it runs, shows progress for what takes long, and never hides the output of a failure. `check` is
//! read-only; `fix` is the only command that rewrites sources.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "times its steps; nothing here reaches a guest"
)]

mod bench;
mod cache;
mod check;
mod deb;
mod demo;
mod drill;
mod fix;
mod fuzz;
mod images;
mod kvm;
mod model;
mod packages;
mod progress;
mod room;
mod run;
mod sim;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::Parser;

/// Commands of the Understudy repository.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    max_term_width = 100
)]
enum Command {
    /// The read-only gate: formatting, clippy, house rules, dependency policy, tests without KVM
    Check(check::Args),
    /// Rewrite sources: rustfmt, and clippy's machine-applicable suggestions. Nothing else rewrites
    Fix,
    /// Everything the README promises: packages, gate, simulation, images, record/replay, drills
    Test(test::Args),
    /// A pair on one machine: kill the primary's host and watch the client continue
    Demo(run::Passthrough),
    /// Measure replicated against unreplicated; writes target/bench/latest.json
    Bench(run::Passthrough),
    /// Make a Debian package: program, units, manual pages
    Deb,
    /// Build the guest kernel, its initramfs, the lab's host kernel and the emulator into the cache
    Images(images::Args),
    /// The whole pair, arbiter and network in one thread, from a seed
    Sim(run::Passthrough),
    /// The go-live protocol in every interleaving within bounds
    Model(run::Passthrough),
    /// Record and replay a real guest on KVM (in the lab where this machine has none)
    Kvm(run::Passthrough),
    /// Failure drills with real processes: all of them, or those named
    Drill(run::Passthrough),
    /// Fuzz one decoder with cargo-fuzz (needs cargo-fuzz)
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Check(args) => check::run(&args),
        Command::Fix => fix::run(),
        Command::Test(args) => test::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Deb => deb::run(),
        Command::Images(args) => images::run(&args),
        Command::Sim(args) => sim::run(&args),
        Command::Model(args) => model::run(&args),
        Command::Kvm(args) => kvm::run(&args),
        Command::Drill(args) => drill::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
