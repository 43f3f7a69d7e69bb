//! Words, strings and signs of an expression, with their columns.

#![forbid(unsafe_code)]

use super::FilterError;

/// A piece of an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A word, a number or an address: what it is depends on where it stands.
    Word(String),
    /// A quoted string, its escapes resolved.
    Text(Vec<u8>),
    /// An operator or a parenthesis.
    Sign(&'static str),
    /// The end.
    End,
}

/// A token and its column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) token: Token,
    pub(super) column: usize,
}

/// Longest first, where one begins another.
const SIGNS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "=", "<", ">", "~", "!", "(", ")",
];

/// Cuts `text` into tokens; the last is [`Token::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Placed>, FilterError> {
    let mut all = Vec::new();
    let mut rest = text;
    let mut column = 1;
    loop {
        let blanks = rest.len() - rest.trim_start().len();
        column += rest[..blanks].chars().count();
        rest = &rest[blanks..];
        let Some(first) = rest.chars().next() else {
            all.push(Placed {
                token: Token::End,
                column,
            });
            return Ok(all);
        };
        let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
        let (token, length) = if let Some(sign) = sign {
            (Token::Sign(sign), sign.len())
        } else if first == '"' {
            string(rest, column)?
        } else {
            let length = rest.bytes().take_while(|&byte| in_word(byte)).count();
            if length == 0 {
                let what = format!("`{}` has no meaning here", first.escape_default());
                return Err(FilterError { column, what });
            }
            (Token::Word(rest[..length].to_owned()), length)
        };
        all.push(Placed { token, column });
        column += rest[..length].chars().count();
        rest = &rest[length..];
    }
}

const fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b':' | b'/' | b'_' | b'-')
}

/// A string with the escapes `\n \r \t \0 \\ \" \' \xHH`; its length in `rest` counts the quotes.
fn string(rest: &str, column: usize) -> Result<(Token, usize), FilterError> {
    let refuse = |at: usize, what: &str| FilterError {
        column: column + rest[..at].chars().count(),
        what: what.to_owned(),
    };
    let mut bytes = Vec::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Token::Text(bytes), at + 1)),
            '\\' => {
                let escaped = chars.next().map(|(_, c)| c);
                bytes.push(match escaped {
                    Some('n') => b'\n',
                    Some('r') => b'\r',
                    Some('t') => b'\t',
                    Some('0') => 0,
                    Some('\\') => b'\\',
                    Some('"') => b'"',
                    Some('\'') => b'\'',
                    Some('x') => {
                        let mut digit = || chars.next()?.1.to_digit(16);
                        let value = digit().and_then(|high| Some(high << 4 | digit()?));
                        let value = value.and_then(|value| u8::try_from(value).ok());
                        value.ok_or_else(|| refuse(at, "\\x needs two hexadecimal digits"))?
                    }
                    _ => {
                        return Err(refuse(
                            at,
                            "only \\n \\r \\t \\0 \\\\ \\\" \\' \\xHH are escapes",
                        ));
                    }
                });
            }
            other => bytes.extend(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Err(refuse(0, "this string has no end"))
}
