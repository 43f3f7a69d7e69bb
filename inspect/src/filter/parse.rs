//! From tokens to an expression, by recursive descent.

#![forbid(unsafe_code)]

use super::lex::{Placed, Token, tokens};
use super::{
    Comparison, DEPTH_MAX, EXPRESSION_BYTES_MAX, End, Filter, FilterError, Is, Network, Number,
    Test,
};
use crate::facts::{Device, Direction};
use crate::kind;
use crate::packet::Protocol;
use crate::place::time_us;
use std::net::IpAddr;

const FIELDS: &str = "kind, device, direction, size, index, exits, branches, time, proto, ip, ip.src, \
                      ip.dst, port, port.src, port.dst, text";

pub(super) fn parse(text: &str) -> Result<Filter, FilterError> {
    if text.len() > EXPRESSION_BYTES_MAX {
        let what = format!("an expression has at most {EXPRESSION_BYTES_MAX} bytes");
        return Err(FilterError { column: 1, what });
    }
    let tokens = tokens(text)?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        depth: 0,
    };
    let filter = parser.any()?;
    match &parser.here().token {
        Token::End => Ok(filter),
        _ => Err(parser.expected("`and`, `or` or the end")),
    }
}

struct Parser<'a> {
    /// Ends with [`Token::End`], which is never passed.
    tokens: &'a [Placed],
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn here(&self) -> &'a Placed {
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn take(&mut self) -> &'a Placed {
        let here = self.here();
        self.at += usize::from(here.token != Token::End);
        here
    }

    fn expected(&self, what: &str) -> FilterError {
        expected(self.here(), what)
    }

    /// Passes a sign or a word if it is there.
    fn passes(&mut self, sign: &str, word: &str) -> bool {
        let there = match &self.here().token {
            Token::Sign(there) => *there == sign,
            Token::Word(there) => there == word,
            _ => false,
        };
        self.at += usize::from(there);
        there
    }

    fn any(&mut self) -> Result<Filter, FilterError> {
        let mut parts = vec![self.all()?];
        while self.passes("||", "or") {
            parts.push(self.all()?);
        }
        Ok(one_or(parts, Filter::Any))
    }

    fn all(&mut self) -> Result<Filter, FilterError> {
        let mut parts = vec![self.one()?];
        while self.passes("&&", "and") {
            parts.push(self.one()?);
        }
        Ok(one_or(parts, Filter::All))
    }

    fn one(&mut self) -> Result<Filter, FilterError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let what = format!("nested deeper than {DEPTH_MAX}");
            let column = self.here().column;
            return Err(FilterError { column, what });
        }
        let one = if self.passes("!", "not") {
            Filter::Not(Box::new(self.one()?))
        } else if self.passes("(", "(") {
            let inner = self.any()?;
            if !self.passes(")", ")") {
                return Err(self.expected("`)`"));
            }
            inner
        } else {
            Filter::Test(self.test()?)
        };
        self.depth -= 1;
        Ok(one)
    }

    fn test(&mut self) -> Result<Test, FilterError> {
        let placed = self.take();
        let Token::Word(word) = &placed.token else {
            return Err(expected(placed, "a test"));
        };
        let compared = matches!(
            self.here().token,
            Token::Sign("==" | "=" | "!=" | "<" | "<=" | ">" | ">=" | "~")
        );
        if !compared {
            return bare(word).ok_or_else(|| {
                let what = format!(
                    "a kind, `in`, `out`, a protocol, or a field ({FIELDS}) and a comparison"
                );
                expected(placed, &what)
            });
        }
        match word.as_str() {
            "kind" => self.word("a kind of record", kind::named, Test::Kind),
            "device" => self.word("console, rng or net0, net1, ...", device, Test::Device),
            "direction" => self.word("in or out", direction, Test::Direction),
            "proto" => self.word(
                "a protocol: tcp, udp, icmp, icmp6, arp, ip4, ip6, other",
                protocol,
                Test::Protocol,
            ),
            "index" => self.number(Number::Index),
            "exits" => self.number(Number::Exits),
            "branches" => self.number(Number::Branches),
            "time" => self.number(Number::TimeUs),
            "size" => self.number(Number::Size),
            "ip" => self.ip(End::Either),
            "ip.src" => self.ip(End::Source),
            "ip.dst" => self.ip(End::Destination),
            "port" => self.port(End::Either),
            "port.src" => self.port(End::Source),
            "port.dst" => self.port(End::Destination),
            "text" => self.text(),
            _ => Err(expected(placed, &format!("a field: {FIELDS}"))),
        }
    }

    fn word<T>(
        &mut self,
        what: &str,
        read: impl Fn(&str) -> Option<T>,
        test: impl Fn(Is, T) -> Test,
    ) -> Result<Test, FilterError> {
        let is = self.is()?;
        Ok(test(is, self.value(what, read)?))
    }

    fn number(&mut self, number: Number) -> Result<Test, FilterError> {
        let comparison = self.comparison()?;
        let value = match number {
            Number::TimeUs => self.value("a guest time as 1.5s, 300ms or 20us", time_us)?,
            _ => self.value("a number", count)?,
        };
        Ok(Test::Number(number, comparison, value))
    }

    fn ip(&mut self, end: End) -> Result<Test, FilterError> {
        let is = self.is()?;
        let network = self.value("an IP address or network", Network::read)?;
        Ok(Test::Ip(end, is, network))
    }

    fn port(&mut self, end: End) -> Result<Test, FilterError> {
        let comparison = self.comparison()?;
        let port = self.value("a port", |word| word.parse::<u16>().ok())?;
        Ok(Test::Port(end, comparison, port.into()))
    }

    fn text(&mut self) -> Result<Test, FilterError> {
        if self.take().token != Token::Sign("~") {
            self.at -= 1;
            return Err(self.expected("`~`"));
        }
        let placed = self.take();
        match &placed.token {
            Token::Text(bytes) if !bytes.is_empty() => Ok(Test::Text(bytes.clone())),
            Token::Word(word) => Ok(Test::Text(word.as_bytes().to_vec())),
            _ => Err(expected(placed, "a string that is not empty")),
        }
    }

    fn is(&mut self) -> Result<Is, FilterError> {
        let placed = self.take();
        match placed.token {
            Token::Sign("==" | "=") => Ok(Is::Same),
            Token::Sign("!=") => Ok(Is::Other),
            _ => Err(expected(placed, "`==` or `!=`")),
        }
    }

    fn comparison(&mut self) -> Result<Comparison, FilterError> {
        let placed = self.take();
        Ok(match placed.token {
            Token::Sign("==" | "=") => Comparison::Equal,
            Token::Sign("!=") => Comparison::NotEqual,
            Token::Sign("<") => Comparison::Less,
            Token::Sign("<=") => Comparison::AtMost,
            Token::Sign(">") => Comparison::Greater,
            Token::Sign(">=") => Comparison::AtLeast,
            _ => return Err(expected(placed, "a comparison")),
        })
    }

    fn value<T>(&mut self, what: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, FilterError> {
        let placed = self.take();
        let value = match &placed.token {
            Token::Word(word) => read(word),
            _ => None,
        };
        value.ok_or_else(|| expected(placed, what))
    }
}

