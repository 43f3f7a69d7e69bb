//! Probe: a guest that debugs itself does not notice a landing.
//!
//! The guest steps itself and watches a byte. What its debug exception handler sees (where it was interrupted,
//! DR6) is compared between a run that is left alone and runs with a breakpoint of ours on the way.

use super::Finding;
use super::tiny_guest::{CODE, Ring, TinyGuest, VECTOR_PORT};
use crate::kvm::KvmError;
use crate::kvm::exit::BadExit;
use crate::kvm::guest_debug::Beside;
use crate::kvm::vcpu::{Debugging, RunOutcome};
use crate::machine::exit::VmExit;

/// The byte that the guest watches, in DR1.
const WATCHED: u64 = 0x1_3000;
/// An address that the guest steps over, in DR0, which is not enabled: DR6 shows it nevertheless.
const LEFT_BEHIND: u64 = CODE + 9;
/// DR7: reserved one, breakpoint 1 on writes of one byte.
const DR7: u64 = 0x400 | 1 << 2 | 1 << 20;
/// Where breakpoints of ours go: among the steps, and right behind the watched write.
const OURS: [u64; 2] = [CODE + 8, CODE + 16];
/// RFLAGS.RF.
const RFLAGS_RF: u64 = 1 << 16;
/// Stops after which the guest counts as lost; it makes about ten.
const STOPS_MAX: usize = 100;

/// What the handler saw: the address that was interrupted, and DR6.
type Seen = Vec<(u64, u64)>;

/// Compares runs with and without a breakpoint of ours.
pub(super) fn undisturbed() -> Result<Finding, KvmError> {
    let (alone, _) = run(None)?;
    for address in OURS {
        let (beside, hits) = run(Some(address))?;
        if beside != alone || hits != 1 {
            return Ok(Finding::Bad(format!(
                "a guest that debugs itself sees {beside:x?} beside a breakpoint ({hits} hits) instead of {alone:x?}"
            )));
        }
    }
    Ok(Finding::Good(format!(
        "a guest keeps its {} debug exceptions beside a breakpoint of ours",
        alone.len()
    )))
}

fn run(ours: Option<u64>) -> Result<(Seen, u32), KvmError> {
    #[rustfmt::skip]
    let code = [
        0x9c,                               // pushfq
        0x80, 0x4c, 0x24, 0x01, 0x01,       // or byte [rsp + 1], 1: RFLAGS.TF
        0x9d,                               // popfq
        0x90,                               // nop
        0x90,                               // nop
        0x88, 0x04, 0x25, 0x00, 0x30, 0x01, 0x00, // mov [WATCHED], al
        0x90,                               // nop
        0x9c,                               // pushfq
        0x80, 0x64, 0x24, 0x01, 0xfe,       // and byte [rsp + 1], ~1
        0x9d,                               // popfq
        0xe6, 0x10,                         // out 0x10, al
    ];
    let mut guest = TinyGuest::with_state(&code, Ring::Kernel, |state| {
        state.debug.db[0] = LEFT_BEHIND;
        state.debug.db[1] = WATCHED;
        state.debug.dr7 = DR7;
    })?;
    let (mut seen, mut hits) = (Seen::new(), 0);
    let handler = VECTOR_PORT + 1;
    for _ in 0..STOPS_MAX {
        let beside = match ours {
            Some(address) => Beside::new(&guest.cpu.debug_registers()?, address),
            None => None,
        };
        guest
            .cpu
            .debug(beside.map_or(Debugging::Off, Debugging::Beside))?;
        match (guest.cpu.run()?, beside) {
            (RunOutcome::Exit(VmExit::PortWrite { port: 0x10, .. }), _) => return Ok((seen, hits)),
            (RunOutcome::Exit(VmExit::PortWrite { port, .. }), _) if port == handler => {
                // Below RDX, pushed by the handler, lies the address that was interrupted.
                let stack = guest.cpu.general_registers()?.rsp;
                let dr6 = guest.cpu.debug_registers()?.dr6;
                seen.push((guest.read(stack + 8)?, dr6));
            }
            (RunOutcome::Debug { dr6, pc }, Some(beside)) => {
                match beside.guests_share(dr6, &guest.cpu.debug_registers()?, pc) {
                    Some(conditions) => guest.cpu.raise_debug(conditions)?,
                    None => {
                        hits += 1;
                        let mut general = guest.cpu.general_registers()?;
                        general.rflags |= RFLAGS_RF;
                        guest.cpu.set_general_registers(&general)?;
                    }
                }
            }
            (other, _) => {
                let what = format!("{other:x?} of a guest that debugs itself");
                return Err(BadExit::Unexpected(what).into());
            }
        }
    }
    Err(BadExit::Unexpected(format!("no end after {STOPS_MAX} stops, seen {seen:x?}")).into())
}
