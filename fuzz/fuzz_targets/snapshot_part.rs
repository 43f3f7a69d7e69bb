//! Bytes as a piece of a guest's state from a stranger. Whatever is accepted says the same twice, and a piece
//! made of what is in memory then brings an empty memory to the same contents.
#![no_main]

use vm_memory::{Bytes, GuestAddress};
use vmm::devices::ram::GuestRam;
use vmm::machine::page_set::PageSet;
use vmm::snapshot::part;

const MEMORY_BYTES: usize = 80 * 4096;

fn memory() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("a small mapping")
}

fn contents(memory: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY_BYTES];
    memory
        .read_slice(&mut bytes, GuestAddress(0))
        .expect("all of it");
    bytes
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (ours, theirs) = (memory(), memory());
    match part::apply(&ours, data) {
        Err(_) => assert!(contents(&ours).iter().all(|byte| *byte == 0)),
        Ok(Some(state)) => {
            let again = part::part_of_state(&state).expect("it came in a part");
            assert_eq!(part::apply(&theirs, &again), Ok(Some(state)));
        }
        Ok(None) => {
            let all = PageSet::all(MEMORY_BYTES as u64);
            part::parts_of(&ours, &all, 64, |piece| part::apply(&theirs, &piece) == Ok(None))
                .expect("pages of this memory");
            assert!(contents(&ours) == contents(&theirs));
        }
    }
});
