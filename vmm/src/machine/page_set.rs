//! A set of pages of guest memory, one bit each.

#![forbid(unsafe_code)]

/// Bytes of a page, as KVM counts them.
pub const PAGE_BYTES: u64 = 4096;

/// A set of pages of guest memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    /// The pages of `words`: page `n` is bit `n % 64` of word `n / 64`.
    #[must_use]
    pub const fn from_words(words: Vec<u64>) -> Self {
        Self { words }
    }

    /// All pages of a memory of `bytes` bytes.
    #[must_use]
    pub fn all(bytes: u64) -> Self {
        let pages = bytes / PAGE_BYTES;
        let words = (0..pages.div_ceil(64))
            .map(|word| match pages - word * 64 {
                left if left < 64 => (1 << left) - 1,
                _ => u64::MAX,
            })
            .collect();
        Self { words }
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// The pages, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        (0..).zip(&self.words).flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| u64::from(left.trailing_zeros()))?;
                left &= left - 1;
                Some(at * 64 + bit)
            })
        })
    }

    /// Adds all pages of `other`.
    pub fn union(&mut self, other: &Self) {
        self.add(&other.words);
    }

    /// Adds the pages of the words `other`.
    pub fn add(&mut self, other: &[u64]) {
        if self.words.len() < other.len() {
            self.words.resize(other.len(), 0);
        }
        for (ours, theirs) in self.words.iter_mut().zip(other) {
            *ours |= theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_pages_of_a_memory_are_counted_to_the_last() {
        for pages in [0, 1, 63, 64, 65, 200] {
            let all = PageSet::all(pages * PAGE_BYTES);
            assert_eq!(all.count(), pages);
            assert!(all.iter().eq(0..pages));
        }
    }

    proptest! {
        #[test]
        fn a_set_is_its_bits(words in proptest::collection::vec(any::<u64>(), 0..5)) {
            let set = PageSet::from_words(words.clone());
            let expected: Vec<u64> = (0..words.len() as u64 * 64)
                .filter(|n| words[usize::try_from(*n / 64).expect("small")] >> (n % 64) & 1 == 1)
                .collect();
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(set.count(), expected.len() as u64);
        }
    }
}
