//! One simulated host: a node, a guest with its engine, and the queues between them.

use super::random::Random;
use super::toy_cpu::ToyCpu;
use super::world::Event;
use logging_channel::clock_agreement::ClockOffer;
use logging_channel::failure_detector::DetectorConfig;
use logging_channel::flow::FlowConfig;
use logging_channel::host_time::HostTime;
use logging_channel::message::Identity;
use logging_channel::record::{ClockKind, LogIndex, Start};
use std::collections::VecDeque;
use vmm::replication::engine::{Emitted, Engine, EngineConfig, EntropySource, Offer};
use vmm::replication::go_live::RetryConfig;
use vmm::replication::node::{Node, NodeConfig, Part};

use super::faults::Plan;

/// The VM's name.
pub const VM: &str = "toy";
/// Batches that may wait between the processor's thread and the node.
const TO_NODE_MAX: usize = 32;

/// What the processor's thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processor {
    /// Waits for an offer or a deadline.
    Waiting,
    /// Is inside the guest.
    Running,
    /// Has to wait until the node takes what was emitted.
    Blocked,
}

/// One run of one process on one host.
pub struct Host {
    /// 0: configured as primary; 1: as backup.
    pub id: usize,
    /// Counts processes on this host.
    pub run: u64,
    /// Its evidence, an index into the invariants' lives.
    pub life: usize,
    /// Has power.
    pub up: bool,
    /// Stands still.
    pub paused: bool,
    /// The newest generation that this host has seen: kept in a file that outlives the process, not the
    /// host's power.
    pub mark: u64,
    /// Host clocks have unrelated origins.
    pub clock_offset_ns: u64,
    /// The state machine under test.
    pub node: Node,
    /// The guest, once it exists here.
    pub engine: Option<Engine<ToyCpu>>,
    /// What the processor's thread does.
    pub processor: Processor,
    /// The only valid processor event.
    pub processor_token: u64,
    /// The only valid tick.
    pub tick_token: u64,
    /// From the node, for the engine, with the time of arrival.
    pub offers: VecDeque<(u64, Offer)>,
    /// From the engine, for the node, with the time of arrival.
    pub to_node: VecDeque<(u64, Vec<Emitted>)>,
    /// The request at the arbiter.
    pub request: Option<u64>,
    /// What happened while the host stood still.
    pub deferred: Vec<Event>,
    /// Pieces of a running guest's state, as they came.
    pub loading: Vec<u8>,
    /// Attempts to load one that were given up.
    pub unloads: u64,
    /// Sabotage: from now on records do not reach the engine.
    pub skip_records: bool,
    /// Chance on this host.
    pub random: Random,
}

/// What both sides must agree on.
#[must_use]
pub fn identity() -> Identity {
    Identity {
        vm: VM.into(),
        cpu_model: "toy".into(),
        memory_bytes: 128,
        kernel_sha256: [0; 32],
        initramfs_sha256: [0; 32],
        cmdline: String::new(),
        mac: [2, 0, 0, 0, 0, 1],
    }
}

/// What a host can run on: the toy processor has no counter, and the backups' hosts say so.
fn clocks(id: usize) -> ClockOffer {
    match id {
        0 => ClockOffer::Either,
        _ => ClockOffer::no_counter("a toy"),
    }
}

/// The first record of a log.
#[must_use]
pub fn start_record(generation: u64, clock: ClockKind, seed: u64) -> Start {
    let identity = identity();
    let mut rng_seed = [0; 32];
    rng_seed[..8].copy_from_slice(&seed.to_le_bytes());
    Start {
        vm: identity.vm,
        generation,
        clock,
        cpu_model: identity.cpu_model,
        memory_bytes: identity.memory_bytes,
        kernel_sha256: identity.kernel_sha256,
        initramfs_sha256: identity.initramfs_sha256,
        cmdline: identity.cmdline,
        mac: identity.mac,
        wall_clock_s: 0,
        rng_seed,
    }
}

