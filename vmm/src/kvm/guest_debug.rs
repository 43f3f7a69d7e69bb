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
//! Left out: debug registers that the guest changes between two stops of a landing are in force at the next
//! stop only. What it misses until then shows as a divergence.

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
        let number = (0..4).find(|number| guest.dr7 & enables(*number) == 0)?;
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

    /// What of a debug exception is the guest's own: DR6's conditions to hand on, or none.
    #[must_use]
    pub fn guests_share(&self, dr6: u64) -> Option<u64> {
        let enabled = |number: &usize| self.dr7 & enables(*number) != 0;
        let guests = (0..4).filter(|number| *number != self.number);
        let breakpoints = guests.filter(enabled).fold(0, |all, n| all | 1 << n);
        let share = dr6 & (STEP | breakpoints);
        (share != 0).then_some(share)
    }

    /// Whether the guest's share came before an instruction was executed, not behind one that was.
    #[must_use]
    pub fn is_before(&self, share: u64) -> bool {
        let is_execution = |number: &usize| self.dr7 & (3 << (16 + 4 * number)) == 0;
        let executions = (0..4).filter(is_execution).fold(0, |all, n| all | 1 << n);
        share & !executions == 0
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
        let beside = Beside::new(&guest(DR7_ONE), OURS).expect("four places");
        assert_eq!((beside.db[0], beside.dr7), (OURS, 0x403));
        assert_eq!(beside.guests_share(DR6_ONES | 1), None, "our hit");
        assert_eq!(
            beside.guests_share(DR6_ONES | 2),
            None,
            "a condition that nobody enabled"
        );
        assert_eq!(beside.guests_share(DR6_ONES | STEP), Some(STEP));
        assert_eq!(beside.guests_share(DR6_ONES | STEP | 1), Some(STEP));
    }

    #[test]
    fn the_guests_breakpoints_stay_in_force() {
        // 0 on execution, locally; 1 on writes of four bytes, globally; 2 is free.
        let dr7 = DR7_ONE | 1 | 2 << 2 | 0xd << 20 | 0xf << 24;
        let beside = Beside::new(&guest(dr7), OURS).expect("two places");
        assert_eq!(beside.db, [0x1000, 0x2000, OURS, 0x4000]);
        assert_eq!(beside.dr7, DR7_ONE | 1 | 2 << 2 | 3 << 4 | 0xd << 20);
        assert_eq!(beside.guests_share(1), Some(1));
        assert_eq!(
            beside.guests_share(2 | 4),
            Some(2),
            "both at one instruction"
        );
        assert_eq!(beside.guests_share(4), None);
        assert!(beside.is_before(1));
        assert!(!beside.is_before(2), "a write has happened");
        assert!(!beside.is_before(STEP | 1), "so has a step");
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
}
