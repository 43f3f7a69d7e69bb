//! A guest of eight instructions on a processor of paper, with a counter that can be as bad as real ones:
//! it overruns its overflows, signals late, and counts one too many on demand.
//!
//! It stands where `runtime::kvm_landing` stands, over the same clock and the same plan.

use crate::clock::branch_clock::{BranchClock, Counter, CounterError};
use crate::clock::landing::{Here, LandingMethod, Plan, plan, plan_near};
use crate::replication::executor::{
    Arrival, Executor, Input, Landing, Produced, Standing, Stretch,
};
use logging_channel::execution_point::{ExecutionPoint, PointKind};
use logging_channel::host_time::GuestTime;
use logging_channel::record::{Digests, OutputDevice};
use std::cell::RefCell;
use std::rc::Rc;

/// Guest time between two timer interrupts.
const TIMER_US: u64 = 40;
/// Where the exit instruction is.
const EXIT_RIP: u64 = 5;
/// An instruction that the recorder must not stop at.
const UNNAMEABLE_RIP: u64 = 1;

/// One step of mixing (SplitMix64).
pub(super) const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How good a host is at stopping a guest.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Host {
    /// `None`: the exit clock.
    pub(super) landing: Option<LandingMethod>,
    /// Most instructions by which an overflow comes late.
    pub(super) skid: u64,
    /// Signals of requests that were withdrawn come all the same.
    pub(super) late_signals: bool,
    /// Sabotage: from this count of branches (of exits, on the exit clock) on, one too many.
    pub(super) lies_from: Option<u64>,
}

/// The counter's hardware.
#[derive(Debug)]
struct Pmu {
    host: Host,
    branches: u64,
    armed_at: Option<u64>,
    /// Instructions until the signal of an overflow arrives.
    signal_in: Option<u64>,
    chance: u64,
}

impl Pmu {
    fn retired(&mut self, branch: bool) -> bool {
        self.branches += u64::from(branch);
        if self.armed_at.is_some_and(|at| self.branches >= at) {
            self.armed_at = None;
            self.chance = mix(self.chance);
            self.signal_in
                .get_or_insert(self.chance % (self.host.skid + 1));
        }
        match self.signal_in {
            Some(0) => {
                self.signal_in = None;
                true
            }
            Some(left) => {
                self.signal_in = Some(left - 1);
                false
            }
            None => false,
        }
    }

    fn arm(&mut self, at: Option<u64>) {
        self.armed_at = at;
        if !self.host.late_signals {
            self.signal_in = None;
        }
    }
}

#[derive(Debug)]
pub(super) struct PaperCounter(Rc<RefCell<Pmu>>);

impl Counter for PaperCounter {
    fn read(&mut self) -> Result<u64, CounterError> {
        let pmu = self.0.borrow();
        let lie = pmu.host.lies_from.is_some_and(|from| pmu.branches >= from);
        Ok(pmu.branches + u64::from(lie))
    }
    fn arm(&mut self, branches: u64) -> Result<(), CounterError> {
        let mut pmu = self.0.borrow_mut();
        let at = pmu.branches + branches;
        pmu.arm(Some(at));
        Ok(())
    }
    fn disarm(&mut self) -> Result<(), CounterError> {
        self.0.borrow_mut().arm(None);
        Ok(())
    }
}

/// Why the guest was left.
enum Stop {
    Exit,
    Kicked,
    Hit,
}

/// The guest and its host.
pub(super) struct PaperGuest {
    host: Host,
    accumulator: u64,
    memory: [u64; 8],
    rip: u64,
    time: GuestTime,
    deadline: GuestTime,
    exits: u64,
    at: Option<PointKind>,
    outputs: Vec<Produced>,
    clock: Option<BranchClock<PaperCounter>>,
    pmu: Rc<RefCell<Pmu>>,
    /// Chance on the host: when kicks come. No guest state.
    chance: u64,
    kick_in: u64,
}

impl PaperGuest {
    /// The guest at power-on; `seed` is the host's luck, not the guest's.
    pub(super) fn new(host: Host, seed: u64) -> Self {
        let pmu = Rc::new(RefCell::new(Pmu {
            host,
            branches: 0,
            armed_at: None,
            signal_in: None,
            chance: mix(seed),
        }));
        let counter = PaperCounter(Rc::clone(&pmu));
        Self {
            host,
            accumulator: 1,
            memory: std::array::from_fn(|place| mix(place as u64)),
            rip: 0,
            time: GuestTime::ZERO,
            deadline: GuestTime::from_micros(TIMER_US),
            exits: 0,
            at: Some(PointKind::Exit),
            outputs: Vec::new(),
            clock: host.landing.map(|method| BranchClock::new(counter, method)),
            pmu,
            chance: mix(!seed),
            kick_in: 1,
        }
    }

    /// Branches retired, whatever the counter says.
    pub(super) fn true_branches(&self) -> u64 {
        self.pmu.borrow().branches
    }

