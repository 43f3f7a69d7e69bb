//! gdb on a replayed guest, over gdb's remote protocol: registers, memory, breakpoints, forwards and
//! backwards.
//!
//! The guest is only looked at: to write its registers or memory would make another execution of it, so it
//! is refused. All breakpoints, gdb's "software" ones too, are the processor's: a byte changed in memory would
//! be read by the guest and hashed by the log's digests. Only logs of the exit clock: on the branch clock
//! the replay needs the processor's breakpoints for itself.

#![forbid(unsafe_code)]

use super::checkpoints::Checkpoints;
use super::debugger::{Debuggee, Debugger, Entered, Stopped};
use super::next_instruction::{INSTRUCTION_BYTES_MAX, successors};
use super::replay::{Nobody, Replay, ReplayOptions, linear};
use super::session::RuntimeError;
use crate::kvm::vcpu::Debugging;
use crate::machine::cpu_state::CpuState;
use crate::replication::engine::{Next, Offer};
use gdbstub::common::Signal;
use gdbstub::conn::ConnectionExt;
use gdbstub::stub::{GdbStub, SingleThreadStopReason, run_blocking};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::reverse_exec::{
    ReplayLogPosition, ReverseCont, ReverseContOps, ReverseStep, ReverseStepOps,
};
use gdbstub::target::ext::base::singlethread::{
    SingleThreadBase, SingleThreadResume, SingleThreadResumeOps, SingleThreadSingleStep,
    SingleThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, SwBreakpoint, SwBreakpointOps,
};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use inspect::place::Place;
use logging_channel::record::ClockKind;
use std::io;
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener};

/// Breakpoints of the processor; one step may need two, and needs none of the others meanwhile.
const BREAKPOINTS_MAX: usize = 4;

/// Replays up to `options.until` (the beginning when absent) and serves gdb there until it leaves.
/// `listening` is given the address.
///
/// # Errors
/// When the log cannot be replayed, is one of the branch clock, or the connection fails.
pub fn serve_gdb(
    options: &ReplayOptions<'_>,
    address: SocketAddr,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), RuntimeError> {
    let io = |operation| move |source| RuntimeError::Io { operation, source };
    let mut replay = Replay::begin(options)?;
    if replay.clock_kind != ClockKind::Exits {
        let kind = io::ErrorKind::Unsupported;
        let why = io::Error::new(kind, "only logs of the exit clock can be debugged");
        return Err(io("serve gdb")(why));
    }
    let mut checkpoints = Checkpoints::new().map_err(io("make a directory for states"))?;
    let until = options.until.unwrap_or(Place::Exit(0));
    replay.run_keeping(until, &mut Nobody, &mut checkpoints)?;
    let exits = replay.engine.point().exits;
    drop(replay);
    let mut guest = Guest {
        options: *options,
        replay: None,
        checkpoints,
    };
    // From an exit, so that the same place can be reached again.
    guest.restart(exits)?;
    let mut debugged = Debugged {
        debugger: Debugger::new(guest),
        wish: Wish::Resume,
    };
    let listener = TcpListener::bind(address).map_err(io("listen for gdb"))?;
    listening(listener.local_addr().map_err(io("listen for gdb"))?);
    let (stream, _) = listener.accept().map_err(io("accept gdb"))?;
    stream.set_nodelay(true).map_err(io("accept gdb"))?;
    let connection: Connection = Box::new(stream);
    let ended = GdbStub::new(connection).run_blocking::<Loop<'_>>(&mut debugged);
    match ended {
        Ok(_) => Ok(()),
        Err(error) => Err(io("serve gdb")(io::Error::other(error.to_string()))),
    }
}

type Connection = Box<dyn ConnectionExt<Error = io::Error>>;

/// The guest on KVM, begun anew, or with a state that was kept, whenever it has to go back.
struct Guest<'a> {
    options: ReplayOptions<'a>,
    replay: Option<Replay>,
    checkpoints: Checkpoints,
}

impl Guest<'_> {
    fn replay(&mut self) -> Result<&mut Replay, RuntimeError> {
        let gone = || RuntimeError::Io {
            operation: "debug",
            source: io::Error::other("the replay could not begin anew"),
        };
        self.replay.as_mut().ok_or_else(gone)
    }

    fn cpu(&mut self) -> Result<CpuState, RuntimeError> {
        Ok(self.replay()?.engine.executor().vcpu.save()?)
    }

    fn memory(&mut self, address: u64, length: usize) -> Result<Vec<u8>, RuntimeError> {
        Ok(linear(self.replay()?.engine.executor(), address, length)?)
    }

    /// Gets the engine to where the guest is to be entered; false at the end of the log.
    fn ready(&mut self) -> Result<bool, RuntimeError> {
        let replay = self.replay()?;
        let mut finished = false;
        loop {
            match replay.engine.poll(replay.clock.now())? {
                Next::Run => break Ok(true),
                Next::Stopped => break Ok(false),
                Next::Wait { .. } if finished => break Ok(false),
                Next::Wait { .. } => {
                    finished = replay.feed(None)?;
                    if finished {
                        replay.engine.offer(replay.clock.now(), Offer::FinishLog);
                    }
                }
            }
        }
    }
}

