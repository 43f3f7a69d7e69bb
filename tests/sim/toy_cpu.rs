//! A toy deterministic processor with a toy guest: enough to record, replay and fail over.
//!
//! The guest serves one client: a request carries a sequence number, the guest counts it and folds
//! it into a chain, and answers with both, once for each new number. Between requests it computes on
//! a small memory, reads its clock, asks for entropy, writes to its console, arms a timer, halts.
//! All of it is a function of the state and of the inputs: any byte that differs between two copies
//! shows in every later digest.
//!
//! A stretch is a few steps long. A kick ends it between two of them, at a place that no exit names, and
//! leaves the rest for later; from there the toy can be taken on by its state.
//!
//! `trail` is the simulation's own evidence, independent of the engine's checks: a digest of the
//! state on arrival at every exit.

use super::random::mix;
use logging_channel::execution_point::ExecutionPoint;
use logging_channel::host_time::GuestTime;
use logging_channel::record::{Digests, EndReason, OutputDevice};
use std::collections::VecDeque;
use std::convert::Infallible;
use vmm::replication::executor::{Arrival, Executor, Input, Landing, Produced, Standing, Stretch};

/// Guest time between two timer interrupts.
const TIMER_US: u64 = 10_000;
/// Frames that the guest has room for.
const RECEIVE_FRAMES_MAX: usize = 8;

/// Bytes of a part of the toy's state.
const PART_BYTES: usize = 200;

/// What a client's answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The request's number.
    pub sequence: u64,
    /// Requests applied so far.
    pub count: u64,
    /// All of them folded together.
    pub chain: u64,
}

/// The chain after request `sequence`.
#[must_use]
pub const fn fold(chain: u64, sequence: u64) -> u64 {
    mix(chain ^ mix(sequence))
}

/// A request frame.
#[must_use]
pub fn encode_request(sequence: u64) -> Vec<u8> {
    sequence.to_le_bytes().to_vec()
}

/// The words of a frame.
fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(8)
        .map(|chunk| {
            chunk
                .iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u64::from(*byte))
        })
        .collect()
}

/// Reads an answer frame; `None` for anything else.
#[must_use]
pub fn decode_answer(bytes: &[u8]) -> Option<Answer> {
    match words(bytes)[..] {
        [sequence, count, chain, _unique] => Some(Answer {
            sequence,
            count,
            chain,
        }),
        _ => None,
    }
}

/// The toy.
#[derive(Debug, Clone)]
pub struct ToyCpu {
    registers: u64,
    memory: [u64; 16],
    exits: u64,
    guest_time: GuestTime,
    deadline: GuestTime,
    received: VecDeque<u64>,
    wanted_entropy: usize,
    sequence: u64,
    chain: u64,
    outputs: u64,
    standing: Standing,
    power_off_exit: u64,
    /// Steps to the next exit, if a kick came before it.
    left: u64,
    /// Words of memory written since that was last asked, a bit each. No guest state.
    written: u16,
    /// Sabotage: the next state lacks what was written.
    pub loses_writes: bool,
    /// States taken over from the log.
    pub states_loaded: u64,
    /// The host ends the next stretch before its exit. No guest state.
    pub kick_next: bool,
    /// Digest of the state on arrival at exit 1, 2, ...
    pub trail: Vec<u64>,
}

impl ToyCpu {
    /// The guest at power-on; it powers itself off at exit `power_off_exit`.
    #[must_use]
    pub fn new(seed: u64, power_off_exit: u64) -> Self {
        Self {
            registers: mix(seed),
            memory: std::array::from_fn(|i| mix(seed ^ i as u64)),
            exits: 0,
            guest_time: GuestTime::ZERO,
            deadline: GuestTime::from_micros(TIMER_US),
            received: VecDeque::new(),
            wanted_entropy: 0,
            sequence: 0,
            chain: 0,
            outputs: 0,
            standing: Standing::Runnable,
            power_off_exit,
            left: 0,
            written: 0,
            loses_writes: false,
            states_loaded: 0,
            kick_next: false,
            trail: Vec::new(),
        }
    }

    /// Synchronous exits so far.
    #[must_use]
    pub const fn exits(&self) -> u64 {
        self.exits
    }

    /// Outputs so far, as the guest counts them.
    #[must_use]
    pub fn outputs(&self) -> usize {
        usize::try_from(self.outputs).unwrap_or(usize::MAX)
    }

