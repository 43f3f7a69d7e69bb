//! Expressions read, shown, refused, and applied.

use super::*;
use crate::facts::Facts;
use crate::sample;
use logging_channel::record::Record;
use proptest::prelude::*;

fn records() -> Vec<Record> {
    use logging_channel::record::RecordBody;
    let mut bodies = sample::bodies();
    bodies.truncate(bodies.len() - 1);
    bodies.push(RecordBody::Console(b"ls -l\n".to_vec()));
    bodies.push(RecordBody::Packet {
        device: 1,
        bytes: sample::udp(53, b"question"),
    });
    sample::records(bodies)
}

/// Indices of the records that pass.
fn passing(text: &str) -> Vec<u64> {
    let filter: Filter = text
        .parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    let records = records();
    let passes = |record: &&Record| filter.passes(&Facts::of(record));
    records
        .iter()
        .filter(passes)
        .map(|record| record.index.0)
        .collect()
}

#[test]
fn expressions_choose_records() {
    // 0 Start, 1 TCP, 2 Output, 3-22 Timer, 23 Control, 24 Console, 25 UDP on net1.
    for (text, expected) in [
        ("packet", vec![1, 25]),
        ("kind == packet or kind = output", vec![1, 2, 25]),
        ("tcp", vec![1]),
        ("ip and not tcp", vec![25]),
        ("proto != tcp", vec![25]),
        ("in", vec![1, 24, 25]),
        ("direction == out", vec![2]),
        ("device == net1", vec![25]),
        ("device != net1", vec![1, 2, 24]),
        ("size > 55 && size <= 60", vec![1, 2]),
        ("port == 80", vec![1]),
        ("port != 80", vec![25]),
        ("port.src == 80", vec![]),
        ("port.dst < 100", vec![1, 25]),
        ("ip == 10.0.0.1 and udp", vec![25]),
        ("ip.dst == 10.0.0.1", vec![]),
        ("ip == 10.0.0.0/30", vec![1, 25]),
        ("ip == ::/0", vec![]),
        ("ip != 10.0.0.2", vec![]),
        ("text ~ \"hello\"", vec![1]),
        ("text ~ ls", vec![24]),
        ("text ~ \"\\x6c\\x73\"", vec![24]),
        ("index >= 24", vec![24, 25]),
        ("time >= 2.4s", vec![24, 25]),
        ("exits < 20", vec![0, 1]),
        ("!(timer or packet) && index>0", vec![2, 23, 24]),
        ("timer and (index == 3 or index == 0x4)", vec![3, 4]),
    ] {
        assert_eq!(passing(text), expected, "{text}");
    }
}

#[test]
fn errors_name_the_column() {
    for (text, column, part) in [
        ("", 1, "expected a test; found the end"),
        ("packet and", 11, "found the end"),
        ("paket", 1, "found `paket`"),
        ("size > many", 8, "expected a number; found `many`"),
        ("kind == 7", 9, "a kind of record"),
        ("kind < packet", 6, "`==` or `!=`"),
        ("(packet", 8, "expected `)`"),
        ("packet)", 7, "`and`, `or` or the end"),
        ("packet output", 8, "found `output`"),
        ("port == 65536", 9, "a port"),
        ("ip == 10.0.0.0/33", 7, "an IP address"),
        ("time > 5", 8, "a guest time"),
        ("text ~ \"abc", 8, "no end"),
        ("text ~ \"\\q\"", 9, "escapes"),
        ("text == \"x\"", 6, "`~`"),
        ("ü == 1", 1, "no meaning"),
        ("packet and ü", 12, "no meaning"),
        ("speed > 3", 1, "a field"),
    ] {
        let error = text.parse::<Filter>().unwrap_err();
        assert_eq!(error.column, column, "{text}: {error}");
        assert!(error.what.contains(part), "{text}: {error}");
    }
    let deep = "(".repeat(DEPTH_MAX + 1) + "tcp";
    assert!(deep.parse::<Filter>().unwrap_err().what.contains("nested"));
    let long = "tcp or ".repeat(1_000) + "tcp";
    assert!(long.parse::<Filter>().unwrap_err().what.contains("at most"));
}

