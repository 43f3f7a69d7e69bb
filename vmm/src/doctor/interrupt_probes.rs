//! Probes of where the guest can be stopped and interrupted.

use super::Finding;
use super::tiny_guest::{CODE, Ring, TinyGuest, VECTOR_PORT};
use crate::kvm::KvmError;
use crate::kvm::exit::BadExit;
use crate::kvm::vcpu::{Debugging, RunOutcome};
use crate::machine::exit::{Answer, VmExit};
use std::sync::mpsc::TryRecvError;

/// Windows asked for by [`window_is_exact`]: a flaw seen on an emulated host came once in about
/// two thousand.
const WINDOWS: u32 = 2_000;
/// Vector of the probes' interrupt.
const VECTOR: u8 = 0x40;
/// RFLAGS.RF: do not stop at the same breakpoint again.
const RFLAGS_RF: u64 = 1 << 16;
/// RFLAGS.IF.
const RFLAGS_IF: u64 = 1 << 9;

/// One instruction at a time, in both rings.
pub(super) fn single_step() -> Result<Finding, KvmError> {
    for ring in [Ring::Kernel, Ring::User] {
        // inc rax, four times; jmp back
        let code = [
            0x48, 0xff, 0xc0, 0x48, 0xff, 0xc0, 0x48, 0xff, 0xc0, 0x48, 0xff, 0xc0, 0xeb, 0xf2,
        ];
        let mut guest = TinyGuest::new(&code, ring)?;
        for expected in [3, 6, 9, 12, 0, 3] {
            guest.cpu.debug(Debugging::SingleStep)?;
            let outcome = guest.cpu.run()?;
            let expected = CODE + expected;
            if !matches!(outcome, RunOutcome::Debug { pc, .. } if pc == expected) {
                return Ok(Finding::Bad(format!(
                    "a step in {ring:?} mode leads to {outcome:x?} instead of {expected:#x}"
                )));
            }
        }
    }
    Ok(Finding::Good("exact in rings 0 and 3".into()))
}

/// A hardware breakpoint in a loop hits every time round.
pub(super) fn breakpoint() -> Result<Finding, KvmError> {
    /// Times round the loop.
    const ROUNDS: u64 = 20;
    // mov ecx, 20; dec rcx; jnz back; out 0x10, al
    let code = [
        0xb9,
        ROUNDS as u8,
        0,
        0,
        0,
        0x48,
        0xff,
        0xc9,
        0x75,
        0xfb,
        0xe6,
        0x10,
    ];
    let mut guest = TinyGuest::new(&code, Ring::Kernel)?;
    let target = CODE + 5;
    guest.cpu.debug(Debugging::Breakpoint(target))?;
    let mut hits = 0;
    loop {
        match guest.cpu.run()? {
            RunOutcome::Debug { pc, .. } if pc == target => {}
            RunOutcome::Debug { pc, .. } => {
                return Ok(Finding::Note(format!(
                    "hit at {pc:#x} instead of {target:#x}"
                )));
            }
            RunOutcome::Kicked | RunOutcome::Exit(_) => break,
        }
        hits += 1;
        let mut general = guest.cpu.general_registers()?;
        if general.rcx != ROUNDS + 1 - hits {
            return Ok(Finding::Note(format!(
                "hit {hits} comes with RCX {}",
                general.rcx
            )));
        }
        general.rflags |= RFLAGS_RF;
        guest.cpu.set_general_registers(&general)?;
    }
    Ok(if hits == ROUNDS {
        Finding::Good(format!("{hits} of {ROUNDS} hits"))
    } else {
        // The exit clock does not need breakpoints.
        Finding::Note(format!(
            "{hits} of {ROUNDS} hits: no branch clock on this host"
        ))
    })
}

/// An interrupt injected at HLT arrives, and returns.
pub(super) fn interrupt() -> Result<Finding, KvmError> {
    // sti; hlt; out 0x10, al
    let mut guest = TinyGuest::new(&[0xfb, 0xf4, 0xe6, 0x10], Ring::Kernel)?;
    let halt = guest.exit()?;
    if halt != VmExit::Halt || !guest.cpu.can_inject() {
        return Ok(Finding::Bad(format!(
            "{halt:x?}, ready for interrupt: {}",
            guest.cpu.can_inject()
        )));
    }
    guest.cpu.inject(VECTOR)?;
    let (handler, back) = (guest.port()?, guest.port()?);
    Ok(
        if (handler, back) == (VECTOR_PORT + u16::from(VECTOR), 0x10) {
            Finding::Good("injected at HLT, handled, returned".into())
        } else {
            Finding::Bad(format!(
                "ports {handler:#x} and {back:#x} instead of the handler's"
            ))
        },
    )
}