fn expected(placed: &Placed, what: &str) -> FilterError {
    let found = match &placed.token {
        Token::Word(word) => format!("`{word}`"),
        Token::Text(_) => "a string".to_owned(),
        Token::Sign(sign) => format!("`{sign}`"),
        Token::End => "the end".to_owned(),
    };
    FilterError {
        column: placed.column,
        what: format!("expected {what}; found {found}"),
    }
}

fn one_or(mut parts: Vec<Filter>, many: impl Fn(Vec<Filter>) -> Filter) -> Filter {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        Some(last) => {
            parts.push(last);
            many(parts)
        }
        None => many(parts),
    }
}

/// A test that is a single word.
fn bare(word: &str) -> Option<Test> {
    if word == "ip" {
        return Some(Test::HasIp);
    }
    let kind = kind::named(word).map(|kind| Test::Kind(Is::Same, kind));
    kind.or_else(|| Some(Test::Direction(Is::Same, direction(word)?)))
        .or_else(|| Some(Test::Protocol(Is::Same, protocol(word)?)))
}

fn device(word: &str) -> Option<Device> {
    match word {
        "console" => Some(Device::Console),
        "rng" => Some(Device::Rng),
        _ => word.strip_prefix("net")?.parse().ok().map(Device::Net),
    }
}

fn direction(word: &str) -> Option<Direction> {
    let all = [Direction::In, Direction::Out];
    all.into_iter().find(|direction| direction.name() == word)
}

fn protocol(word: &str) -> Option<Protocol> {
    Protocol::ALL
        .into_iter()
        .find(|protocol| protocol.name() == word)
}

/// A whole number: decimal, `0x...`, with `k`, `KiB`, `M` or `MiB` behind it.
fn count(word: &str) -> Option<u64> {
    if let Some(digits) = word.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok();
    }
    let units = [
        ("KiB", 1 << 10),
        ("k", 1 << 10),
        ("MiB", 1 << 20),
        ("M", 1 << 20),
    ];
    for (name, unit) in units {
        if let Some(number) = word.strip_suffix(name) {
            return number.parse::<u64>().ok()?.checked_mul(unit);
        }
    }
    word.parse().ok()
}

impl Network {
    fn read(word: &str) -> Option<Self> {
        let (address, prefix) = match word.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (word, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(bits), |prefix| prefix.parse().ok())?;
        (prefix <= bits).then_some(Self { address, prefix })
    }
}