fn test() -> impl Strategy<Value = Test> {
    let is = prop_oneof![Just(Is::Same), Just(Is::Other)];
    let end = prop_oneof![Just(End::Either), Just(End::Source), Just(End::Destination)];
    let comparison = prop_oneof![
        Just(Comparison::Equal),
        Just(Comparison::NotEqual),
        Just(Comparison::Less),
        Just(Comparison::AtMost),
        Just(Comparison::Greater),
        Just(Comparison::AtLeast),
    ];
    let number = prop_oneof![
        Just(Number::Index),
        Just(Number::Exits),
        Just(Number::Branches),
        Just(Number::TimeUs),
        Just(Number::Size),
    ];
    let device = prop_oneof![
        Just(Device::Console),
        Just(Device::Rng),
        any::<u8>().prop_map(Device::Net)
    ];
    let direction = prop_oneof![Just(Direction::In), Just(Direction::Out)];
    let network =
        (any::<IpAddr>(), 0..=32u8).prop_map(|(address, prefix)| Network { address, prefix });
    prop_oneof![
        (is.clone(), prop::sample::select(&Kind::ALL[..]))
            .prop_map(|(is, kind)| Test::Kind(is, kind)),
        (is.clone(), device).prop_map(|(is, device)| Test::Device(is, device)),
        (is.clone(), direction).prop_map(|(is, direction)| Test::Direction(is, direction)),
        (is.clone(), prop::sample::select(&Protocol::ALL[..]))
            .prop_map(|(is, p)| Test::Protocol(is, p)),
        Just(Test::HasIp),
        (end.clone(), is, network).prop_map(|(end, is, network)| Test::Ip(end, is, network)),
        (end, comparison.clone(), any::<u16>()).prop_map(|(end, c, port)| Test::Port(
            end,
            c,
            port.into()
        )),
        (number, comparison, any::<u64>()).prop_map(|(n, c, value)| Test::Number(n, c, value)),
        prop::collection::vec(any::<u8>(), 1..20).prop_map(Test::Text),
    ]
}

fn filter() -> impl Strategy<Value = Filter> {
    test()
        .prop_map(Filter::Test)
        .prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                inner.clone().prop_map(|inner| Filter::Not(Box::new(inner))),
                prop::collection::vec(inner.clone(), 2..4).prop_map(Filter::All),
                prop::collection::vec(inner, 2..4).prop_map(Filter::Any),
            ]
        })
}

proptest! {
    #[test]
    fn an_expression_is_read_as_shown(filter in filter()) {
        let text = filter.to_string();
        prop_assume!(text.len() <= EXPRESSION_BYTES_MAX);
        prop_assert_eq!(text.parse::<Filter>(), Ok(filter), "{}", text);
    }

    #[test]
    fn any_text_is_read_or_refused_at_a_column(text in "[a-z0-9.:/()!=<>~&|\" \\\\ü]{0,60}") {
        match text.parse::<Filter>() {
            Ok(filter) => prop_assert_eq!(filter.to_string().parse::<Filter>(), Ok(filter)),
            Err(error) => prop_assert!((1..=text.chars().count() + 1).contains(&error.column)),
        }
    }

    #[test]
    fn not_is_the_opposite_and_both_is_less_than_either(a in filter(), b in filter()) {
        for record in records() {
            let facts = Facts::of(&record);
            let (pass_a, pass_b) = (a.passes(&facts), b.passes(&facts));
            let parts = || vec![a.clone(), b.clone()];
            prop_assert_eq!(Filter::Not(Box::new(a.clone())).passes(&facts), !pass_a);
            prop_assert_eq!(Filter::All(parts()).passes(&facts), pass_a && pass_b);
            prop_assert_eq!(Filter::Any(parts()).passes(&facts), pass_a || pass_b);
        }
    }
}