fn engine_config() -> EngineConfig {
    EngineConfig {
        mark_interval_ns: 8_000_000,
        verify_memory_every: Some(4),
        stall_ns: Some(1_000_000),
        forget_interval_ns: 30_000_000,
        ..EngineConfig::default()
    }
}

fn entropy(random: &mut Random) -> EntropySource {
    let mut random = random.split();
    Box::new(move |count| (0..count).map(|_| (random.draw() & 0xff) as u8).collect())
}

impl Host {
    /// A process that was just started, on a host that has seen generation `mark`.
    #[must_use]
    pub fn new(
        (id, run): (usize, u64),
        life: usize,
        holder: String,
        mark: u64,
        plan: &Plan,
        mut random: Random,
    ) -> Self {
        let part = if id == 0 && !(plan.standbys && run > 0) {
            Part::Primary {
                after_generation: 0,
            }
        } else {
            Part::Backup
        };
        let flow = FlowConfig {
            window_bytes: plan.window_bytes,
            ..FlowConfig::default()
        };
        let node = Node::new(NodeConfig {
            part,
            holder,
            identity: identity(),
            clocks: clocks(id),
            detector: DetectorConfig::default(),
            flow,
            retry: RetryConfig::default(),
            gate_bytes_max: plan.gate_bytes_max,
            generation: 0,
            newest_generation: mark,
        });
        Self {
            id,
            run,
            life,
            up: true,
            paused: false,
            mark,
            clock_offset_ns: random.range(0, 1_000_000_000_000),
            node,
            engine: None,
            processor: Processor::Waiting,
            processor_token: 0,
            tick_token: 0,
            offers: VecDeque::new(),
            to_node: VecDeque::new(),
            request: None,
            deferred: Vec::new(),
            loading: Vec::new(),
            unloads: 0,
            skip_records: false,
            random,
        }
    }

    /// This host's clock.
    #[must_use]
    pub const fn clock(&self, now: u64) -> HostTime {
        HostTime(now + self.clock_offset_ns)
    }

    /// Whether the processor's thread has to wait for the node.
    #[must_use]
    pub fn queue_full(&self) -> bool {
        self.to_node.len() >= TO_NODE_MAX
    }

    /// Makes the guest and records it.
    pub fn start_guest(
        &mut self,
        now: u64,
        generation: u64,
        clock: ClockKind,
        power_off_exit: u64,
    ) {
        assert_eq!(
            clock,
            ClockKind::Exits,
            "a toy has no counter, and the pair knew"
        );
        let seed = self.random.draw();
        let cpu = ToyCpu::new(seed, power_off_exit);
        let start = start_record(generation, clock, seed);
        let source = entropy(&mut self.random);
        let engine = Engine::recording(cpu, start, engine_config(), source, self.clock(now));
        self.engine = Some(engine.unwrap_or_else(|never| match never {}));
    }

    /// Makes the guest of the state that was loaded, and replays it from record `next` on.
    ///
    /// # Errors
    /// When the state is not complete: a node must not have let this happen.
    pub fn begin_guest(&mut self, next: LogIndex) -> Result<(), String> {
        let loaded = std::mem::take(&mut self.loading);
        let cpu = ToyCpu::decode(&loaded).ok_or("a guest begins with half a state")?;
        let source = entropy(&mut self.random);
        let config = engine_config();
        let engine = Engine::replaying_from(next, cpu, config, source);
        self.engine = Some(engine.unwrap_or_else(|never| match never {}));
        Ok(())
    }

    /// Makes the guest as its Start record says and replays it.
    pub fn replay_guest(&mut self, start: &Start, power_off_exit: u64) {
        let seed = start.rng_seed[..8]
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte));
        let cpu = ToyCpu::new(seed, power_off_exit);
        let source = entropy(&mut self.random);
        let engine = Engine::replaying(cpu, engine_config(), source);
        self.engine = Some(engine.unwrap_or_else(|never| match never {}));
    }
}
