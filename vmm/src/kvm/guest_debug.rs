//! Our breakpoint beside the guest's own debugging, as plain data.
//!
//! While a breakpoint of ours is set, KVM puts our debug registers in force and gives every debug exception to
//! us: the guest's breakpoints would never hit, and the traps of a program that is being stepped inside the
//! guest would be lost. So ours takes a place that the guest leaves free, the guest's stay where they are, and
//! what belongs to the guest is handed on, with DR6 as KVM would have left it.
//!
//! Sources: AMD APM volume 2, section 13.1.1 (DR6, DR7); Linux `arch/x86/kvm/svm/svm.c`, `db_interception`, and
//! `arch/x86/kvm/x86.c`, `kvm_deliver_exception_payload`.
//!
//! Debug registers that the guest changes in the last stretch of a landing are in force at its next stop only, and a
//! breakpoint that hits before would be missed. A debugger's program meets its breakpoint soon after the kernel
//! has loaded it, so the primary keeps away: it names no place while breakpoints are in force that were not the
//! same for longer than a landing takes ([`Steady`]).
//!
//! Left out: a breakpoint that is loaded, hit and gone again within one margin. What it misses shows as a
//! divergence.

#![forbid(unsafe_code)]

use crate::machine::cpu_state::DebugRegisters;

/// DR6: a single step.
const STEP: u64 = 1 << 14;
/// DR6: which breakpoints.
const BREAKPOINTS: u64 = 0xf;
/// DR6: bits that read as ones (`DR6_FIXED_1` and DR6.RTM of KVM).
const DR6_ONES: u64 = 0xffff_0ff0;
/// DR7: reserved one.
const DR7_ONE: u64 = 1 << 10;
/// DR7: general detect, which the processor clears on the way into the handler.
const DR7_GENERAL_DETECT: u64 = 1 << 13;

/// Branches between two looks at the guest's breakpoints: fewer than two changes of task take.
const LOOKS_BRANCHES: u64 = 64;

/// DR7's enables of a breakpoint, local and global.
const fn enables(number: usize) -> u64 {
    3 << (2 * number)
}

/// DR7's condition and length of a breakpoint.
const fn condition(number: usize) -> u64 {
    0xf << (16 + 4 * number)
}

/// Debug registers with a breakpoint of ours among the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beside {
    /// DR0 to DR3.
    pub db: [u64; 4],
    /// DR7.
    pub dr7: u64,
    /// Which one is ours.
    number: usize,
}

impl Beside {
    /// A breakpoint on the instruction at `address`; `None` when the guest uses all four.
    #[must_use]
    pub fn new(guest: &DebugRegisters, address: u64) -> Option<Self> {
        let free = (0..4).filter(|number| guest.dr7 & enables(*number) == 0);
        // An address that is left there sets its bit of DR6 beside another's hit, though it is not enabled.
        let number =
            free.min_by_key(|number| (guest.db[*number] != 0, guest.dr7 & condition(*number)))?;
        let mut db = guest.db;
        db[number] = address;
        // On execution: condition and length are zero.
        let dr7 = guest.dr7 & !condition(number) & !DR7_GENERAL_DETECT;
        Some(Self {
            db,
            dr7: dr7 | enables(number) | DR7_ONE,
            number,
        })
    }

    /// What of a debug exception is the guest's own: DR6's conditions to hand on, or none. `guest` is what it
    /// has set now: a breakpoint that it has taken away meanwhile hit for nobody. `pc` is the next instruction.
    #[must_use]
    pub fn guests_share(&self, dr6: u64, guest: &DebugRegisters, pc: u64) -> Option<u64> {
        let enabled = |number: &usize| {
            self.dr7 & guest.dr7 & enables(*number) != 0 && self.db[*number] == guest.db[*number]
        };
        let ours = 1 << self.number;
        let mut guests = (0..4).filter(|number| *number != self.number);
        let is_guests = dr6 & STEP != 0 || guests.any(|n| dr6 & 1 << n != 0 && enabled(&n));
        // Conditions that hold are shown, enabled or not; so is that of the place that is ours now.
        let is_displaced = guest.dr7 & condition(self.number) == 0 && guest.db[self.number] == pc;
        let displaced = if is_displaced { ours } else { 0 };
        is_guests.then_some(dr6 & (STEP | BREAKPOINTS & !ours) | displaced)
    }

    /// Whether the guest's share came before an instruction was executed, not behind one that was.
    #[must_use]
    pub fn is_before(&self, share: u64) -> bool {
        let is_data = |number: &usize| self.dr7 & (3 << (16 + 4 * number)) != 0;
        let enabled = |number: &usize| self.dr7 & enables(*number) != 0;
        let data = (0..4).filter(|n| is_data(n) && enabled(n));
        share & (STEP | data.fold(0, |all, n| all | 1 << n)) == 0
    }
}

/// Since when the guest's breakpoints are what they are, as seen by a primary in search of a place to name.
#[derive(Debug, Default)]
pub struct Steady(Option<([u64; 4], u64, u64)>);

