//! The cell's rule, by example and over random interleavings of claims.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn holder(name: &str) -> Holder {
    Holder::new(name).unwrap()
}

fn claim(expected: u64, new: u64, name: &str) -> Claim {
    Claim::new(expected, new, holder(name)).unwrap()
}

fn refused(generation: u64, name: &str) -> Outcome {
    Outcome::Refused {
        generation,
        holder: Some(holder(name)),
    }
}

#[test]
fn first_claim_wins_and_the_second_learns_of_it() {
    let mut register = Register::default();
    assert_eq!(register.generation(), 0);
    assert_eq!(register.claim(&claim(0, 1, "a")), Outcome::Granted);
    assert_eq!(register.claim(&claim(0, 1, "b")), refused(1, "a"));
    assert_eq!(register.generation(), 1);
    assert_eq!(register.holder(), Some(&holder("a")));
}

#[test]
fn winner_may_repeat_until_overtaken() {
    let mut register = Register::default();
    assert_eq!(register.claim(&claim(0, 1, "a")), Outcome::Granted);
    assert_eq!(register.claim(&claim(0, 1, "a")), Outcome::Granted);
    assert_eq!(register.claim(&claim(1, 2, "b")), Outcome::Granted);
    assert_eq!(register.claim(&claim(0, 1, "a")), refused(2, "b"));
    assert_eq!(register.claim(&claim(1, 2, "a")), refused(2, "b"));
}

#[test]
fn same_holder_with_another_expectation_is_not_a_repetition() {
    let mut register = Register::default();
    assert_eq!(register.claim(&claim(0, 2, "a")), Outcome::Granted);
    assert_eq!(register.claim(&claim(1, 2, "a")), refused(2, "a"));
}

#[test]
fn expectation_ahead_of_the_register_is_refused() {
    let mut register = Register::default();
    let answer = register.claim(&claim(3, 4, "a"));
    assert_eq!(
        answer,
        Outcome::Refused {
            generation: 0,
            holder: None
        }
    );
    assert_eq!(register, Register::default());
}

#[test]
fn names_have_limits() {
    assert_eq!(VmName::new(""), Err(Invalid::Empty { what: "vm name" }));
    assert!(VmName::new("a".repeat(VM_NAME_BYTES_MAX)).is_ok());
    assert!(VmName::new("a".repeat(VM_NAME_BYTES_MAX + 1)).is_err());
    assert!(VmName::new("web-1.example_x").is_ok());
    for bad in ["-a", ".", "..", "a/b", "a b", "ä", "a\n"] {
        let error = VmName::new(bad).unwrap_err();
        assert!(matches!(error, Invalid::Character { .. }), "{bad}: {error}");
        assert!(!error.remedy().is_empty());
    }
    assert!(Holder::new("host-a#0123abcd").is_ok());
    for bad in ["a b", "a\"b", "a\\b", "a\u{7f}", "é"] {
        assert!(Holder::new(bad).is_err(), "{bad}");
    }
    assert!(Holder::new("h".repeat(HOLDER_BYTES_MAX + 1)).is_err());
}

#[test]
fn claims_go_forward_within_the_limit() {
    assert_eq!(
        Claim::new(3, 3, holder("a")),
        Err(Invalid::NotAhead {
            expected: 3,
            new: 3
        })
    );
    assert!(Claim::new(0, GENERATION_MAX, holder("a")).is_ok());
    assert!(Claim::new(0, GENERATION_MAX + 1, holder("a")).is_err());
}

/// What one claimant does next, in a random schedule.
#[derive(Debug, Clone)]
struct Step {
    who: usize,
    jump: u64,
    /// 0: claim from what it last saw; 1: repeat its last claim; 2: guess an expectation.
    kind: u8,
    guess: u64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..4usize, 1..3u64, 0..3u8, 0..12u64).prop_map(|(who, jump, kind, guess)| Step {
        who,
        jump,
        kind,
        guess,
    });
    prop::collection::vec(step, 1..80)
}

proptest! {
    #[test]
    fn at_most_one_winner_per_generation(steps in steps()) {
        let mut register = Register::default();
        let mut winner: BTreeMap<u64, Holder> = BTreeMap::new();
        let mut seen = [0u64; 4];
        let mut last: [Option<Claim>; 4] = Default::default();
        for step in steps {
            let before = register.clone();
            let me = holder(&format!("h{}", step.who));
            let from = if step.kind == 2 { step.guess } else { seen[step.who] };
            let fresh = Claim::new(from, from + step.jump, me).unwrap();
            let claim = match (step.kind, &last[step.who]) {
                (1, Some(again)) => again.clone(),
                _ => fresh,
            };
            last[step.who] = Some(claim.clone());
            match register.claim(&claim) {
                Outcome::Granted => {
                    // Granted means: the register holds this very claim now.
                    prop_assert_eq!(register.last_granted(), Some(&claim));
                    let first = winner.entry(claim.new_generation()).or_insert_with(|| claim.holder().clone());
                    prop_assert_eq!(&*first, claim.holder());
                    seen[step.who] = claim.new_generation();
                }
                Outcome::Refused { generation, holder } => {
                    prop_assert_eq!(&register, &before);
                    prop_assert_eq!(generation, before.generation());
                    prop_assert_eq!(holder.as_ref(), before.holder());
                    seen[step.who] = generation;
                }
            }
            prop_assert!(register.generation() >= before.generation());
        }
    }

    #[test]
    fn text_is_judged_without_panic(text in any::<String>()) {
        if let Ok(name) = VmName::new(text.clone()) {
            prop_assert_eq!(name.as_str(), text.as_str());
        }
        if let Err(error) = Holder::new(text) {
            prop_assert!(!error.remedy().is_empty());
        }
    }
}