impl Debuggee for Guest<'_> {
    type Error = RuntimeError;

    fn restart(&mut self, exits: u64) -> Result<(), RuntimeError> {
        // Two guests at once would need twice the memory.
        self.replay = None;
        let mut replay = match self.checkpoints.before(exits) {
            None => Replay::begin(&self.options)?,
            Some(file) => {
                tracing::info!(exits, from = %file.display(), "back with a state that was kept");
                Replay::begin(&ReplayOptions {
                    from: Some(file),
                    ..self.options
                })?
            }
        };
        let until = Place::Exit(exits);
        replay.run_keeping(until, &mut Nobody, &mut self.checkpoints)?;
        self.replay = Some(replay);
        Ok(())
    }

    fn start_before(&self, exits: u64) -> u64 {
        self.checkpoints.start_before(exits)
    }

    fn exits(&self) -> u64 {
        let point = self.replay.as_ref().map(|replay| replay.engine.point());
        point.map_or(0, |point| point.exits)
    }

    fn rip(&mut self) -> Result<u64, RuntimeError> {
        let executor = self.replay()?.engine.executor();
        Ok(executor.vcpu.general_registers()?.rip)
    }

    fn successors(&mut self) -> Result<Vec<u64>, RuntimeError> {
        let cpu = self.cpu()?;
        let code = self.memory(cpu.general.rip, INSTRUCTION_BYTES_MAX)?;
        let mut failed = None;
        let found = successors(&cpu, &code, |address, length| {
            self.memory(address, length).unwrap_or_else(|error| {
                failed = Some(error);
                Vec::new()
            })
        });
        failed.map_or(Ok(found), Err)
    }

    fn enter(&mut self, stops: &[u64]) -> Result<Entered, RuntimeError> {
        loop {
            if !self.ready()? {
                return Ok(Entered::Over);
            }
            if self.execute(stops)? {
                return Ok(Entered::Exit);
            }
            // Or a signal came: nothing to do with the guest.
            if stops.contains(&self.rip()?) {
                return Ok(Entered::Stop);
            }
        }
    }
}

impl Guest<'_> {
    /// Enters the guest once; whether it came to an exit.
    fn execute(&mut self, stops: &[u64]) -> Result<bool, RuntimeError> {
        let replay = self.replay()?;
        let mut addresses = [None; BREAKPOINTS_MAX];
        let wanted = stops.iter().copied().map(Some);
        addresses
            .iter_mut()
            .zip(wanted)
            .for_each(|(into, stop)| *into = stop);
        let before = replay.engine.point().exits;
        let debugging = match stops {
            [] => Debugging::Off,
            _ => Debugging::Breakpoints(addresses),
        };
        replay.engine.executor().vcpu.debug(debugging)?;
        let executed = replay.engine.execute();
        replay.engine.executor().vcpu.debug(Debugging::Off)?;
        executed?;
        replay.take_outbox(&mut Nobody)?;
        Ok(replay.engine.point().exits != before)
    }
}

/// What gdb asked for.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Resume,
    Step,
    StepBack,
    ResumeBack,
}

struct Debugged<'a> {
    debugger: Debugger<Guest<'a>>,
    wish: Wish,
}

/// Only a type: gdbstub's loop, filled in.
struct Loop<'a>(PhantomData<&'a ()>);

impl<'a> run_blocking::BlockingEventLoop for Loop<'a> {
    type Target = Debugged<'a>;
    type Connection = Connection;
    type StopReason = SingleThreadStopReason<u64>;

    fn wait_for_stop_reason(
        target: &mut Self::Target,
        connection: &mut Connection,
    ) -> Result<
        run_blocking::Event<Self::StopReason>,
        run_blocking::WaitForStopReasonError<RuntimeError, io::Error>,
    > {
        use run_blocking::{Event, WaitForStopReasonError};
        let debugger = &mut target.debugger;
        let stopped = match target.wish {
            Wish::Step => debugger.step(),
            Wish::StepBack => debugger.step_back(),
            Wish::ResumeBack => debugger.resume_back(),
            // A byte from gdb while the guest runs is Ctrl-C; a connection that failed ends it, too.
            Wish::Resume => {
                debugger.resume(|| connection.peek().map_or(true, |byte| byte.is_some()))
            }
        };
        let stopped = stopped.map_err(WaitForStopReasonError::Target)?;
        if stopped == Stopped::Interrupted {
            let byte = connection
                .read()
                .map_err(WaitForStopReasonError::Connection)?;
            return Ok(Event::IncomingData(byte));
        }
        let log = |pos| SingleThreadStopReason::ReplayLog { tid: None, pos };
        Ok(Event::TargetStopped(match stopped {
            Stopped::Stepped => SingleThreadStopReason::DoneStep,
            Stopped::Breakpoint => SingleThreadStopReason::SwBreak(()),
            Stopped::Interrupted | Stopped::TooFar => {
                SingleThreadStopReason::Signal(Signal::SIGINT)
            }
            Stopped::Begin => log(ReplayLogPosition::Begin),
            Stopped::End => log(ReplayLogPosition::End),
        }))
    }