    /// Executes one instruction.
    fn execute(&mut self) {
        let place = (self.accumulator % 8) as usize;
        let branch = |taken: bool, to: u64, next: u64| if taken { to } else { next };
        self.rip = match self.rip {
            0 => {
                self.accumulator = mix(self.accumulator ^ self.memory[place]);
                1
            }
            1 => {
                self.memory[place] ^= self.accumulator;
                2
            }
            2 => branch(self.accumulator & 3 != 0, 0, 3),
            3 => {
                self.accumulator = mix(self.accumulator ^ self.time.as_micros());
                4
            }
            4 => branch(self.accumulator & 0xf0 != 0, 0, EXIT_RIP),
            EXIT_RIP => 6,
            6 => {
                self.accumulator = mix(self.accumulator);
                7
            }
            _ => branch(self.accumulator & 1 == 0, 6, 0),
        };
    }

    /// Runs until something stops the guest, at least one instruction. Only a kick that is due already
    /// comes before the first.
    fn enter(&mut self, breakpoint: Option<u64>, single_step: bool) -> Stop {
        loop {
            if self.kick_in == 0 {
                self.chance = mix(self.chance);
                self.kick_in = 20 + self.chance % 400;
                return Stop::Kicked;
            }
            self.kick_in -= 1;
            let (exits, branches) = (self.rip == EXIT_RIP, matches!(self.rip, 2 | 4 | 7));
            self.execute();
            let signal = self.pmu.borrow_mut().retired(branches);
            if exits {
                return Stop::Exit;
            }
            if breakpoint == Some(self.rip) || single_step {
                return Stop::Hit;
            }
            if signal {
                return Stop::Kicked;
            }
        }
    }

    fn exit(&mut self) -> Stretch {
        self.exits += 1;
        self.at = Some(PointKind::Exit);
        if self.accumulator & 1 == 1 {
            self.outputs.push(Produced {
                device: OutputDevice::Network(0),
                bytes: self.accumulator.to_le_bytes().to_vec(),
            });
        }
        self.stretch(Arrival::Point)
    }

    fn stretch(&mut self, arrival: Arrival) -> Stretch {
        Stretch {
            arrival,
            outputs: std::mem::take(&mut self.outputs),
            standing: Standing::Runnable,
        }
    }

    fn check(&self) -> u16 {
        (mix(self.accumulator ^ self.rip) & 0xffff) as u16
    }

    fn branches(&mut self) -> Result<u64, CounterError> {
        self.clock.as_mut().map_or(Ok(0), BranchClock::branches)
    }

    fn arm(&mut self, after: u64) -> Result<(), CounterError> {
        self.clock.as_mut().map_or(Ok(()), |clock| clock.arm(after))
    }

    fn disarm(&mut self) -> Result<(), CounterError> {
        self.clock.as_mut().map_or(Ok(()), BranchClock::disarm)
    }

    /// As the recorder: to an exit, or to a kick and from there to a place with a name.
    fn run_until_kicked(&mut self) -> Result<Stretch, CounterError> {
        loop {
            if let Stop::Exit = self.enter(None, false) {
                self.disarm()?;
                return Ok(self.exit());
            }
            if self.rip != UNNAMEABLE_RIP {
                self.disarm()?;
                self.at = Some(PointKind::Between);
                return Ok(self.stretch(Arrival::Point));
            }
            self.arm(1)?;
        }
    }

    fn land_on(
        &mut self,
        target: &ExecutionPoint,
        method: LandingMethod,
    ) -> Result<Stretch, CounterError> {
        loop {
            let here = Here {
                branches: self.branches()?,
                rip: self.rip,
                check: self.check(),
            };
            let (arm_after, breakpoint, single_step) = match plan(here, target, method) {
                Plan::Arrived => {
                    self.disarm()?;
                    self.at = Some(PointKind::Between);
                    return Ok(self.stretch(Arrival::Point));
                }
                Plan::Overshot => {
                    self.disarm()?;
                    return Ok(self.stretch(Arrival::Overshot));
                }
                Plan::Run { arm_after } => (arm_after, None, false),
                Plan::Approach { arm_after } | Plan::LeaveHit { arm_after } => {
                    (arm_after, Some(target.rip), false)
                }
                Plan::Step { arm_after } => (arm_after, None, true),
            };
            self.arm(arm_after)?;
            match self.enter(breakpoint, single_step) {
                Stop::Hit => {}
                Stop::Kicked => {
                    self.disarm()?;
                    return Ok(self.stretch(Arrival::Kicked));
                }
                Stop::Exit => {
                    self.disarm()?;
                    return Ok(self.exit());
                }
            }
        }
    }

