//! The operator's own fence: a command that has to succeed between a grant and going live.
//!
//! The grant alone keeps the other side from releasing output. Some operators want more before a guest
//! runs here: the other host's power off, its switch port closed. The command is run after the arbiter
//! granted a generation that follows another, and only when it ends with status 0 in time does the node
//! learn of the grant. Otherwise the node asks again, is granted the same again, and the command runs
//! again: nothing goes live meanwhile.
//!
//! The process itself cannot start programs once it is confined, so a helper is started before: this very
//! program as `fence-helper`, which can do nothing but run that one command when it is told to. One line
//! in, one line out.

use super::session::RuntimeError;
use crate::config::Fence;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use wait_timeout::ChildExt;

/// The helper, and the conversation with it.
#[derive(Debug, Clone)]
pub(super) struct Fencer {
    helper: Arc<Mutex<Helper>>,
}

#[derive(Debug)]
struct Helper {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It ends by itself when its orders end; it must not outlive us either way.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Fencer {
    /// Starts the helper for `fence`, on behalf of `vm` and `host`.
    pub(super) fn start(fence: &Fence, vm: &str, host: &str) -> Result<Self, RuntimeError> {
        let failed = |source| RuntimeError::Io {
            operation: "start the fence's helper",
            source,
        };
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command
            .arg("fence-helper")
            .arg("--time-limit-s")
            .arg(fence.time_limit_s.to_string())
            .arg("--")
            .args(&fence.command)
            .env("UNDERSTUDY_VM", vm)
            .env("UNDERSTUDY_HOST", host)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Self::converse(command).map_err(failed)
    }

    pub(super) fn converse(mut command: Command) -> io::Result<Self> {
        let mut process = command.spawn()?;
        let pipes = (process.stdin.take(), process.stdout.take());
        let (Some(orders), Some(answers)) = pipes else {
            return Err(io::Error::other("a helper without pipes"));
        };
        let answers = BufReader::new(answers);
        let helper = Helper {
            process,
            orders,
            answers,
        };
        Ok(Self {
            helper: Arc::new(Mutex::new(helper)),
        })
    }

    /// Runs the command for `generation`; blocks until it ended.
    ///
    /// # Errors
    /// When it failed, took too long, or the helper is gone; says which.
    pub(super) fn fence(&self, generation: u64) -> Result<(), String> {
        let mut helper = self.helper.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = |error: io::Error| format!("the fence's helper is gone: {error}");
        writeln!(helper.orders, "{generation}").map_err(gone)?;
        helper.orders.flush().map_err(gone)?;
        let mut answer = String::new();
        helper.answers.read_line(&mut answer).map_err(gone)?;
        match answer.trim() {
            "ok" => Ok(()),
            "" => Err("the fence's helper is gone".into()),
            why => Err(format!("the fence command {why}")),
        }
    }
}

/// The helper's life: for every line of `orders`, a generation, runs `command` and answers.
///
/// # Errors
/// When the conversation breaks.
pub fn fence_helper(
    command: &[String],
    time_limit: Duration,
    orders: impl BufRead,
    mut answers: impl Write,
) -> io::Result<()> {
    for generation in orders.lines() {
        let generation = generation?;
        let answer = match run(command, &generation, time_limit) {
            Ok(Some(status)) if status.success() => "ok".to_owned(),
            Ok(Some(status)) => format!("ended with {status}"),
            Ok(None) => format!("did not end within {} s", time_limit.as_secs()),
            Err(error) => format!("cannot be started: {error}"),
        };
        writeln!(answers, "{answer}")?;
        answers.flush()?;
    }
    Ok(())
}

/// How the command ended; none when its time was up, and it was killed.
fn run(command: &[String], generation: &str, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("UNDERSTUDY_GENERATION", generation)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let ended = child.wait_timeout(limit)?;
    if ended.is_none() {
        child.kill()?;
        child.wait()?;
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(script: &str, limit: Duration) -> String {
        let command: Vec<String> = ["sh", "-c", script].map(str::to_owned).into();
        let mut said = Vec::new();
        fence_helper(&command, limit, &b"4\n5\n"[..], &mut said).unwrap();
        String::from_utf8(said).unwrap()
    }

    #[test]
    fn the_command_has_to_succeed_in_time() {
        let long = Duration::from_secs(600);
        let four = "test \"$UNDERSTUDY_GENERATION\" = 4";
        assert_eq!(answers(four, long), "ok\nended with exit status: 1\n");
        let slow = answers("exec sleep 600", Duration::ZERO);
        assert_eq!(slow, "did not end within 0 s\ndid not end within 0 s\n");
        let mut said = Vec::new();
        let absent = ["/nonexistent".to_owned()];
        fence_helper(&absent, long, &b"4\n"[..], &mut said).unwrap();
        let said = String::from_utf8(said).unwrap();
        assert!(said.starts_with("cannot be started: "), "{said}");
    }

    #[test]
    fn a_helper_that_is_gone_is_no_success() {
        let mut cat = Command::new("sh");
        cat.args([
            "-c",
            "read g; echo ok; read g; echo ended with exit status: 3",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
        let fencer = Fencer::converse(cat).unwrap();
        assert_eq!(fencer.fence(4), Ok(()));
        let failed = fencer.fence(5).unwrap_err();
        assert_eq!(failed, "the fence command ended with exit status: 3");
        assert!(fencer.fence(6).unwrap_err().contains("is gone"));
    }
}
