//! What the client outside saw, as data.

use serde::{Deserialize, Serialize};

/// What the client process is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Load {
    /// The witness service, `address:port`.
    pub server: String,
    /// The client's id, unique among the clients of one guest.
    pub client: u64,
    /// Most requests without a reply.
    pub window: usize,
    /// Time between two requests, in microseconds; 0 sends as fast as the window allows.
    pub interval_us: u64,
    /// Requests in all; 0 means no limit. A server that closes after the last answer is no fault.
    pub requests_max: u64,
    /// Payload of every request, in bytes.
    pub payload_bytes: usize,
    /// The guest knows this client from another connection: how many requests it has applied at least and
    /// at the most, with the same load as this one.
    pub known: Option<(u64, u64)>,
    /// How long to keep trying for the one connection, in milliseconds.
    pub connect_limit_ms: u64,
    /// How long to wait for outstanding replies at the end, in milliseconds.
    pub drain_limit_ms: u64,
}

impl Default for Load {
    /// One request every 5 ms while replies may be late: new packets keep flowing over a failure,
    /// as from a busy client, so that the silence seen is the service's and not a sender's
    /// retransmission timer's.
    fn default() -> Self {
        Self {
            server: format!("{}:{}", crate::netns::address::GUEST, witness::WITNESS_PORT),
            client: 1,
            window: 256,
            interval_us: 5_000,
            requests_max: 0,
            payload_bytes: 32,
            known: None,
            connect_limit_ms: 120_000,
            drain_limit_ms: 20_000,
        }
    }
}

impl Load {
    /// One request every 20 ms: well below what an emulated pair serves, so that what is measured is
    /// the failover and not a queue.
    #[must_use]
    pub fn steady() -> Self {
        Self {
            interval_us: 20_000,
            ..Self::default()
        }
    }
}

/// What the rig tells the client process while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Report what was seen so far.
    Tell,
    /// Replies from now on belong to a new phase.
    Phase(String),
    /// Changes [`Load::interval_us`].
    Pace(u64),
    /// Sends nothing until the next `Pace`.
    Rest,
    /// Asks the guest for this many bytes of output with the next request.
    Burst(u32),
    /// Sends nothing more, waits for what is outstanding, compares totals and ends.
    Finish,
}

/// Replies between two [`Order::Phase`]s.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// The name given.
    pub name: String,
    /// Requests acknowledged.
    pub acknowledged: u64,
    /// Longest wait for the next reply while one was due, in milliseconds.
    pub silence_ms: f64,
    /// How long the phase lasted, in milliseconds.
    pub lasted_ms: f64,
}

/// Everything that the client saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// The one connection was made.
    pub connected: bool,
    /// It was never lost. The client has no code that reconnects.
    pub same_connection: bool,
    /// Requests sent.
    pub sent: u64,
    /// Requests whose replies were right.
    pub acknowledged: u64,
    /// Requests that the guest lost: acknowledged before and unknown later, or never answered.
    pub lost: u64,
    /// Requests that the guest applied more than once, or that nobody sent.
    pub repeated: u64,
    /// Longest wait for the next reply while one was due, in milliseconds.
    pub gap_ms: f64,
    /// Phases in order.
    pub phases: Vec<Phase>,
    /// Median time from a request to its reply, in microseconds.
    pub round_trip_p50_us: u64,
    /// 99th percentile of it.
    pub round_trip_p99_us: u64,
    /// Bytes of bursts received and found right.
    pub burst_bytes: u64,
    /// The first thing that was wrong.
    pub fault: Option<String>,
    /// The totals were compared with the guest's own at the end.
    pub finished: bool,
}

impl Observation {
    /// The phase called `name`, or an empty one.
    #[must_use]
    pub fn phase(&self, name: &str) -> Phase {
        self.phases
            .iter()
            .find(|phase| phase.name == name)
            .cloned()
            .unwrap_or_default()
    }

    /// Why this is not what a client of one faithful server sees; empty when it is.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        if !self.same_connection {
            complaints.push("the client's TCP connection was lost".into());
        }
        if self.lost > 0 {
            complaints.push(format!("{} requests were lost", self.lost));
        }
        if self.repeated > 0 {
            complaints.push(format!(
                "{} requests were applied more than once",
                self.repeated
            ));
        }
        if !self.finished {
            complaints.push("the client could not compare totals with the guest".into());
        }
        complaints.extend(self.fault.clone());
        complaints
    }
}
