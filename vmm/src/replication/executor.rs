//! What recording and replay need of a guest: real (KVM) or a toy processor in simulation.
//!
//! An executor is at a **point** between calls. `apply` changes guest-visible state at the point,
//! `run` leaves it and comes back at the next one. An executor given equal inputs at equal points
//! behaves equally: that is the property everything else rests on, and the digests check it.

#![forbid(unsafe_code)]

pub use crate::machine::input::Input;
use logging_channel::execution_point::ExecutionPoint;
use logging_channel::host_time::GuestTime;
use logging_channel::record::{Digests, EndReason, OutputDevice};

/// Output the guest produced on the way to the current point, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Produced {
    /// Which device.
    pub device: OutputDevice,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// How the guest stands at the point it reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It can be entered again.
    Runnable,
    /// It waits for an interrupt: nothing happens until an input is applied.
    Halted,
    /// It is over.
    Ended(EndReason),
}

/// Where to stop between synchronous exits (branch clock only).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landing {
    /// Wherever a kick stops the guest, at the first place that the clock can name: the recorder's
    /// freedom.
    Anywhere,
    /// Exactly there.
    On(ExecutionPoint),
    /// Close to it, and on no account past it.
    Near(ExecutionPoint),
}

/// What ended a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// A point that the clock can name: records may be placed here.
    Point,
    /// The neighbourhood of [`Landing::Near`]; no record may be placed here.
    Near,
    /// A kick, at a place that the clock cannot name; no record may be placed here.
    Kicked,
    /// Past the place to land on: this copy has diverged.
    Overshot,
}

/// One stretch of execution, from a point to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// What ended it.
    pub arrival: Arrival,
    /// Output, in the order in which the guest produced it.
    pub outputs: Vec<Produced>,
    /// How the guest stands now.
    pub standing: Standing,
}

/// A guest that can be recorded or replayed.
pub trait Executor {
    /// Failures of the host (KVM, memory), never of the guest.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The current point, with its register check.
    ///
    /// # Errors
    /// When the host cannot read the registers.
    fn point(&mut self) -> Result<ExecutionPoint, Self::Error>;

    /// Digests of guest-visible state here; of memory too when `with_memory`.
    ///
    /// # Errors
    /// When the host cannot read the registers.
    fn digests(&mut self, with_memory: bool) -> Result<Digests, Self::Error>;

    /// Guest time as of the last input.
    fn guest_time(&self) -> GuestTime;

    /// Guest time at which a timer of the guest is due, if one is armed.
    fn next_deadline(&self) -> Option<GuestTime>;

    /// Random bytes that the guest has asked for and not yet been given.
    fn wanted_entropy(&self) -> usize;

    /// Whether the guest has room for this input now; if not, the caller keeps it and asks again.
    fn accepts(&self, input: &Input) -> bool;

    /// How the guest stands.
    fn standing(&self) -> Standing;

    /// Finishes the access that the last exit stands for, so that the guest is between two
    /// instructions and can be saved. An access of several parts makes further exits on the way: they
    /// count, and their output is returned. What this does is a function of the guest's state alone.
    ///
    /// # Errors
    /// When the host fails.
    fn settle(&mut self) -> Result<Vec<Produced>, Self::Error>;

    /// The state of a settled guest for a copy that has, or is being given, everything else: in
    /// pieces of at most [`PART_BYTES_MAX`](logging_channel::message::PART_BYTES_MAX) bytes, in order.
    /// `attempt` is the one that the copy was given everything else in.
    ///
    /// # Errors
    /// When the host fails.
    fn save(&mut self, attempt: u64) -> Result<Vec<Vec<u8>>, Self::Error>;

    /// Notes that a copy can come to this point by itself: what was written before it need not be in
    /// the next [`Executor::name_here`]. Tracking of writes begins with the first call.
    ///
    /// # Errors
    /// When the host fails.
    fn forget_writes(&mut self) -> Result<(), Self::Error>;

    /// Makes a point of the place where a kick stopped the guest, one exit on from the last point, and
    /// gives what a copy that waits at that one needs in order to be here: what was written since
    /// [`Executor::forget_writes`] or this was called, then everything else. Pieces of at most
    /// [`STATE_BYTES_MAX`](logging_channel::record::limits::STATE_BYTES_MAX) bytes.
    ///
    /// # Errors
    /// When the host fails.
    fn name_here(&mut self) -> Result<Vec<Vec<u8>>, Self::Error>;

    /// Most bytes that the pieces of one [`Executor::name_here`] have together.
    fn state_bytes_max(&self) -> u64;

    /// Takes over the state that [`Executor::name_here`] gave on the side that records, at the point
    /// that it left. An `Err` inside says what is wrong with the pieces; the copy is then void.
    ///
    /// # Errors
    /// When the host fails.
    fn load(&mut self, pieces: &[Vec<u8>]) -> Result<Result<(), String>, Self::Error>;

    /// Sets guest time to `time` (never earlier than [`Executor::guest_time`]) and delivers `input`.
    ///
    /// # Errors
    /// When the host fails.
    fn apply(&mut self, time: GuestTime, input: Input) -> Result<Standing, Self::Error>;

    /// Enters the guest and returns at the next point, or where `until` says if that comes first.
    /// It never goes past the next synchronous exit.
    ///
    /// # Errors
    /// When the host fails or the landing overshot.
    fn run(&mut self, until: Option<Landing>) -> Result<Stretch, Self::Error>;
}
