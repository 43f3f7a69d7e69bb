//! A program that has memory and writes to it at a rate, for measurements of state transfers.

use std::hint::black_box;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4_096;

/// Time between two bursts of writes.
const INTERVAL: Duration = Duration::from_millis(20);

/// Takes `mib` MiB, fills them with what does not compress, says so, and from then on writes into
/// `pages_s` pages each second, one after the other, for ever.
#[expect(
    clippy::disallowed_methods,
    reason = "the guest's own clock paces what it does"
)]
pub(crate) fn run(mib: usize, pages_s: u64) -> ExitCode {
    let mut memory = vec![0_u8; mib << 20];
    for (number, piece) in memory.chunks_mut(1 << 20).enumerate() {
        fill(piece, number as u64);
        // On the exit clock a guest that makes no exit is carried on by its state: all that is filled here.
        print!(".");
        // Whoever cannot print fills nevertheless.
        let _ = std::io::stdout().flush();
    }
    println!("\nwitness: filled {mib} MiB");
    let pages = mib << 20 >> 12;
    if pages == 0 || pages_s == 0 {
        loop {
            std::thread::park();
        }
    }
    let start = Instant::now();
    let mut written = 0_u64;
    loop {
        let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = ms.saturating_mul(pages_s) / 1_000;
        while written < due {
            let page = usize::try_from(written % pages as u64).unwrap_or(0);
            let byte = &mut memory[page * PAGE_BYTES];
            *byte = byte.wrapping_add(1);
            written += 1;
        }
        black_box(&mut memory);
        std::thread::park_timeout(INTERVAL);
    }
}

/// Splitmix64's finaliser of the place.
fn fill(piece: &mut [u8], number: u64) {
    for (place, word) in piece.chunks_exact_mut(8).enumerate() {
        let place = number << 32 | place as u64;
        let mut z = place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_words_are_alike() {
        let mut memory = vec![0; 8_000];
        for (number, piece) in memory.chunks_mut(4_000).enumerate() {
            fill(piece, number as u64);
        }
        let words: std::collections::BTreeSet<&[u8]> = memory.chunks_exact(8).collect();
        assert_eq!(words.len(), 1_000);
    }
}