    fn land_near(
        &mut self,
        target: &ExecutionPoint,
        method: LandingMethod,
    ) -> Result<Stretch, CounterError> {
        let branches = self.branches()?;
        let Some(arm_after) = plan_near(branches, target, method.margin) else {
            return Ok(self.stretch(Arrival::Near));
        };
        self.arm(arm_after)?;
        let stop = self.enter(None, false);
        self.disarm()?;
        Ok(match stop {
            Stop::Exit => self.exit(),
            Stop::Kicked | Stop::Hit => self.stretch(Arrival::Kicked),
        })
    }
}

impl Executor for PaperGuest {
    type Error = CounterError;

    /// It never halts and never ends.
    fn standing(&self) -> Standing {
        Standing::Runnable
    }

    fn settle(&mut self) -> Result<Vec<Produced>, CounterError> {
        Ok(Vec::new())
    }

    /// It has no state worth moving: transfers are not what the suite is about.
    fn save(&mut self, _attempt: u64) -> Result<Vec<Vec<u8>>, CounterError> {
        Ok(Vec::new())
    }

    /// It gives all of its memory each time.
    fn forget_writes(&mut self) -> Result<(), CounterError> {
        Ok(())
    }

    fn name_here(&mut self) -> Result<Vec<Vec<u8>>, CounterError> {
        self.exits += 1;
        self.at = Some(PointKind::Exit);
        let fixed = [
            self.accumulator,
            self.rip,
            self.time.as_micros(),
            self.deadline.as_micros(),
            self.exits,
        ];
        let words = fixed.iter().chain(&self.memory);
        let bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        Ok(bytes.chunks(40).map(<[u8]>::to_vec).collect())
    }

    fn state_bytes_max(&self) -> u64 {
        13 * 8
    }

    fn load(&mut self, pieces: &[Vec<u8>]) -> Result<Result<(), String>, CounterError> {
        let bytes = pieces.concat();
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(std::array::from_fn(|at| word[at])))
            .collect();
        let &[accumulator, rip, time, deadline, exits, ref memory @ ..] = &words[..] else {
            return Ok(Err("it is short".to_owned()));
        };
        let Ok(memory) = memory.try_into() else {
            return Ok(Err("it is short of memory".to_owned()));
        };
        (self.accumulator, self.rip, self.memory) = (accumulator, rip, memory);
        self.time = GuestTime::from_micros(time);
        self.deadline = GuestTime::from_micros(deadline);
        (self.exits, self.at) = (exits, Some(PointKind::Exit));
        Ok(Ok(()))
    }

    fn point(&mut self) -> Result<ExecutionPoint, CounterError> {
        let between = self.at == Some(PointKind::Between);
        if self.clock.is_none() {
            let lie = self.host.lies_from.is_some_and(|from| self.exits >= from);
            return Ok(ExecutionPoint::at_exit(
                self.exits + u64::from(lie),
                self.check(),
            ));
        }
        Ok(ExecutionPoint {
            exits: self.exits,
            kind: if between {
                PointKind::Between
            } else {
                PointKind::Exit
            },
            branches: self.branches()?,
            rip: if between { self.rip } else { 0 },
            check: self.check(),
        })
    }

    fn digests(&mut self, with_memory: bool) -> Result<Digests, CounterError> {
        let memory = self
            .memory
            .iter()
            .fold(0, |digest, word| mix(digest ^ word));
        Ok(Digests {
            registers: mix(self.accumulator ^ self.rip),
            devices: mix(self.time.as_micros() ^ mix(self.deadline.as_micros())),
            memory: with_memory.then_some(memory),
        })
    }

    fn guest_time(&self) -> GuestTime {
        self.time
    }

    fn next_deadline(&self) -> Option<GuestTime> {
        Some(self.deadline)
    }

    fn wanted_entropy(&self) -> usize {
        0
    }

    fn accepts(&self, _: &Input) -> bool {
        true
    }

    fn apply(&mut self, time: GuestTime, input: Input) -> Result<Standing, CounterError> {
        self.time = time;
        if self.deadline <= time {
            self.deadline = GuestTime::from_micros(time.as_micros() + TIMER_US);
        }
        // An input shows at once, in registers and memory: applied one instruction off, it is found.
        self.accumulator = mix(self.accumulator ^ time.as_micros());
        if let Input::Packet { bytes, .. } = input {
            self.memory[0] ^= bytes
                .iter()
                .fold(1, |word, byte| mix(word ^ u64::from(*byte)));
        }
        Ok(Standing::Runnable)
    }

    fn run(&mut self, until: Option<Landing>) -> Result<Stretch, CounterError> {
        self.at = None;
        match (until, self.host.landing) {
            (Some(Landing::On(target)), Some(method)) if target.exits == self.exits => {
                self.land_on(&target, method)
            }
            (Some(Landing::Near(target)), Some(method)) if target.exits == self.exits => {
                self.land_near(&target, method)
            }
            (Some(Landing::Anywhere), Some(_)) => self.run_until_kicked(),
            _ => Ok(match self.enter(None, false) {
                Stop::Exit => self.exit(),
                Stop::Kicked | Stop::Hit => self.stretch(Arrival::Kicked),
            }),
        }
    }
}
