//! Bytes as hexadecimal digits: a run, or rows of sixteen with their offsets and characters.

#![forbid(unsafe_code)]

use std::fmt::{self, Write};

/// Bytes in one row of a dump.
const ROW_BYTES: usize = 16;

/// Bytes as a run of digits.
#[derive(Debug, Clone, Copy)]
pub struct Digits<'a>(pub &'a [u8]);

impl fmt::Display for Digits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Bytes as rows, each ending with a line feed; offsets count from `base`.
#[derive(Debug, Clone, Copy)]
pub struct Dump<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Offset of the first.
    pub base: u64,
}

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, row) in self.bytes.chunks(ROW_BYTES).enumerate() {
            let offset = self.base.wrapping_add((number * ROW_BYTES) as u64);
            write!(f, "{offset:08x} ")?;
            for column in 0..ROW_BYTES {
                if column == ROW_BYTES / 2 {
                    f.write_char(' ')?;
                }
                match row.get(column) {
                    Some(byte) => write!(f, " {byte:02x}")?,
                    None => f.write_str("   ")?,
                }
            }
            f.write_str("  |")?;
            for &byte in row {
                let printable = byte.is_ascii_graphic() || byte == b' ';
                f.write_char(if printable { byte.into() } else { '.' })?;
            }
            f.write_str("|\n")?;
        }
        Ok(())
    }
}

/// The bytes that `text` writes as hexadecimal digits; colons and blanks between bytes are allowed.
#[must_use]
pub fn parse(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !matches!(byte, b':' | b' '))
        .map(|byte| {
            char::from(byte)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        })
        .collect::<Option<_>>()?;
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    Some(
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_have_offset_digits_and_characters() {
        let dump = Dump {
            bytes: b"GET / HTTP/1.1\r\nHost",
            base: 0x20,
        };
        assert_eq!(
            dump.to_string(),
            "00000020  47 45 54 20 2f 20 48 54  54 50 2f 31 2e 31 0d 0a  |GET / HTTP/1.1..|\n\
             00000030  48 6f 73 74                                       |Host|\n"
        );
    }

    proptest! {
        #[test]
        fn digits_are_read_as_written(bytes: Vec<u8>) {
            prop_assert_eq!(parse(&Digits(&bytes).to_string()), Some(bytes));
        }
    }
}
