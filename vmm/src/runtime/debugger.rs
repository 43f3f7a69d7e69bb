//! Forwards and backwards through a replay: positions between exits, and how to be there again.
//!
//! A position is an exit and the moves made since: so many instructions, or on to an address. A replay is
//! the same every time, so the same moves from the same exit lead to the same place. Going back is
//! beginning anew, at the beginning or at a state that was kept, and going less far.
//!
//! Left out: how a guest is run and stopped ([`Debuggee`]), and the debugger's protocol (`gdb`).

#![forbid(unsafe_code)]

/// Instructions walked one by one in search of the one before a place; more are not walked.
const WALK_MAX: u64 = 2_000_000;
/// Moves kept of one position.
const MOVES_MAX: usize = 100_000;

/// What ended a run of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    /// It is before an instruction at one of the addresses given.
    Stop,
    /// It is at its next exit.
    Exit,
    /// The log is at its end.
    Over,
}

/// A guest that is replayed.
pub(super) trait Debuggee {
    /// Why it cannot be run.
    type Error;

    /// Begins anew, and goes to an exit; nothing of what is logged there is applied yet.
    fn restart(&mut self, exits: u64) -> Result<(), Self::Error>;

    /// The last exit up to `exits` that [`Self::restart`] comes to quickly; 0 when there is none but the
    /// beginning.
    fn start_before(&self, exits: u64) -> u64;

    /// Exits so far.
    fn exits(&self) -> u64;

    /// Address of the next instruction.
    fn rip(&mut self) -> Result<u64, Self::Error>;

    /// Where the next instruction may lead; nothing when that cannot be foretold.
    fn successors(&mut self) -> Result<Vec<u64>, Self::Error>;

    /// Runs to the next exit, or to the first of the addresses. When the next instruction is at one of
    /// them it stays where it is.
    fn enter(&mut self, stops: &[u64]) -> Result<Entered, Self::Error>;
}

/// Part of the way from an exit to a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// So many instructions.
    Steps(u64),
    /// At least one instruction, and on to the address; so many times.
    To(u64, u64),
}

/// Where the guest stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Position {
    exits: u64,
    moves: Vec<Move>,
}

impl Position {
    fn add(&mut self, next: Move) {
        match (self.moves.last_mut(), next) {
            (Some(Move::Steps(steps)), Move::Steps(more)) => *steps += more,
            (Some(Move::To(address, times)), Move::To(same, more)) if *address == same => {
                *times += more;
            }
            _ => self.moves.push(next),
        }
    }
}

/// Why the guest stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// One instruction was done or undone.
    Stepped,
    /// At a breakpoint.
    Breakpoint,
    /// Somebody asked for it.
    Interrupted,
    /// Nothing is before this.
    Begin,
    /// The log ends here.
    End,
    /// The place before is too far from an exit to be walked to.
    TooFar,
}

/// A debuggee, its position and its breakpoints.
pub(super) struct Debugger<D> {
    pub(super) guest: D,
    position: Position,
    breakpoints: Vec<u64>,
}

impl<D: Debuggee> Debugger<D> {
    /// Debugs a guest that stands at an exit, nothing of what is logged there applied.
    pub(super) fn new(guest: D) -> Self {
        let position = Position {
            exits: guest.exits(),
            moves: Vec::new(),
        };
        Self {
            guest,
            position,
            breakpoints: Vec::new(),
        }
    }

    /// Sets a breakpoint; there may be `max` of them.
    pub(super) fn add(&mut self, address: u64, max: usize) -> bool {
        let known = self.breakpoints.contains(&address);
        let room = known || self.breakpoints.len() < max;
        if room && !known {
            self.breakpoints.push(address);
        }
        room
    }

    /// Removes a breakpoint; whether it was there.
    pub(super) fn remove(&mut self, address: u64) -> bool {
        let before = self.breakpoints.len();
        self.breakpoints.retain(|known| *known != address);
        self.breakpoints.len() < before
    }

    /// One instruction forwards; to the next exit where its end cannot be foretold.
    pub(super) fn step(&mut self) -> Result<Stopped, D::Error> {
        Ok(match self.one()? {
            Entered::Stop => {
                self.position.add(Move::Steps(1));
                Stopped::Stepped
            }
            Entered::Exit => {
                self.at_exit();
                Stopped::Stepped
            }
            Entered::Over => Stopped::End,
        })
    }

    fn one(&mut self) -> Result<Entered, D::Error> {
        let rip = self.guest.rip()?;
        let mut stops = self.guest.successors()?;
        // A breakpoint where it stands already would keep it there.
        stops.retain(|stop| *stop != rip);
        self.guest.enter(&stops)
    }

