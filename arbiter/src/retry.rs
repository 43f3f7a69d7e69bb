//! Asking again: short tries with growing pauses between them, and an end.
//!
//! A service that is just being started refuses connections at once, so it is the pauses that give it
//! time, not the number of tries. What a try is, and which failures another try cannot mend, its caller tells.

#![forbid(unsafe_code)]

use std::future::Future;
use std::time::Duration;

/// How long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Longest time for one try, connecting included.
    pub try_ms_max: u64,
    /// Tries before an error is returned; at least 1.
    pub tries_max: u32,
    /// Pause after the first failed try; doubles with each further one.
    pub pause_ms_min: u64,
    /// Longest pause.
    pub pause_ms_max: u64,
}

impl Default for RetryPolicy {
    /// Four tries within about 1.4 s: a claimant that must wait longer calls again.
    fn default() -> Self {
        Self {
            try_ms_max: 300,
            tries_max: 4,
            pause_ms_min: 20,
            pause_ms_max: 200,
        }
    }
}

/// Why one try brought no answer.
#[derive(Debug)]
pub(crate) enum Missed<E> {
    /// Another may.
    Failed(String),
    /// None will.
    Final(E),
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum GaveUp<E> {
    /// All tries were used up.
    Unreachable {
        /// Tries made.
        tries: u32,
        /// What happened to the last one.
        last: String,
    },
    /// See [`Missed::Final`].
    Final(E),
}

/// Tries until there is an answer, or the policy's tries are used up.
pub(crate) async fn again<T, E, F>(
    policy: RetryPolicy,
    attempt: impl Fn() -> F,
) -> Result<T, GaveUp<E>>
where
    F: Future<Output = Result<T, Missed<E>>>,
{
    let mut pause_ms = policy.pause_ms_min;
    let tries = policy.tries_max.max(1);
    let mut last = String::new();
    for number in 1..=tries {
        match attempt().await {
            Ok(answer) => return Ok(answer),
            Err(Missed::Final(error)) => return Err(GaveUp::Final(error)),
            Err(Missed::Failed(what)) => {
                tracing::debug!(number, what, "no answer from the arbiter");
                last = what;
            }
        }
        if number < tries {
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            pause_ms = pause_ms.saturating_mul(2).min(policy.pause_ms_max);
        }
    }
    Err(GaveUp::Unreachable { tries, last })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const POLICY: RetryPolicy = RetryPolicy {
        try_ms_max: 300,
        tries_max: 6,
        pause_ms_min: 20,
        pause_ms_max: 100,
    };

    fn clocked() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    }

    #[test]
    fn pauses_grow_to_the_longest_and_none_follows_the_last_try() {
        let (took, end) = clocked().block_on(async {
            let start = tokio::time::Instant::now();
            let end = again::<(), (), _>(POLICY, || async { Err(Missed::Failed("no".into())) });
            let end = end.await;
            (start.elapsed(), end)
        });
        let last = "no".to_string();
        assert_eq!(end, Err(GaveUp::Unreachable { tries: 6, last }));
        assert_eq!(took, Duration::from_millis(20 + 40 + 80 + 100 + 100));
    }

    #[test]
    fn an_answer_or_a_final_error_ends_the_tries() {
        let tries = Cell::new(0);
        let attempt = || async {
            tries.set(tries.get() + 1);
            match tries.get() {
                3 => Ok("there"),
                _ => Err(Missed::<()>::Failed("not yet".into())),
            }
        };
        assert_eq!(clocked().block_on(again(POLICY, attempt)), Ok("there"));
        assert_eq!(tries.get(), 3);
        let end = again::<(), _, _>(POLICY, || async { Err(Missed::Final("never")) });
        assert_eq!(clocked().block_on(end), Err(GaveUp::Final("never")));
    }
}