    /// All of it, with its trail: that of a copy begins where the original's was.
    fn encode(&self) -> Vec<u8> {
        let standing = match self.standing {
            Standing::Runnable => 0,
            Standing::Halted => 1,
            Standing::Ended(_) => 2,
        };
        let fixed = [
            self.registers,
            self.exits,
            self.guest_time.as_micros(),
            self.deadline.as_micros(),
            self.wanted_entropy as u64,
            self.sequence,
            self.chain,
            self.outputs,
            standing,
            self.power_off_exit,
            self.left,
            self.received.len() as u64,
        ];
        let all = fixed.iter().chain(&self.memory).chain(&self.received);
        all.chain(&self.trail)
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    /// What the parts of [`Executor::save`] make together; `None` when some are missing.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let toy = Self::decode_words(bytes)?;
        (toy.trail.len() as u64 == toy.exits).then_some(toy)
    }

    fn decode_words(bytes: &[u8]) -> Option<Self> {
        let mut words = words(bytes).into_iter();
        let mut next = || words.next();
        let mut toy = Self::new(0, 0);
        toy.registers = next()?;
        toy.exits = next()?;
        toy.guest_time = GuestTime::from_micros(next()?);
        toy.deadline = GuestTime::from_micros(next()?);
        toy.wanted_entropy = usize::try_from(next()?).ok()?;
        toy.sequence = next()?;
        toy.chain = next()?;
        toy.outputs = next()?;
        toy.standing = match next()? {
            0 => Standing::Runnable,
            1 => Standing::Halted,
            _ => return None,
        };
        toy.power_off_exit = next()?;
        toy.left = next()?;
        let received = next()?;
        for word in &mut toy.memory {
            *word = next()?;
        }
        for _ in 0..received {
            toy.received.push_back(next()?);
        }
        toy.trail = words.collect();
        Some(toy)
    }

    fn devices_digest(&self) -> u64 {
        let parts = [
            self.guest_time.as_micros(),
            self.deadline.as_micros(),
            self.wanted_entropy as u64,
            self.sequence,
            self.chain,
            self.outputs,
            self.received.len() as u64,
        ];
        parts
            .iter()
            .chain(&self.received)
            .fold(0, |digest, part| mix(digest ^ part))
    }

    fn memory_digest(&self) -> u64 {
        self.memory
            .iter()
            .fold(1, |digest, word| mix(digest ^ word))
    }

    fn compute(&mut self) {
        let place = (self.registers % 16) as usize;
        self.registers =
            mix(self.registers ^ self.memory[place] ^ self.guest_time.as_micros() ^ self.exits);
        self.write((self.registers >> 8) as usize % 16, self.registers);
    }

    fn write(&mut self, place: usize, word: u64) {
        self.memory[place] ^= word;
        self.written |= 1 << place;
    }

    fn note_exit(&mut self) {
        self.trail.push(mix(self.registers
            ^ self.devices_digest()
            ^ self.memory_digest()));
    }

    /// The words written since this was last asked, each behind its place.
    fn written_words(&mut self) -> Vec<u8> {
        if std::mem::take(&mut self.loses_writes) {
            self.written = 0;
        }
        let written = std::mem::take(&mut self.written);
        let places = (0..16_u64).filter(|place| written >> place & 1 == 1);
        let words = places.flat_map(|place| [place, self.memory[place as usize]]);
        words.flat_map(u64::to_le_bytes).collect()
    }

    /// Takes over what [`Executor::name_here`] gave.
    fn take_over(&mut self, pages: &[u8], rest: &[u8]) -> Option<()> {
        for pair in words(pages).chunks_exact(2) {
            *self.memory.get_mut(usize::try_from(pair[0]).ok()?)? = pair[1];
        }
        let next = Self::decode_words(rest)?;
        *self = Self {
            memory: self.memory,
            trail: std::mem::take(&mut self.trail),
            states_loaded: self.states_loaded + 1,
            kick_next: self.kick_next,
            ..next
        };
        self.note_exit();
        (self.trail.len() as u64 == self.exits).then_some(())
    }

    fn serve(&mut self, sequence: u64, outputs: &mut Vec<Produced>) {
        if sequence == self.sequence + 1 {
            self.sequence = sequence;
            self.chain = fold(self.chain, sequence);
        }
        // A repeated request is answered as before; one from the future would show a rollback.
        let (count, chain) = (self.sequence, self.chain);
        self.outputs += 1;
        let answer = [sequence, count, chain, self.outputs];
        let bytes = answer.iter().flat_map(|word| word.to_le_bytes()).collect();
        outputs.push(Produced {
            device: OutputDevice::Network(0),
            bytes,
        });
    }

