//! Numbers appended to text, without the machinery of `fmt`: a listing has a dozen in each of millions of
//! lines, and formatting them took most of its time.

#![forbid(unsafe_code)]

const HEX: [u8; 16] = *b"0123456789abcdef";

/// Appends `number` in decimal.
pub(crate) fn push(out: &mut Vec<u8>, number: u64) {
    push_padded(out, number, 0, b'0');
}

/// Appends `number` in decimal, blanks before it up to `width`.
pub(crate) fn push_right(out: &mut Vec<u8>, number: u64, width: usize) {
    push_padded(out, number, width, b' ');
}

/// Appends `number` in decimal, zeros before it up to `width`.
pub(crate) fn push_zeros(out: &mut Vec<u8>, number: u64, width: usize) {
    push_padded(out, number, width, b'0');
}

fn push_padded(out: &mut Vec<u8>, number: u64, width: usize, padding: u8) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number).as_bytes();
    let missing = width.saturating_sub(digits.len());
    out.resize(out.len() + missing, padding);
    out.extend_from_slice(digits);
}

/// Appends the last `digits` hexadecimal digits of `number`.
pub(crate) fn push_hex(out: &mut Vec<u8>, number: u64, digits: u32) {
    let (at, digits) = (out.len(), digits.min(16) as usize);
    out.extend_from_slice(&[b'0'; 16]);
    out.truncate(at + digits);
    let mut rest = number;
    for digit in out[at..].iter_mut().rev() {
        *digit = HEX[(rest & 15) as usize];
        rest >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn they_are_those_of_fmt(number: u64, shift in 0_u32..64, width in 0_usize..24) {
            let number = number >> shift;
            let mut out = Vec::new();
            push(&mut out, number);
            push_right(&mut out, number, width);
            push_zeros(&mut out, number, width);
            push_hex(&mut out, number, 16);
            push_hex(&mut out, number, 4);
            let low = number & 0xffff;
            let expected = format!("{number}{number:>width$}{number:0width$}{number:016x}{low:04x}");
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
