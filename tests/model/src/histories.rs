//! What clients of the arbiter observe is linearizable, whatever the network does.
//!
//! Clients claim; every request is an operation of its own (an answer that never comes leaves it
//! pending), since a claimant that asks again may be told that it was overtaken meanwhile. Requests and
//! answers are lost and delayed, and requests doubled by something on the way that has no connection for
//! a second answer: a copy changes the register or not, and what is said to it is heard by nobody.
//!
//! Clients claim what follows a generation that was granted, as nodes do. (A claim from the future is
//! refused, and a copy of it may be granted once that future has come.) In every state the history must
//! fit some order of the requests on one register (stateright's `LinearizabilityTester`), and no
//! generation may have been granted to two holders.

#![forbid(unsafe_code)]

use arbiter::register::{Claim, Holder, Outcome, Register};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::collections::BTreeSet;

/// The register as a sequential object: what linearizability is measured against.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Reference(Register);

impl SequentialSpec for Reference {
    type Op = Claim;
    type Ret = Outcome;

    fn invoke(&mut self, claim: &Claim) -> Outcome {
        self.0.claim(claim)
    }
}

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Nothing.
    Nothing,
    /// A restart forgets the last grant.
    Forget,
    /// The answer is decided on what the register held before the last grant.
    StaleRead,
}

/// Clients and their claims.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Each client's claims, sent in this order without waiting for answers.
    pub claims: Vec<Vec<(u64, u64)>>,
    /// What is broken on purpose.
    pub broken: Break,
}

/// A request: client, its number, and whether the network has doubled it.
type Request = (usize, usize);

/// One state.
#[derive(Debug, Clone, PartialEq, Hash)]
pub struct State {
    register: Register,
    before: Option<Register>,
    sent: Vec<usize>,
    requests: BTreeSet<Request>,
    doubled: BTreeSet<Request>,
    answers: Vec<(Request, Outcome)>,
    handled: BTreeSet<Request>,
    grants: BTreeSet<(u64, String)>,
    restarts: u8,
    history: LinearizabilityTester<u8, Reference>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A client sends its next claim.
    Send(usize),
    /// The arbiter handles a request; the network keeps a copy of it or not.
    Handle(Request, bool),
    /// An answer arrives.
    Answer(usize),
    /// The arbiter restarts from its disk.
    Restart,
}

/// Every operation is a thread of its own to the tester.
fn thread((client, number): Request) -> u8 {
    u8::try_from(client * 16 + number).unwrap_or(u8::MAX)
}

impl Clients {
    /// Clients claim only what follows a generation that was granted: they know it from a grant.
    fn may_send(&self, state: &State, client: usize) -> bool {
        let next = self.claims[client].get(state.sent[client]);
        next.is_some_and(|(expected, _)| *expected <= state.register.generation())
    }

    fn claim(&self, (client, number): Request) -> Option<Claim> {
        let (expected, new) = *self.claims.get(client)?.get(number)?;
        let holder = Holder::new(format!("client-{client}")).ok()?;
        Claim::new(expected, new, holder).ok()
    }

    fn handle(&self, state: &mut State, request: Request) {
        let Some(claim) = self.claim(request) else {
            return;
        };
        let held = state.register.clone();
        let mut outcome = state.register.claim(&claim);
        if self.broken == Break::StaleRead
            && let Some(before) = &mut state.before
        {
            outcome = before.clone().claim(&claim);
        }
        if state.register != held {
            state.before = Some(held);
        }
        if outcome == Outcome::Granted {
            let holder = claim.holder().as_str().to_owned();
            state.grants.insert((claim.new_generation(), holder));
        }
        if state.handled.insert(request) {
            state.answers.push((request, outcome));
        }
    }
}

impl Model for Clients {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            register: Register::default(),
            before: None,
            sent: vec![0; self.claims.len()],
            requests: BTreeSet::new(),
            doubled: BTreeSet::new(),
            answers: Vec::new(),
            handled: BTreeSet::new(),
            grants: BTreeSet::new(),
            restarts: 0,
            history: LinearizabilityTester::new(Reference::default()),
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let clients = 0..self.claims.len();
        steps.extend(
            clients
                .filter(|client| self.may_send(state, *client))
                .map(Step::Send),
        );
        for request in &state.requests {
            steps.push(Step::Handle(*request, false));
            if !state.doubled.contains(request) {
                steps.push(Step::Handle(*request, true));
            }
        }
        steps.extend((0..state.answers.len()).map(Step::Answer));
        if self.broken == Break::Forget && state.restarts == 0 && state.before.is_some() {
            steps.push(Step::Restart);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Send(client) => {
                let request = (client, state.sent[client]);
                state.sent[client] += 1;
                state.requests.insert(request);
                state
                    .history
                    .on_invoke(thread(request), self.claim(request)?)
                    .ok()?;
            }
            Step::Handle(request, keep) => {
                if keep {
                    state.doubled.insert(request);
                } else {
                    state.requests.remove(&request);
                }
                self.handle(&mut state, request);
            }
            Step::Answer(index) => {
                let (request, outcome) = state.answers.remove(index);
                state.history.on_return(thread(request), outcome).ok()?;
            }
            Step::Restart => {
                state.restarts += 1;
                state.register = state.before.take()?;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("linearizable", |_, state: &State| {
                state.history.serialized_history().is_some()
            }),
            Property::always("one holder for a generation", |_, state: &State| {
                let generations: BTreeSet<u64> = state.grants.iter().map(|(g, _)| *g).collect();
                generations.len() == state.grants.len()
            }),
            Property::sometimes("the winner is overtaken", |_, state: &State| {
                state.grants.len() > 1
            }),
        ]
    }
}

/// Visits every history. The number of states, or what does not hold.
///
/// # Errors
/// With the property and the steps to where it is broken.
pub fn check_histories(clients: Clients) -> Result<usize, String> {
    let checker = clients
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    for name in ["linearizable", "one holder for a generation"] {
        if let Some(path) = checker.discovery(name) {
            return Err(format!("{name}: {:?}", path.into_actions()));
        }
    }
    if checker.discovery("the winner is overtaken").is_none() {
        return Err("never seen: the winner is overtaken".to_owned());
    }
    Ok(checker.unique_state_count())
}