    fn print(&mut self, outputs: &mut Vec<Produced>) {
        self.outputs += 1;
        let bytes = format!("line {} at exit {}\n", self.outputs, self.exits).into_bytes();
        outputs.push(Produced {
            device: OutputDevice::Console,
            bytes,
        });
    }

    fn next_standing(&self) -> Standing {
        if self.exits >= self.power_off_exit {
            Standing::Ended(EndReason::PowerOff)
        } else if self.received.is_empty() && !self.registers.is_multiple_of(4) {
            Standing::Halted
        } else {
            Standing::Runnable
        }
    }
}

impl Executor for ToyCpu {
    type Error = Infallible;

    fn point(&mut self) -> Result<ExecutionPoint, Infallible> {
        let check = (self.registers & 0xffff) as u16;
        Ok(ExecutionPoint::at_exit(self.exits, check))
    }

    fn digests(&mut self, with_memory: bool) -> Result<Digests, Infallible> {
        Ok(Digests {
            registers: self.registers,
            devices: self.devices_digest(),
            memory: with_memory.then(|| self.memory_digest()),
        })
    }

    fn guest_time(&self) -> GuestTime {
        self.guest_time
    }

    fn next_deadline(&self) -> Option<GuestTime> {
        Some(self.deadline)
    }

    fn wanted_entropy(&self) -> usize {
        self.wanted_entropy
    }

    fn accepts(&self, input: &Input) -> bool {
        match input {
            Input::Packet { .. } => self.received.len() < RECEIVE_FRAMES_MAX,
            Input::Entropy(bytes) => bytes.len() == self.wanted_entropy,
            Input::Timer | Input::Console(_) => true,
        }
    }

    fn standing(&self) -> Standing {
        self.standing
    }

    fn settle(&mut self) -> Result<Vec<Produced>, Infallible> {
        Ok(Vec::new())
    }

    fn save(&mut self, _attempt: u64) -> Result<Vec<Vec<u8>>, Infallible> {
        Ok(self
            .encode()
            .chunks(PART_BYTES)
            .map(<[u8]>::to_vec)
            .collect())
    }

    fn forget_writes(&mut self) -> Result<(), Infallible> {
        self.written = 0;
        Ok(())
    }

    fn name_here(&mut self) -> Result<Vec<Vec<u8>>, Infallible> {
        assert!(self.left > 0, "a kick stopped it between two exits");
        self.exits += 1;
        let pages = self.written_words();
        self.note_exit();
        let rest = Self {
            memory: [0; 16],
            trail: Vec::new(),
            ..self.clone()
        };
        Ok(vec![pages, rest.encode()])
    }

    fn state_bytes_max(&self) -> u64 {
        2_000
    }

    fn load(&mut self, pieces: &[Vec<u8>]) -> Result<Result<(), String>, Infallible> {
        let loaded = match pieces {
            [pages, rest] => self.take_over(pages, rest),
            _ => None,
        };
        Ok(loaded.ok_or_else(|| "it is not whole".to_owned()))
    }

    fn apply(&mut self, time: GuestTime, input: Input) -> Result<Standing, Infallible> {
        assert!(time >= self.guest_time, "guest time never goes backwards");
        self.guest_time = time;
        if self.deadline <= time {
            self.registers = mix(self.registers ^ time.as_micros());
            self.deadline = GuestTime::from_micros(time.as_micros() + TIMER_US);
        }
        match input {
            Input::Timer => {}
            Input::Console(bytes) => self.write(0, mix(bytes.len() as u64)),
            Input::Packet { bytes, .. } => self.received.extend(words(&bytes).first()),
            Input::Entropy(bytes) => {
                self.wanted_entropy = 0;
                let fold = |word, byte: &u8| mix(word ^ u64::from(*byte));
                self.write(1, bytes.iter().fold(0, fold));
            }
        }
        if self.standing == Standing::Halted {
            self.standing = Standing::Runnable;
        }
        Ok(self.standing)
    }

