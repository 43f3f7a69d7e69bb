//! CPU-bound work for the benchmark: integer arithmetic, no memory, no system calls in between.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

/// Runs `millions` million rounds; prints the result, which depends on every round, and the
/// guest's own idea of the time it took.
#[expect(
    clippy::disallowed_methods,
    reason = "the guest's own clock is what it measures"
)]
pub(crate) fn run(millions: u64) -> ExitCode {
    let start = Instant::now();
    let result = rounds(black_box(millions.saturating_mul(1_000_000)));
    let seconds = start.elapsed().as_secs_f64();
    println!("witness: spin {millions} result {result:016x} guest_seconds {seconds:.6}");
    ExitCode::SUCCESS
}

/// Splitmix64's state and finaliser, chained.
fn rounds(count: u64) -> u64 {
    let mut state = 0u64;
    for round in 0..count {
        let mut z = state ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state = z ^ (z >> 31);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_depends_on_every_round() {
        assert_ne!(rounds(999), rounds(1_000));
        assert_eq!(rounds(1_000), rounds(1_000));
    }
}