    /// On to a breakpoint, the end of the log, or until `interrupted`, which is asked at every exit.
    pub(super) fn resume(
        &mut self,
        mut interrupted: impl FnMut() -> bool,
    ) -> Result<Stopped, D::Error> {
        loop {
            let stops = self.breakpoints.clone();
            match self.onward(&stops)? {
                Entered::Stop => return Ok(Stopped::Breakpoint),
                Entered::Over => return Ok(Stopped::End),
                Entered::Exit if interrupted() => return Ok(Stopped::Interrupted),
                // The instruction behind an exit is arrived at here. One that a read from a device is
                // not finished with is met twice: better than missing one.
                Entered::Exit if stops.contains(&self.guest.rip()?) => {
                    return Ok(Stopped::Breakpoint);
                }
                Entered::Exit => {}
            }
        }
    }

    /// Runs to one of `stops` or the next exit; at least one instruction.
    fn onward(&mut self, stops: &[u64]) -> Result<Entered, D::Error> {
        let mut entered = Entered::Stop;
        let mut left = !stops.contains(&self.guest.rip()?);
        if !left {
            entered = self.one()?;
            left = entered == Entered::Stop && !stops.contains(&self.guest.rip()?);
        }
        if left {
            entered = self.guest.enter(stops)?;
        }
        match entered {
            Entered::Stop => {
                let rip = self.guest.rip()?;
                self.position.add(Move::To(rip, 1));
            }
            Entered::Exit => self.at_exit(),
            Entered::Over => {}
        }
        Ok(entered)
    }

    fn at_exit(&mut self) {
        self.position = Position {
            exits: self.guest.exits(),
            moves: Vec::new(),
        };
    }

    /// Goes to a position, from the beginning.
    fn go(&mut self, to: &Position) -> Result<(), D::Error> {
        self.guest.restart(to.exits)?;
        self.at_exit();
        for part in &to.moves {
            match *part {
                Move::Steps(steps) => {
                    for _ in 0..steps {
                        self.step()?;
                    }
                }
                Move::To(address, times) => {
                    for _ in 0..times {
                        self.onward(&[address])?;
                    }
                }
            }
        }
        self.position = to.clone();
        Ok(())
    }

    /// One instruction backwards.
    pub(super) fn step_back(&mut self) -> Result<Stopped, D::Error> {
        let mut before = self.position.clone();
        match before.moves.pop() {
            Some(Move::Steps(steps)) => {
                if steps > 1 {
                    before.add(Move::Steps(steps - 1));
                }
                self.go(&before)?;
                Ok(Stopped::Stepped)
            }
            Some(Move::To(address, times)) => {
                if times > 1 {
                    before.add(Move::To(address, times - 1));
                }
                self.walk(before, Some(address))
            }
            None if before.exits == 0 => Ok(Stopped::Begin),
            None => {
                before.exits -= 1;
                self.walk(before, None)
            }
        }
    }

    /// From `from` up to the instruction before `address`, or before the next exit.
    fn walk(&mut self, from: Position, address: Option<u64>) -> Result<Stopped, D::Error> {
        let here = self.position.clone();
        self.go(&from)?;
        let mut steps = 0;
        loop {
            let exits = self.guest.exits();
            let ended = self.step()? == Stopped::End;
            if self.guest.exits() != exits || ended {
                break;
            }
            if Some(self.guest.rip()?) == address {
                break;
            }
            steps += 1;
            if steps > WALK_MAX {
                self.go(&here)?;
                return Ok(Stopped::TooFar);
            }
        }
        let mut before = from;
        if steps > 0 {
            before.add(Move::Steps(steps));
        }
        self.go(&before)?;
        Ok(Stopped::Stepped)
    }

    /// Back to the last breakpoint before this, or the beginning.
    pub(super) fn resume_back(&mut self) -> Result<Stopped, D::Error> {
        let stops = self.breakpoints.clone();
        let mut end = self.position.clone();
        loop {
            // An exit itself belongs to what is before it.
            let before = end.exits.saturating_sub(u64::from(end.moves.is_empty()));
            let start = self.guest.start_before(before);
            if let Some(last) = self.last_stop(start, &end, &stops)? {
                self.go(&last)?;
                return Ok(Stopped::Breakpoint);
            }
            end = Position {
                exits: start,
                moves: Vec::new(),
            };
            if start == 0 {
                self.go(&end)?;
                return Ok(Stopped::Begin);
            }
        }
    }

    /// The last position at a breakpoint from exit `start` on and before `end`.
    fn last_stop(
        &mut self,
        start: u64,
        end: &Position,
        stops: &[u64],
    ) -> Result<Option<Position>, D::Error> {
        let mut last = None;
        self.guest.restart(start)?;
        self.at_exit();
        // At power-on the search ends, there is no stop.
        if start > 0 {
            self.note(stops, &mut last)?;
        }
        // Whole stretches first.
        while self.guest.exits() < end.exits {
            match self.onward(stops)? {
                Entered::Stop if self.position.moves.len() <= MOVES_MAX => {
                    last = Some(self.position.clone());
                }
                Entered::Stop => {}
                Entered::Exit if self.position != *end => self.note(stops, &mut last)?,
                Entered::Exit => {}
                Entered::Over => break,
            }
        }
        // Then the way from the last exit to the end, looking at every stop before it.
        if let Some((end, way)) = end.moves.split_last() {
            for part in way {
                self.search(*part, stops, &mut last)?;
                self.note(stops, &mut last)?;
            }
            self.search(*end, stops, &mut last)?;
        }
        Ok(last)
    }