    fn run(&mut self, until: Option<Landing>) -> Result<Stretch, Infallible> {
        let exits_only = matches!(until, None | Some(Landing::Anywhere));
        assert!(exits_only, "the exit clock never lands between exits");
        assert_eq!(
            self.standing,
            Standing::Runnable,
            "only a runnable guest is entered"
        );
        let mut outputs = Vec::new();
        if self.left == 0 {
            self.left = 2 + self.registers % 3;
        }
        let kicked = std::mem::take(&mut self.kick_next);
        while self.left > u64::from(kicked) {
            self.compute();
            self.left -= 1;
        }
        if kicked {
            return Ok(Stretch {
                arrival: Arrival::Kicked,
                outputs,
                standing: self.standing,
            });
        }
        self.exits += 1;
        for _ in 0..2 {
            if let Some(sequence) = self.received.pop_front() {
                self.serve(sequence, &mut outputs);
            }
        }
        if self.registers % 8 == 1 {
            self.print(&mut outputs);
        }
        if self.registers % 64 == 2 {
            self.wanted_entropy = 8;
        }
        self.standing = self.next_standing();
        self.note_exit();
        Ok(Stretch {
            arrival: Arrival::Point,
            outputs,
            standing: self.standing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_inputs_at_equal_points_give_equal_copies() {
        let run = |flipped: u64| {
            let mut cpu = ToyCpu::new(7, 1_000);
            for round in 0..50 {
                let time = GuestTime::from_micros(round * 3_000);
                let bytes = encode_request(round + flipped * u64::from(round == 20));
                cpu.apply(time, Input::Packet { device: 0, bytes })
                    .expect("infallible");
                cpu.run(None).expect("infallible");
            }
            cpu.trail
        };
        assert_eq!(run(0), run(0));
        let (right, wrong) = (run(0), run(1));
        assert_eq!(right[..20], wrong[..20]);
        assert!(right.iter().zip(&wrong).skip(20).all(|(a, b)| a != b));
    }

    #[test]
    fn a_saved_copy_goes_on_alike() {
        let mut cpu = ToyCpu::new(7, 1_000);
        for sequence in 1..20 {
            let bytes = encode_request(sequence);
            let time = GuestTime::from_micros(sequence * 3_000);
            cpu.apply(time, Input::Packet { device: 0, bytes })
                .expect("infallible");
            let parts = cpu.save(1).expect("infallible").concat();
            let mut copy = ToyCpu::decode(&parts).expect("complete");
            assert!(ToyCpu::decode(&parts[..parts.len() - 8]).is_none());
            cpu.run(None).expect("infallible");
            copy.run(None).expect("infallible");
            assert_eq!(copy.encode(), cpu.encode());
        }
    }

    #[test]
    fn a_copy_that_waits_is_taken_on_by_the_state() {
        let (mut cpu, mut copy) = (ToyCpu::new(7, 1_000), ToyCpu::new(7, 1_000));
        cpu.forget_writes().expect("infallible");
        for _ in 0..20 {
            cpu.kick_next = true;
            let stretch = cpu.run(None).expect("infallible");
            assert_eq!(stretch.arrival, Arrival::Kicked);
            let pieces = cpu.name_here().expect("infallible");
            assert_eq!(copy.load(&pieces), Ok(Ok(())));
            assert_eq!(copy.encode(), cpu.encode());
            assert!(
                copy.clone()
                    .load(&pieces[1..])
                    .expect("infallible")
                    .is_err()
            );
            let input = Input::Entropy(vec![1, 2, 3]);
            for toy in [&mut cpu, &mut copy] {
                toy.standing = Standing::Runnable;
                toy.apply(GuestTime::ZERO, input.clone())
                    .expect("infallible");
                toy.run(None).expect("infallible");
                toy.standing = Standing::Runnable;
            }
            assert_eq!(copy.encode(), cpu.encode());
        }
        cpu.kick_next = true;
        cpu.run(None).expect("infallible");
        cpu.loses_writes = true;
        let pieces = cpu.name_here().expect("infallible");
        assert_eq!(copy.load(&pieces), Ok(Ok(())));
        assert_ne!(copy.memory_digest(), cpu.memory_digest());
    }

    #[test]
    fn a_kick_changes_no_guest_state() {
        let mut kicked = ToyCpu::new(7, 1_000);
        kicked.kick_next = true;
        let stretch = kicked.run(None).expect("infallible");
        assert_eq!(stretch.arrival, Arrival::Kicked);
        kicked.run(None).expect("infallible");
        let mut straight = ToyCpu::new(7, 1_000);
        straight.run(None).expect("infallible");
        assert_eq!(kicked.trail, straight.trail);
    }
}