    fn on_interrupt(_: &mut Self::Target) -> Result<Option<Self::StopReason>, RuntimeError> {
        Ok(Some(SingleThreadStopReason::Signal(Signal::SIGINT)))
    }
}

impl Target for Debugged<'_> {
    type Arch = X86_64_SSE;
    type Error = RuntimeError;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64_SSE, RuntimeError> {
        BaseOps::SingleThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadBase for Debugged<'_> {
    fn read_registers(&mut self, registers: &mut X86_64CoreRegs) -> TargetResult<(), Self> {
        let cpu = self.debugger.guest.cpu().map_err(TargetError::Fatal)?;
        *registers = registers_of(&cpu);
        Ok(())
    }

    fn write_registers(&mut self, _: &X86_64CoreRegs) -> TargetResult<(), Self> {
        Err(TargetError::NonFatal)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8]) -> TargetResult<usize, Self> {
        let bytes = self.debugger.guest.memory(start, data.len());
        let bytes = bytes.map_err(TargetError::Fatal)?;
        if bytes.is_empty() && !data.is_empty() {
            return Err(TargetError::NonFatal);
        }
        data[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write_addrs(&mut self, _: u64, _: &[u8]) -> TargetResult<(), Self> {
        Err(TargetError::NonFatal)
    }

    fn support_resume(&mut self) -> Option<SingleThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadResume for Debugged<'_> {
    fn resume(&mut self, _: Option<Signal>) -> Result<(), RuntimeError> {
        self.wish = Wish::Resume;
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<SingleThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, (), Self>> {
        Some(self)
    }

    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, (), Self>> {
        Some(self)
    }
}

impl SingleThreadSingleStep for Debugged<'_> {
    fn step(&mut self, _: Option<Signal>) -> Result<(), RuntimeError> {
        self.wish = Wish::Step;
        Ok(())
    }
}

impl ReverseStep<()> for Debugged<'_> {
    fn reverse_step(&mut self, (): ()) -> Result<(), RuntimeError> {
        self.wish = Wish::StepBack;
        Ok(())
    }
}

impl ReverseCont<()> for Debugged<'_> {
    fn reverse_cont(&mut self) -> Result<(), RuntimeError> {
        self.wish = Wish::ResumeBack;
        Ok(())
    }
}

impl Breakpoints for Debugged<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debugged<'_> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.debugger.add(address, BREAKPOINTS_MAX))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.debugger.remove(address))
    }
}

impl HwBreakpoint for Debugged<'_> {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.debugger.add(address, BREAKPOINTS_MAX))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.debugger.remove(address))
    }
}

fn registers_of(cpu: &CpuState) -> X86_64CoreRegs {
    let (g, s, f) = (&cpu.general, &cpu.system, &cpu.fpu);
    let mut registers = X86_64CoreRegs {
        regs: [
            g.rax, g.rbx, g.rcx, g.rdx, g.rsi, g.rdi, g.rbp, g.rsp, g.r8, g.r9, g.r10, g.r11,
            g.r12, g.r13, g.r14, g.r15,
        ],
        // The upper half is reserved, and zero.
        eflags: u32::try_from(g.rflags & 0xffff_ffff).unwrap_or(0),
        rip: g.rip,
        xmm: f.xmm.map(u128::from_le_bytes),
        mxcsr: f.mxcsr,
        ..X86_64CoreRegs::default()
    };
    let segments = &mut registers.segments;
    segments.cs = s.cs.selector.into();
    segments.ss = s.ss.selector.into();
    segments.ds = s.ds.selector.into();
    segments.es = s.es.selector.into();
    segments.fs = s.fs.selector.into();
    segments.gs = s.gs.selector.into();
    for (into, from) in registers.st.iter_mut().zip(&f.st) {
        into.copy_from_slice(&from[..10]);
    }
    registers.fpu.fctrl = f.fcw.into();
    registers.fpu.fstat = f.fsw.into();
    registers.fpu.ftag = f.ftw.into();
    registers.fpu.fop = f.fop.into();
    registers
}
