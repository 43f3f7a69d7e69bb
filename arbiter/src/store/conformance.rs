//! What every store must do, whatever it is made of.

use super::Store;
use crate::register::{Claim, HISTORY_MAX, Holder, Outcome, Register, VMS_MAX, VmName};
use std::sync::Arc;

pub(super) fn vm(name: &str) -> VmName {
    VmName::new(name).unwrap()
}

pub(super) fn claim(expected: u64, new: u64, holder: &str) -> Claim {
    Claim::new(expected, new, Holder::new(holder).unwrap()).unwrap()
}

/// Runs every test on stores that `make` makes, each empty.
pub(super) fn suite<S: Store>(mut make: impl FnMut() -> S) {
    remembers_the_newest_grants(&make());
    behaves_like_the_register(&make());
    keeps_machines_apart(&make());
    lists_in_order(&make());
    concurrent_claims_have_one_winner(make());
}

/// Takes long on a store that syncs: kept apart.
pub(super) fn refuses_too_many<S: Store>(store: &S, filled: usize) {
    for number in filled..VMS_MAX {
        let outcome = store
            .claim(&vm(&format!("vm{number}")), &claim(0, 1, "a"))
            .unwrap();
        assert_eq!(outcome, Outcome::Granted);
    }
    assert!(store.claim(&vm("one-more"), &claim(0, 1, "a")).is_err());
    assert_eq!(
        store.claim(&vm("vm0"), &claim(1, 2, "b")).unwrap(),
        Outcome::Granted
    );
    assert_eq!(store.read(&vm("one-more")).unwrap(), Register::default());
}

fn behaves_like_the_register<S: Store>(store: &S) {
    let mut model = Register::default();
    let claims = [
        claim(1, 2, "a"),
        claim(0, 1, "a"),
        claim(0, 1, "a"),
        claim(0, 1, "b"),
        claim(1, 2, "b"),
        claim(0, 1, "a"),
        claim(1, 2, "b"),
        claim(2, 7, "a"),
        claim(2, 3, "b"),
    ];
    for claim in claims {
        assert_eq!(
            store.claim(&vm("m"), &claim).unwrap(),
            model.claim(&claim),
            "{claim:?}"
        );
        assert_eq!(store.read(&vm("m")).unwrap(), model);
        let newest = store.history(&vm("m")).unwrap().pop();
        assert_eq!(newest.as_ref(), model.last_granted());
    }
}

fn remembers_the_newest_grants<S: Store>(store: &S) {
    const MORE: u64 = 3;
    let wish = |number: u64| claim(number * 10, number * 10 + 10, &format!("h{number}"));
    let number = HISTORY_MAX as u64 + MORE;
    assert_eq!(store.history(&vm("m")).unwrap(), []);
    for number in 0..number {
        let granted = store.claim(&vm("m"), &wish(number)).unwrap();
        assert_eq!(granted, Outcome::Granted);
        // What changes nothing is not remembered.
        store.claim(&vm("m"), &wish(number)).unwrap();
        store.claim(&vm("m"), &claim(5, 6, "loser")).unwrap();
    }
    // Another machine's, whose name begins alike.
    store.claim(&vm("mm"), &claim(0, 1, "other")).unwrap();
    let newest: Vec<_> = (MORE..number).map(wish).collect();
    assert_eq!(store.history(&vm("m")).unwrap(), newest);
    assert_eq!(store.history(&vm("mm")).unwrap(), [claim(0, 1, "other")]);
}

fn keeps_machines_apart<S: Store>(store: &S) {
    assert_eq!(
        store.claim(&vm("m"), &claim(0, 5, "a")).unwrap(),
        Outcome::Granted
    );
    assert_eq!(store.read(&vm("n")).unwrap(), Register::default());
    assert_eq!(
        store.claim(&vm("n"), &claim(0, 1, "b")).unwrap(),
        Outcome::Granted
    );
    assert_eq!(store.read(&vm("m")).unwrap().generation(), 5);
}

fn lists_in_order<S: Store>(store: &S) {
    assert!(store.list().unwrap().is_empty());
    for name in ["c", "a", "b"] {
        store.claim(&vm(name), &claim(0, 1, "h")).unwrap();
    }
    // A refused claim on a machine never claimed leaves nothing behind.
    store.claim(&vm("d"), &claim(3, 4, "h")).unwrap();
    let names: Vec<_> = store
        .list()
        .unwrap()
        .into_iter()
        .map(|(vm, _)| vm.to_string())
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
}

/// Threads race for every generation; each must see a history with one winner per generation.
fn concurrent_claims_have_one_winner<S: Store>(store: S) {
    const THREADS: u64 = 4;
    const GENERATIONS: u64 = 10;
    let store = Arc::new(store);
    let race = |who: u64| {
        let store = Arc::clone(&store);
        move || {
            let mut won = Vec::new();
            let mut at = 0;
            while at < GENERATIONS {
                let wish = claim(at, at + 1, &format!("h{who}"));
                match store.claim(&vm("m"), &wish).unwrap() {
                    Outcome::Granted => {
                        won.push(at + 1);
                        at += 1;
                    }
                    Outcome::Refused { generation, .. } => {
                        assert!(generation > at, "a refusal tells of a later generation");
                        at = generation;
                    }
                }
            }
            won
        }
    };
    let threads: Vec<_> = (0..THREADS)
        .map(|who| std::thread::spawn(race(who)))
        .collect();
    let mut won: Vec<u64> = threads
        .into_iter()
        .flat_map(|t| t.join().unwrap())
        .collect();
    won.sort_unstable();
    let all: Vec<u64> = (1..=GENERATIONS).collect();
    assert_eq!(won, all, "every generation was granted exactly once");
}
