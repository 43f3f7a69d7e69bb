//! Numbers appended to text, without the machinery of `fmt`: a listing has a dozen in each of millions of
//! lines, and formatting them took most of its time.

#![forbid(unsafe_code)]

const HEX: [u8; 16] = *b"0123456789abcdef";

/// Appends `number` in decimal.
pub(crate) fn push(out: &mut String, number: u64) {
    out.push_str(itoa::Buffer::new().format(number));
}

/// Appends `number` in decimal, blanks before it up to `width`.
pub(crate) fn push_right(out: &mut String, number: u64, width: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number);
    (digits.len()..width).for_each(|_| out.push(' '));
    out.push_str(digits);
}

/// Appends `number` in decimal, zeros before it up to `width`.
pub(crate) fn push_zeros(out: &mut String, number: u64, width: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number);
    (digits.len()..width).for_each(|_| out.push('0'));
    out.push_str(digits);
}

/// Appends the last `digits` hexadecimal digits of `number`.
pub(crate) fn push_hex(out: &mut String, number: u64, digits: u32) {
    for digit in (0..digits).rev() {
        let nibble = (number >> (digit * 4)) & 15;
        out.push(HEX[nibble as usize].into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn they_are_those_of_fmt(number: u64, width in 0usize..24) {
            let mut out = String::new();
            push(&mut out, number);
            push_right(&mut out, number, width);
            push_zeros(&mut out, number, width);
            push_hex(&mut out, number, 16);
            push_hex(&mut out, number, 4);
            let low = number & 0xffff;
            let expected = format!("{number}{number:>width$}{number:0width$}{number:016x}{low:04x}");
            prop_assert_eq!(out, expected);
        }
    }
}