impl Steady {
    /// Branches to go on for before a place can be named, given what the guest has set after so many `branches`;
    /// 0 when none are needed. A landing crosses `margin` of them.
    pub fn wait(&mut self, guest: &DebugRegisters, branches: u64, margin: u64) -> u64 {
        let all = (0..4).fold(0, |all, number| all | enables(number));
        match self.0 {
            None if guest.dr7 & all == 0 => 0,
            Some((db, dr7, since)) if (db, dr7) == (guest.db, guest.dr7) => {
                let needed = margin.saturating_mul(2);
                let left = needed.saturating_sub(branches.saturating_sub(since));
                left.min(LOOKS_BRANCHES)
            }
            _ => {
                self.0 = Some((guest.db, guest.dr7, branches));
                LOOKS_BRANCHES
            }
        }
    }
}

/// The guest's debug registers when it is given a debug exception for these conditions.
#[must_use]
pub fn raised(guest: &DebugRegisters, conditions: u64) -> DebugRegisters {
    DebugRegisters {
        dr6: guest.dr6 & !BREAKPOINTS | DR6_ONES | conditions,
        dr7: guest.dr7 & !DR7_GENERAL_DETECT,
        ..*guest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: u64 = 0x7777;

    fn guest(dr7: u64) -> DebugRegisters {
        DebugRegisters {
            db: [0x1000, 0x2000, 0x3000, 0x4000],
            dr6: DR6_ONES | 8,
            dr7,
        }
    }

    #[test]
    fn a_guest_without_breakpoints_leaves_the_first_place() {
        let guest = guest(DR7_ONE);
        let beside = Beside::new(&guest, OURS).expect("four places");
        assert_eq!((beside.db[0], beside.dr7), (OURS, 0x403));
        let share = |dr6| beside.guests_share(DR6_ONES | dr6, &guest, 0x5000);
        assert_eq!(share(1), None, "our hit");
        assert_eq!(share(2), None, "a condition that nobody enabled");
        assert_eq!(share(STEP), Some(STEP));
        assert_eq!(share(STEP | 1), Some(STEP));
        assert_eq!(share(STEP | 2), Some(STEP | 2), "it shows nevertheless");
        assert_eq!(
            beside.guests_share(STEP, &guest, 0x1000),
            Some(STEP | 1),
            "the condition whose place is ours"
        );
    }

    #[test]
    fn the_guests_breakpoints_stay_in_force() {
        // 0 on execution, locally; 1 on writes of four bytes, globally; 2 and 3 are free.
        let dr7 = DR7_ONE | 1 | 2 << 2 | 0xd << 20 | 0xf << 24;
        let before = guest(dr7);
        let beside = Beside::new(&before, OURS).expect("two places");
        assert_eq!(beside.db, [0x1000, 0x2000, 0x3000, OURS]);
        assert_eq!(beside.dr7, dr7 | 3 << 6);
        assert_eq!(beside.guests_share(1, &before, 0), Some(1));
        assert_eq!(
            beside.guests_share(2 | 8, &before, 0),
            Some(2),
            "both at one instruction"
        );
        assert_eq!(beside.guests_share(8, &before, 0), None);
        assert_eq!(
            beside.guests_share(2, &guest(DR7_ONE | 1), 0),
            None,
            "taken away"
        );
        assert!(beside.is_before(1));
        assert!(!beside.is_before(2), "a write has happened");
        assert!(!beside.is_before(STEP | 1), "so has a step");
    }

    #[test]
    fn an_empty_place_is_taken_before_one_with_an_address() {
        let mut guest = guest(DR7_ONE);
        guest.db = [0x1000, 0x2000, 0, 0x4000];
        let beside = Beside::new(&guest, OURS).expect("four places");
        assert_eq!(beside.db, [0x1000, 0x2000, OURS, 0x4000]);
    }

    #[test]
    fn four_breakpoints_of_the_guest_leave_no_place() {
        assert_eq!(Beside::new(&guest(DR7_ONE | 0x55), OURS), None);
    }

    #[test]
    fn the_guest_sees_its_conditions_and_no_older_ones() {
        let before = guest(DR7_ONE | DR7_GENERAL_DETECT | 1);
        let after = raised(&before, STEP | 1);
        assert_eq!(after.dr6, DR6_ONES | STEP | 1);
        assert_eq!((after.dr7, after.db), (DR7_ONE | 1, before.db));
    }

    #[test]
    fn no_place_is_named_soon_after_breakpoints_changed() {
        let (without, with) = (guest(DR7_ONE), guest(DR7_ONE | 1));
        let mut steady = Steady::default();
        assert_eq!(steady.wait(&without, 1_000, 100), 0, "nobody debugs");
        assert_eq!(steady.wait(&with, 1_010, 100), LOOKS_BRANCHES);
        assert_eq!(steady.wait(&with, 1_074, 100), LOOKS_BRANCHES);
        assert_eq!(steady.wait(&with, 1_200, 100), 10);
        assert_eq!(steady.wait(&with, 1_210, 100), 0);
        assert_eq!(steady.wait(&without, 1_220, 100), LOOKS_BRANCHES);
        assert_eq!(steady.wait(&without, 1_420, 100), 0);
    }
}
