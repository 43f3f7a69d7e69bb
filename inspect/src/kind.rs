//! Names of the kinds of records, as filters, tables and JSON write them: those of the format itself.

#![forbid(unsafe_code)]

pub use logging_channel::codec::RecordKind as Kind;

/// The kind of this name.
#[must_use]
pub fn named(name: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_again() {
        for kind in Kind::ALL {
            assert_eq!(named(kind.name()), Some(kind));
        }
        assert_eq!(named("Timer"), None);
    }
}