    /// Makes a move again; `last` becomes the last breakpoint before its end, if there is one.
    fn search(
        &mut self,
        part: Move,
        stops: &[u64],
        last: &mut Option<Position>,
    ) -> Result<(), D::Error> {
        let (Move::Steps(times) | Move::To(_, times)) = part;
        for number in 0..times {
            if number > 0 {
                self.note(stops, last)?;
            }
            let Move::To(address, _) = part else {
                self.step()?;
                continue;
            };
            let mut all = stops.to_vec();
            all.push(address);
            while self.onward(&all)? == Entered::Stop && self.guest.rip()? != address {
                self.note(stops, last)?;
            }
        }
        Ok(())
    }

    /// Remembers the present position if it is at a breakpoint.
    fn note(&mut self, stops: &[u64], last: &mut Option<Position>) -> Result<(), D::Error> {
        if stops.contains(&self.guest.rip()?) {
            *last = Some(self.position.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A guest whose instructions lie at these addresses in order of execution; `true` makes an exit.
    struct Toy {
        program: Vec<(u64, bool)>,
        at: usize,
        exits: u64,
        /// States are kept before every so many exits.
        kept_every: u64,
    }

    impl Toy {
        fn new(program: &[(u64, bool)], kept_every: u64) -> Self {
            let program = program.to_vec();
            Self {
                program,
                at: 0,
                exits: 0,
                kept_every,
            }
        }
    }

    impl Debuggee for Toy {
        type Error = ();

        fn restart(&mut self, exits: u64) -> Result<(), ()> {
            (self.at, self.exits) = (0, 0);
            while self.exits < exits {
                self.enter(&[])?;
            }
            Ok(())
        }

        fn start_before(&self, exits: u64) -> u64 {
            exits / self.kept_every * self.kept_every
        }

        fn exits(&self) -> u64 {
            self.exits
        }

        fn rip(&mut self) -> Result<u64, ()> {
            Ok(self.program.get(self.at).map_or(0, |(address, _)| *address))
        }

        fn successors(&mut self) -> Result<Vec<u64>, ()> {
            let next = self.program.get(self.at + 1);
            Ok(next.map(|(address, _)| *address).into_iter().collect())
        }

        fn enter(&mut self, stops: &[u64]) -> Result<Entered, ()> {
            loop {
                let Some((address, exit)) = self.program.get(self.at).copied() else {
                    return Ok(Entered::Over);
                };
                if stops.contains(&address) {
                    return Ok(Entered::Stop);
                }
                self.at += 1;
                if exit {
                    self.exits += 1;
                    return Ok(Entered::Exit);
                }
            }
        }
    }

    /// Programs without two equal addresses in a row: those are loops of one instruction, which only
    /// an exit ends.
    fn program() -> impl Strategy<Value = Vec<(u64, bool)>> {
        prop::collection::vec((1u64..8, prop::bool::weighted(0.2)), 2..60).prop_map(
            |mut program| {
                program.dedup_by_key(|(address, _)| *address);
                program
            },
        )
    }

    proptest! {
        #[test]
        fn back_is_where_it_came_from(
            program in program(), moves in prop::collection::vec(0..3, 1..12), stop in 1u64..8
        ) {
            let mut debugger = Debugger::new(Toy::new(&program, 1));
            debugger.add(stop, 4);
            for part in moves {
                let before = debugger.guest.at;
                match part {
                    0 => { debugger.step().unwrap(); }
                    1 => { debugger.resume(|| false).unwrap(); }
                    _ => {
                        let stopped = debugger.step_back().unwrap();
                        let expected = before.saturating_sub(1);
                        if stopped == Stopped::Begin {
                            prop_assert_eq!(before, 0);
                        }
                        prop_assert_eq!(debugger.guest.at, expected);
                    }
                }
                if debugger.guest.at >= program.len() {
                    break;
                }
            }
        }

        #[test]
        fn resuming_back_finds_the_last_breakpoint_before(
            program in program(), kept_every in 1u64..8, forward in 0usize..60, stops in prop::collection::vec(1u64..8, 0..3)
        ) {
            let mut debugger = Debugger::new(Toy::new(&program, kept_every));
            for _ in 0..forward.min(program.len() - 1) {
                debugger.step().unwrap();
            }
            for stop in &stops {
                debugger.add(*stop, 4);
            }
            let here = debugger.guest.at;
            // What is there at power-on is where the search begins: the beginning, not a stop.
            let expected = (1..here).rev().find(|at| stops.contains(&program[*at].0));
            let stopped = debugger.resume_back().unwrap();
            prop_assert_eq!(debugger.guest.at, expected.unwrap_or(0));
            let word = expected.map_or(Stopped::Begin, |_| Stopped::Breakpoint);
            prop_assert_eq!(stopped, word);
        }
    }
}