/// An interrupt that is due where an MSR access is answered with #GP is not lost.
pub(super) fn interrupt_beside_fault() -> Result<Finding, KvmError> {
    // sti; mov ecx, 0xe7; rdmsr
    let code = [0xfb, 0xb9, 0xe7, 0, 0, 0, 0x0f, 0x32];
    let mut guest = TinyGuest::new(&code, Ring::Kernel)?;
    let exit = guest.exit()?;
    if exit != (VmExit::MsrRead { index: 0xe7 }) {
        return Ok(Finding::Bad(format!("{exit:x?} instead of RDMSR")));
    }
    guest.cpu.answer(Answer::MsrFault)?;
    let mut injected = guest.cpu.can_inject();
    if injected {
        guest.cpu.inject(VECTOR)?;
    }
    // The fault's handler runs with interrupts off: its exit comes first.
    let fault = guest.port()?;
    if fault != VECTOR_PORT + 13 {
        return Ok(Finding::Bad(format!(
            "port {fault:#x} instead of the fault's handler"
        )));
    }
    // Interrupts on again, where the handler is.
    guest.cpu.complete_io()?;
    let mut general = guest.cpu.general_registers()?;
    general.rflags |= RFLAGS_IF;
    guest.cpu.set_general_registers(&general)?;
    if !injected {
        guest.cpu.request_window(true);
        injected = guest.exit()? == VmExit::WindowOpen && guest.cpu.can_inject();
        guest.cpu.request_window(false);
        guest.cpu.inject(VECTOR)?;
    }
    let handler = guest.port();
    Ok(match handler {
        Ok(port) if injected && port == VECTOR_PORT + u16::from(VECTOR) => {
            Finding::Good("it arrives behind the fault".into())
        }
        other => Finding::Bad(format!("{other:x?} instead of the interrupt's handler")),
    })
}

/// No interrupt is lost or doubled when kicks keep throwing the guest out while it is delivered.
pub(super) fn interrupt_under_kicks() -> Result<Finding, KvmError> {
    /// Interrupts.
    const ROUNDS: u32 = 300;
    // sti; hlt; jmp to the hlt
    let mut guest = TinyGuest::new(&[0xfb, 0xf4, 0xeb, 0xfd], Ring::Kernel)?;
    let kicker = guest.cpu.kicker();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        while is_done.try_recv() == Err(TryRecvError::Empty) {
            kicker.kick();
            // On a host with one processor a thread that only yields leaves the guest no time at all.
            std::thread::park_timeout(std::time::Duration::from_micros(50));
        }
    });
    let outcome = under_kicks(&mut guest, ROUNDS);
    drop(done);
    let joined = thread.join().is_ok();
    let (wrong, kicks) = outcome?;
    Ok(match wrong {
        None if joined => Finding::Good(format!("{ROUNDS} interrupts arrived among {kicks} kicks")),
        None => Finding::Note("the kicking thread failed".into()),
        Some(wrong) => Finding::Bad(wrong),
    })
}

fn under_kicks(guest: &mut TinyGuest, rounds: u32) -> Result<(Option<String>, u64), KvmError> {
    let mut kicks = 0;
    let mut exit = |guest: &mut TinyGuest| loop {
        match guest.cpu.run()? {
            RunOutcome::Exit(exit) => return Ok::<_, KvmError>(exit),
            RunOutcome::Kicked | RunOutcome::Debug { .. } => kicks += 1,
        }
    };
    for round in 0..rounds {
        let halt = exit(guest)?;
        if halt != VmExit::Halt || !guest.cpu.can_inject() {
            return Ok((
                Some(format!("{halt:x?} instead of HLT before interrupt {round}")),
                kicks,
            ));
        }
        guest.cpu.inject(VECTOR)?;
        let handler = exit(guest)?;
        let port = VECTOR_PORT + u16::from(VECTOR);
        if !matches!(handler, VmExit::PortWrite { port: seen, .. } if seen == port) {
            return Ok((
                Some(format!("interrupt {round} led to {handler:x?}")),
                kicks,
            ));
        }
    }
    Ok((None, kicks))
}

/// A requested interrupt window opens right behind the shadow of STI, every time.
pub(super) fn window_is_exact() -> Result<Finding, KvmError> {
    #[rustfmt::skip]
    let code = [
        0xfa,                   // cli
        0xe6, 0x10,             // out 0x10, al: here the window is requested
        0xb9, 20, 0, 0, 0,      // mov ecx, 20
        0xff, 0xc9,             // dec ecx
        0x75, 0xfc,             // jnz back
        0xfb,                   // sti
        0x48, 0xff, 0xc3,       // inc rbx, in the shadow
        0x49, 0xff, 0xc0,       // inc r8: here the window is open
        0x49, 0xff, 0xc1,       // inc r9
        0xeb, 0xe8,             // jmp start
    ];
    let open_at = CODE + 16;
    let mut guest = TinyGuest::new(&code, Ring::Kernel)?;
    for round in 0..WINDOWS {
        guest.cpu.request_window(false);
        let port = guest.port()?;
        if port != 0x10 || guest.cpu.can_inject() {
            return Ok(Finding::Bad(format!(
                "port {port:#x} before the window was requested"
            )));
        }
        guest.cpu.request_window(true);
        let exit = guest.exit()?;
        let general = guest.cpu.general_registers()?;
        if exit != VmExit::WindowOpen || general.rip != open_at || !guest.cpu.can_inject() {
            return Ok(Finding::Bad(format!(
                "window {round} of {WINDOWS} led to {exit:x?} at {:#x} instead of {open_at:#x}",
                general.rip
            )));
        }
        guest.cpu.request_window(false);
        guest.cpu.inject(VECTOR)?;
        let handler = guest.port()?;
        // Below RDX, pushed by the handler, lies the address that was interrupted.
        let stack = guest.cpu.general_registers()?.rsp;
        let interrupted = guest.read(stack + 8)?;
        if handler != VECTOR_PORT + u16::from(VECTOR) || interrupted != open_at {
            return Err(BadExit::Unexpected(format!(
                "interrupt {round} of {WINDOWS} was taken at {interrupted:#x} instead of {open_at:#x}"
            ))
            .into());
        }
    }
    Ok(Finding::Good(format!(
        "{WINDOWS} of {WINDOWS} opened at the exact instruction"
    )))
}
