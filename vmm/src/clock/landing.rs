//! How to arrive at an exact instruction: a pure plan, asked again after every stop.
//!
//! A counter's overflow interrupt comes late by the *skid*, so it is armed short of the target by a
//! *margin* that doctor measured on this host. The rest of the way is crossed with a hardware
//! breakpoint on the target's instruction pointer, which may be hit several times before the branch
//! count and the registers agree, too. While a breakpoint is set the counter is armed just past the
//! target, so that a guest that never comes by is stopped as well. A host without usable breakpoints
//! crosses the rest one instruction at a time ([`Crossing::SingleStep`]).
//!
//! Why a margin at all, and its symptoms (as rr puts it in `ReplaySession.cc`): too small a margin
//! shows as `Overshot` right after a run; too large a one costs time, about 40 µs a hit in the lab.
//!
//! ```text
//!   Run{arm_after} ──overflow──► Approach ──hit──► LeaveHit ──hit──► … ──► Arrived
//!         │              │
//!         │              └─ or, without breakpoints: Step ── … ───────────► Arrived
//!         └────────────── count or place wrong ───────────────► Overshot
//! ```

#![forbid(unsafe_code)]

use logging_channel::execution_point::ExecutionPoint;

/// Where the guest is now, between two instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here {
    /// Conditional branches retired in guest mode so far.
    pub branches: u64,
    /// Instruction pointer.
    pub rip: u64,
    /// Register check, as in [`ExecutionPoint::check`].
    pub check: u16,
}

/// How the last part of the way is crossed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Crossing {
    /// From hit to hit of a hardware breakpoint on the target's instruction.
    #[default]
    Breakpoint,
    /// Instruction by instruction: slower, and needs no breakpoints.
    SingleStep,
}

/// How a host lands, as its doctor found it out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LandingMethod {
    /// Branches short of a target at which the counter is armed; 0 means that the host has no skid.
    pub margin: u64,
    /// How the margin is crossed.
    pub crossing: Crossing,
}

/// The next thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Run freely; have the counter stop the guest after this many more branches.
    Run {
        /// Branches until the overflow; at least 1.
        arm_after: u64,
    },
    /// Run to the breakpoint on the target's instruction.
    Approach {
        /// Branches after which the guest is past the target, as a safety stop.
        arm_after: u64,
    },
    /// At the target's instruction, but not at the target: leave it, then run to the breakpoint.
    LeaveHit {
        /// As for [`Plan::Approach`].
        arm_after: u64,
    },
    /// One instruction further.
    Step {
        /// As for [`Plan::Approach`].
        arm_after: u64,
    },
    /// There.
    Arrived,
    /// Past the target: a divergence.
    Overshot,
}

/// Decides what brings a guest that is `here` to `target`.
#[must_use]
pub fn plan(here: Here, target: &ExecutionPoint, method: LandingMethod) -> Plan {
    let LandingMethod { margin, crossing } = method;
    let Some(remaining) = target.branches.checked_sub(here.branches) else {
        return Plan::Overshot;
    };
    if remaining == 0 && here.rip == target.rip && here.check == target.check {
        return Plan::Arrived;
    }
    if remaining > margin {
        return Plan::Run {
            arm_after: remaining - margin,
        };
    }
    let arm_after = remaining + 1;
    match crossing {
        Crossing::SingleStep => Plan::Step { arm_after },
        Crossing::Breakpoint if here.rip == target.rip => Plan::LeaveHit { arm_after },
        Crossing::Breakpoint => Plan::Approach { arm_after },
    }
}

