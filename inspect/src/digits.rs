//! Numbers appended to text, without the machinery of `fmt`: a listing has a dozen in each of millions of
//! lines, and formatting them took most of its time.
//!
//! Eight digits are made at a time in one word, and all of it is copied whatever is needed of it: a copy of
//! known length is an instruction, and one of as many bytes as there are digits is a call.

#![forbid(unsafe_code)]

const HEX: [u8; 16] = *b"0123456789abcdef";
/// `0` in every byte.
const ZEROS: u64 = 0x3030_3030_3030_3030;
/// What `0` has and a blank has not, in every byte.
const TO_BLANKS: u64 = 0x1010_1010_1010_1010;
const EIGHT_DIGITS: u64 = 100_000_000;

/// The eight digits of `number` below 10^8 as values, not characters; the first in the lowest byte.
///
/// Each step halves all its parts at once: by 10^4, by 100, by 10. The products divide, rounded down, for
/// every value below the square of the divisor.
const fn eight(number: u64) -> u64 {
    let high = number / 10_000;
    let fours = high | ((number - high * 10_000) << 32);
    let high = ((fours * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let twos = high | ((fours - high * 100) << 16);
    let high = ((twos * 103) >> 10) & 0x000f_000f_000f_000f;
    high | ((twos - high * 10) << 8)
}

/// Every byte in decimal, and how many digits it has.
const BYTES: [([u8; 3], u8); 256] = {
    let mut bytes = [([0; 3], 0); 256];
    let mut number = 0;
    while number < 256 {
        let digits = eight(number as u64);
        let zeros = zeros_before(digits);
        let text = ((digits | ZEROS) >> (8 * zeros)).to_le_bytes();
        bytes[number] = ([text[0], text[1], text[2]], 8 - zeros as u8);
        number += 1;
    }
    bytes
};

/// Appends `number` in decimal.
pub(crate) fn push(out: &mut Vec<u8>, number: u64) {
    if number < EIGHT_DIGITS {
        return push_left(out, number);
    }
    let high = number / EIGHT_DIGITS;
    if high < EIGHT_DIGITS {
        push_left(out, high);
    } else {
        push_left(out, high / EIGHT_DIGITS);
        push_last::<8>(out, high % EIGHT_DIGITS);
    }
    push_last::<8>(out, number % EIGHT_DIGITS);
}

/// Of eight digits, how many are zeros before the number; at least one digit is shown, of 0 the last.
const fn zeros_before(digits: u64) -> u32 {
    let zeros = digits.trailing_zeros() / 8;
    if zeros < 8 { zeros } else { 7 }
}

/// Appends `number` below 10^8 without zeros before it.
#[inline]
fn push_left(out: &mut Vec<u8>, number: u64) {
    let digits = eight(number);
    let zeros = zeros_before(digits);
    let text = ((digits | ZEROS) >> (8 * zeros)).to_le_bytes();
    push_short(out, &text, 8 - zeros as usize);
}

/// Appends the last `DIGITS` digits, at most 8, of `number` below 10^8.
#[inline]
pub(crate) fn push_last<const DIGITS: usize>(out: &mut Vec<u8>, number: u64) {
    let text = (eight(number) | ZEROS) >> (8 * (8 - DIGITS));
    push_short(out, &text.to_le_bytes(), DIGITS);
}

/// Appends `number` in decimal, blanks before it up to `WIDTH`, at most 16.
#[inline]
pub(crate) fn push_right<const WIDTH: usize>(out: &mut Vec<u8>, number: u64) {
    if number >= const { 10_u64.pow(if WIDTH < 8 { WIDTH as u32 } else { 8 }) } {
        return push_right_long(out, number, WIDTH);
    }
    let digits = eight(number);
    let before = (1_u64 << (8 * zeros_before(digits))) - 1;
    let text = (digits | ZEROS) & !(before & TO_BLANKS);
    if WIDTH < 8 {
        let text = text >> (8 * (8 - WIDTH));
        push_short(out, &text.to_le_bytes(), WIDTH);
    } else {
        push_short(out, &[b' '; 8], WIDTH - 8);
        out.extend_from_slice(&text.to_le_bytes());
    }
}

fn push_right_long(out: &mut Vec<u8>, number: u64, width: usize) {
    let length = number.checked_ilog10().unwrap_or(0) as usize + 1;
    push_short(out, &[b' '; 16], width.saturating_sub(length));
    push(out, number);
}

/// Appends `number` in decimal.
#[inline]
pub(crate) fn push_byte(out: &mut Vec<u8>, number: u8) {
    let (text, length) = &BYTES[usize::from(number)];
    push_short(out, text, usize::from(*length));
}

/// Appends the first `length` bytes of `text`.
#[inline]
pub(crate) fn push_short<const N: usize>(out: &mut Vec<u8>, text: &[u8; N], length: usize) {
    let at = out.len();
    out.extend_from_slice(text);
    out.truncate(at + length);
}

/// Appends the last `DIGITS` hexadecimal digits of `number`, at most 16.
#[inline]
pub(crate) fn push_hex<const DIGITS: usize>(out: &mut Vec<u8>, number: u64) {
    let mut text = [b'0'; DIGITS];
    let mut rest = number;
    for digit in text.iter_mut().rev() {
        *digit = HEX[(rest & 15) as usize];
        rest >>= 4;
    }
    out.extend_from_slice(&text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_division_is_exact() {
        for number in (0..10_000).chain((0..10_000).map(|high| high * 10_000 + 9_999)) {
            let mut out = Vec::new();
            push_last::<8>(&mut out, number);
            assert_eq!(out, format!("{number:08}").as_bytes());
        }
    }

    proptest! {
        #[test]
        fn they_are_those_of_fmt(number: u64, shift in 0_u32..64) {
            let number = number >> shift;
            let mut out = Vec::new();
            push(&mut out, number);
            push_right::<5>(&mut out, number);
            push_right::<10>(&mut out, number);
            push_byte(&mut out, (number & 0xff) as u8);
            push_last::<6>(&mut out, number % EIGHT_DIGITS);
            push_hex::<16>(&mut out, number);
            push_hex::<4>(&mut out, number);
            let (byte, low, six) = (number & 0xff, number & 0xffff, number % 1_000_000);
            let expected = format!("{number}{number:>5}{number:>10}{byte}{six:06}{number:016x}{low:04x}");
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