/// Decides how to get close to `target` without passing it; `None` when close enough.
///
/// Used for Progress records, which say how far a guest may run but are no place to stop at.
#[must_use]
pub fn plan_near(branches: u64, target: &ExecutionPoint, margin: u64) -> Option<u64> {
    let remaining = target.branches.saturating_sub(branches);
    (remaining > margin).then(|| remaining - margin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use logging_channel::execution_point::PointKind;

    /// A program as a trace: at each step, the instruction pointer and whether it is a conditional
    /// branch. Register checks are unique per step, as registers almost always are.
    struct Trace {
        steps: Vec<(u64, bool)>,
        at: usize,
        skid: usize,
    }

    impl Trace {
        /// A loop of `body` instructions whose last is the branch, run `times` times.
        fn of_loop(body: u64, times: usize, skid: usize) -> Self {
            let steps = (0..times)
                .flat_map(|_| (0..body).map(move |i| (0x1000 + i, i + 1 == body)))
                .chain([(0x2000, false)])
                .collect();
            Self { steps, at: 0, skid }
        }

        fn branches_at(&self, at: usize) -> u64 {
            self.steps[..at]
                .iter()
                .filter(|(_, branch)| *branch)
                .count() as u64
        }

        fn here_at(&self, at: usize) -> Here {
            let check = u16::try_from(at % 65_521).expect("below 65,521");
            Here {
                branches: self.branches_at(at),
                rip: self.steps[at].0,
                check,
            }
        }

        fn point_at(&self, at: usize) -> ExecutionPoint {
            let here = self.here_at(at);
            ExecutionPoint {
                exits: 0,
                kind: PointKind::Between,
                branches: here.branches,
                rip: here.rip,
                check: here.check,
            }
        }

        /// Runs until the overflow (plus skid) or a breakpoint; false at the trace's end.
        fn run(&mut self, arm_after: u64, breakpoint: Option<u64>) -> bool {
            let limit = self.branches_at(self.at) + arm_after;
            let mut late = None;
            loop {
                self.at += 1;
                if self.at >= self.steps.len() {
                    return false;
                }
                if breakpoint == Some(self.steps[self.at].0) {
                    return true;
                }
                if late.is_none() && self.branches_at(self.at) >= limit {
                    late = Some(self.skid);
                }
                match late {
                    Some(0) => return true,
                    Some(n) => late = Some(n - 1),
                    None => {}
                }
            }
        }
    }

    const CROSSINGS: [Crossing; 2] = [Crossing::Breakpoint, Crossing::SingleStep];

    /// Follows plans until one ends it; the last plan and how many were followed.
    fn follow(trace: &mut Trace, target: &ExecutionPoint, method: LandingMethod) -> (Plan, usize) {
        for stops in 0..10_000 {
            let here = trace.here_at(trace.at);
            let next = plan(here, target, method);
            let going = match next {
                Plan::Arrived | Plan::Overshot => return (next, stops),
                Plan::Run { arm_after } => trace.run(arm_after, None),
                Plan::Approach { arm_after } | Plan::LeaveHit { arm_after } => {
                    trace.run(arm_after, Some(target.rip))
                }
                Plan::Step { .. } => {
                    trace.at += 1;
                    trace.at < trace.steps.len()
                }
            };
            if !going {
                return (Plan::Overshot, stops);
            }
        }
        panic!("no arrival and no overshot: the plan does not end");
    }

    #[test]
    fn every_point_of_a_loop_is_reached_from_its_start() {
        let cases = [(1, 0), (3, 0), (5, 4), (2, 7)];
        for (crossing, (body, skid)) in CROSSINGS
            .into_iter()
            .flat_map(|c| cases.map(|case| (c, case)))
        {
            let margin = 8;
            let method = LandingMethod { margin, crossing };
            let steps = Trace::of_loop(body, 40, skid).steps.len();
            for at in 0..steps {
                let mut trace = Trace::of_loop(body, 40, skid);
                let target = trace.point_at(at);
                let (end, stops) = follow(&mut trace, &target, method);
                assert_eq!(
                    end,
                    Plan::Arrived,
                    "{crossing:?}, body {body}, skid {skid}, step {at}"
                );
                assert_eq!(trace.at, at, "landed elsewhere");
                let most = match crossing {
                    Crossing::Breakpoint => margin + 3,
                    Crossing::SingleStep => (margin + 2) * body + 1,
                };
                assert!(
                    stops as u64 <= most,
                    "{crossing:?}: {stops} stops for one landing"
                );
            }
        }
    }

    #[test]
    fn skid_beyond_the_margin_is_an_overshoot_not_a_wrong_arrival() {
        for crossing in CROSSINGS {
            let margin = 1;
            let mut trace = Trace::of_loop(2, 100, 50);
            let target = trace.point_at(60);
            let (end, _) = follow(&mut trace, &target, LandingMethod { margin, crossing });
            assert_eq!(end, Plan::Overshot);
        }
    }

    #[test]
    fn a_counter_that_lies_by_one_never_arrives() {
        for (crossing, lie) in CROSSINGS
            .into_iter()
            .flat_map(|c| [1, -1].map(|lie| (c, lie)))
        {
            let margin = 4;
            let mut trace = Trace::of_loop(3, 40, 0);
            let mut target = trace.point_at(50);
            target.branches = target.branches.saturating_add_signed(lie);
            let method = LandingMethod { margin, crossing };
            assert_eq!(follow(&mut trace, &target, method).0, Plan::Overshot);
        }
    }

    #[test]
    fn other_registers_at_the_same_count_and_place_are_not_the_target() {
        let target = ExecutionPoint {
            exits: 3,
            kind: PointKind::Between,
            branches: 10,
            rip: 7,
            check: 1,
        };
        let here = Here {
            branches: 10,
            rip: 7,
            check: 2,
        };
        let method = |crossing| LandingMethod {
            margin: 5,
            crossing,
        };
        assert_eq!(
            plan(here, &target, method(Crossing::Breakpoint)),
            Plan::LeaveHit { arm_after: 1 }
        );
        assert_eq!(
            plan(here, &target, method(Crossing::SingleStep)),
            Plan::Step { arm_after: 1 }
        );
    }

    #[test]
    fn near_is_short_of_the_target_by_the_margin() {
        let target = ExecutionPoint {
            branches: 100,
            ..ExecutionPoint::default()
        };
        assert_eq!(plan_near(10, &target, 20), Some(70));
        assert_eq!(plan_near(80, &target, 20), None);
        assert_eq!(plan_near(200, &target, 20), None);
    }
}
