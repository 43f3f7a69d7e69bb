//! A link in memory, for simulation: delays, loses, repeats, reorders and is cut, all from a seed.
//!
//! Time is what the caller says it is; two links with the same seed that are called alike behave
//! alike. A link is generic in what it carries, so that a simulation can put requests to the
//! arbiter on one too. [`LinkFaults::none`] behaves as a TCP connection does between its failures:
//! everything arrives once and in order, or nothing more does after [`MemoryLink::reset`].

#![forbid(unsafe_code)]

use super::{Transport, TransportError};
use crate::codec::{decode_message, encode_message};
use crate::frame::{self, FrameError};
use crate::host_time::HostTime;
use crate::message::Message;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Most items under way in one direction; what is sent beyond is refused.
pub const IN_FLIGHT_MAX: usize = 1 << 16;

/// The two ends of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// One end.
    Near,
    /// The other.
    Far,
}

impl Side {
    /// The other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }
}

/// How a link misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkFaults {
    /// Least delay in nanoseconds.
    pub delay_ns_min: u64,
    /// Largest delay in nanoseconds.
    pub delay_ns_max: u64,
    /// How many of a million items are lost.
    pub loss_ppm: u32,
    /// How many of a million items arrive twice.
    pub duplicate_ppm: u32,
    /// Whether an item may overtake another.
    pub reorder: bool,
}

impl LinkFaults {
    /// A quiet local network: 50 to 200 microseconds, nothing lost, repeated or reordered.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            delay_ns_min: 50_000,
            delay_ns_max: 200_000,
            loss_ppm: 0,
            duplicate_ppm: 0,
            reorder: false,
        }
    }
}

/// What becomes of items on a cut direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// They wait until it is mended, as TCP retransmits.
    Hold,
    /// They are lost, those under way too.
    Drop,
}

/// The link takes no more: [`IN_FLIGHT_MAX`] items are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{IN_FLIGHT_MAX} items are under way on the link")]
pub struct LinkFull;

/// A link that carries items of type `T` both ways.
#[derive(Debug, Clone)]
pub struct MemoryLink<T> {
    random: u64,
    faults: LinkFaults,
    from_near: Direction<T>,
    from_far: Direction<T>,
    lost: u64,
}

#[derive(Debug, Clone)]
struct Direction<T> {
    /// By time of arrival and order of sending.
    in_flight: BTreeMap<(HostTime, u64), T>,
    sent: u64,
    last_arrival: HostTime,
    cut: Option<Cut>,
    closed: bool,
}

impl<T> Direction<T> {
    const fn new() -> Self {
        Self {
            in_flight: BTreeMap::new(),
            sent: 0,
            last_arrival: HostTime(0),
            cut: None,
            closed: false,
        }
    }
}

impl<T: Clone> MemoryLink<T> {
    /// A mended link whose behaviour follows from `seed`.
    #[must_use]
    pub const fn new(seed: u64, faults: LinkFaults) -> Self {
        Self {
            random: seed,
            faults,
            from_near: Direction::new(),
            from_far: Direction::new(),
            lost: 0,
        }
    }

    /// Changes how the link misbehaves from now on.
    pub const fn set_faults(&mut self, faults: LinkFaults) {
        self.faults = faults;
    }

    /// Sends `item` from `from` to the other side.
    ///
    /// # Errors
    /// When too many items are under way; this one is then not sent.
    pub fn send(&mut self, from: Side, now: HostTime, item: T) -> Result<(), LinkFull> {
        let lost = self.chance(self.faults.loss_ppm);
        let copies = 1 + usize::from(self.chance(self.faults.duplicate_ppm));
        if lost || self.direction(from).cut == Some(Cut::Drop) {
            self.lost += 1;
            return Ok(());
        }
        if self.direction(from).in_flight.len() + copies > IN_FLIGHT_MAX {
            return Err(LinkFull);
        }
        for _ in 0..copies {
            let span = self
                .faults
                .delay_ns_max
                .saturating_sub(self.faults.delay_ns_min);
            let delay = self.faults.delay_ns_min + self.below(span.saturating_add(1));
            let reorder = self.faults.reorder;
            let direction = self.direction(from);
            let mut arrival = now.plus_ns(delay);
            if !reorder {
                arrival = arrival.max(direction.last_arrival);
            }
            direction.last_arrival = direction.last_arrival.max(arrival);
            direction.sent += 1;
            direction
                .in_flight
                .insert((arrival, direction.sent), item.clone());
        }
        Ok(())
    }

    /// The next item that has arrived at `at` by `now`.
    pub fn receive(&mut self, at: Side, now: HostTime) -> Option<T> {
        let direction = self.direction(at.other());
        if direction.cut.is_some() {
            return None;
        }
        let entry = direction.in_flight.first_entry()?;
        if entry.key().0 > now {
            return None;
        }
        Some(entry.remove())
    }

    /// When [`Self::receive`] will next have something for `at`; `None` while nothing can arrive.
    #[must_use]
    pub fn next_arrival(&self, at: Side) -> Option<HostTime> {
        let direction = match at {
            Side::Near => &self.from_far,
            Side::Far => &self.from_near,
        };
        let first = direction.in_flight.first_key_value()?;
        direction.cut.is_none().then_some(first.0.0)
    }

    /// Cuts the direction that begins at `from`.
    pub fn cut(&mut self, from: Side, cut: Cut) {
        let direction = self.direction(from);
        direction.cut = Some(cut);
        if cut == Cut::Drop {
            let lost = direction.in_flight.len() as u64;
            direction.in_flight.clear();
            self.lost += lost;
        }
    }

    /// Mends the direction that begins at `from`.
    pub fn mend(&mut self, from: Side) {
        self.direction(from).cut = None;
    }

    /// Loses everything under way both ways, as a connection that breaks does.
    pub fn reset(&mut self) {
        let lost = self.from_near.in_flight.len() + self.from_far.in_flight.len();
        self.from_near.in_flight.clear();
        self.from_far.in_flight.clear();
        self.lost += lost as u64;
    }

    /// Says that `from` sends nothing more; what is under way still arrives.
    pub fn close(&mut self, from: Side) {
        self.direction(from).closed = true;
    }

    /// Whether the side opposite `at` has closed and everything it sent was received.
    #[must_use]
    pub fn is_finished(&self, at: Side) -> bool {
        let direction = match at {
            Side::Near => &self.from_far,
            Side::Far => &self.from_near,
        };
        direction.closed && direction.in_flight.is_empty()
    }

    /// Items lost so far.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    fn direction(&mut self, from: Side) -> &mut Direction<T> {
        match from {
            Side::Near => &mut self.from_near,
            Side::Far => &mut self.from_far,
        }
    }

    fn chance(&mut self, ppm: u32) -> bool {
        self.below(1_000_000) < u64::from(ppm)
    }

    /// A number below `bound`, which is not 0; the bias is far below one in a million.
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// One end of a link that carries frames, as a [`Transport`]: waiting advances simulated time.
#[derive(Debug, Clone)]
pub struct MemoryEnd {
    link: Rc<RefCell<(MemoryLink<Vec<u8>>, HostTime)>>,
    side: Side,
}

impl MemoryEnd {
    /// The two ends of a link that behaves as `seed` and `faults` say.
    #[must_use]
    pub fn pair(seed: u64, faults: LinkFaults) -> (Self, Self) {
        let link = Rc::new(RefCell::new((MemoryLink::new(seed, faults), HostTime(0))));
        let near = Self {
            link: Rc::clone(&link),
            side: Side::Near,
        };
        let side = Side::Far;
        (near, Self { link, side })
    }

    /// Says that nothing more will be sent from this end.
    pub fn close(&self) {
        self.link.borrow_mut().0.close(self.side);
    }
}

impl Transport for MemoryEnd {
    async fn send(&mut self, message: &Message) -> Result<(), TransportError> {
        let frame = encode_message(message)?;
        let (link, now) = &mut *self.link.borrow_mut();
        let (queued, max) = (IN_FLIGHT_MAX, IN_FLIGHT_MAX);
        let sent = link.send(self.side, *now, frame);
        sent.map_err(|LinkFull| TransportError::QueueFull { queued, max })
    }

    async fn next(&mut self) -> Result<Option<Message>, TransportError> {
        let (link, now) = &mut *self.link.borrow_mut();
        let Some(arrival) = link.next_arrival(self.side) else {
            return match link.is_finished(self.side) {
                true => Ok(None),
                false => Err(TransportError::Idle),
            };
        };
        *now = arrival.max(*now);
        let Some(bytes) = link.receive(self.side, *now) else {
            return Err(TransportError::Idle);
        };
        let offset = 0;
        let refused = |error: FrameError| TransportError::Frame { offset, error };
        let frame = frame::parse(&bytes).map_err(refused)?;
        let message = decode_message(frame);
        message
            .map(Some)
            .map_err(|error| TransportError::Payload { offset, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(link: &mut MemoryLink<u32>, at: Side, until: HostTime) -> Vec<u32> {
        std::iter::from_fn(|| link.receive(at, until)).collect()
    }

    fn filled(seed: u64, faults: LinkFaults, count: u32) -> MemoryLink<u32> {
        let mut link = MemoryLink::new(seed, faults);
        for item in 0..count {
            let now = HostTime(0).plus_ns(u64::from(item) * 1_000);
            link.send(Side::Near, now, item).expect("room");
        }
        link
    }

    const LATE: HostTime = HostTime(u64::MAX);

    fn wild() -> LinkFaults {
        LinkFaults {
            loss_ppm: 100_000,
            duplicate_ppm: 100_000,
            reorder: true,
            ..LinkFaults::none()
        }
    }

    #[test]
    fn without_faults_everything_arrives_in_order_and_not_at_once() {
        let mut link = filled(1, LinkFaults::none(), 100);
        assert_eq!(arrivals(&mut link, Side::Far, HostTime(49_999)), []);
        assert_eq!(link.receive(Side::Near, LATE), None, "nothing comes back");
        let expected: Vec<u32> = (0..100).collect();
        assert_eq!(arrivals(&mut link, Side::Far, LATE), expected);
    }

    #[test]
    fn the_same_seed_behaves_the_same() {
        let runs =
            [7, 7, 8].map(|seed| arrivals(&mut filled(seed, wild(), 1_000), Side::Far, LATE));
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
    }

    #[test]
    fn loses_repeats_and_reorders_about_as_often_as_told() {
        let mut link = filled(3, wild(), 10_000);
        let arrived = arrivals(&mut link, Side::Far, LATE);
        let lost = link.lost();
        assert!((800..1_200).contains(&lost), "{lost} lost");
        let mut distinct = arrived.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len() as u64, 10_000 - lost);
        let repeated = arrived.len() - distinct.len();
        assert!((700..1_100).contains(&repeated), "{repeated} repeated");
        assert!(!arrived.is_sorted());
    }

    #[test]
    fn arrivals_are_announced() {
        let mut link = filled(4, LinkFaults::none(), 1);
        let arrival = link.next_arrival(Side::Far).expect("under way");
        assert_eq!(link.receive(Side::Far, HostTime(arrival.0 - 1)), None);
        assert_eq!(link.receive(Side::Far, arrival), Some(0));
        assert_eq!(link.next_arrival(Side::Far), None);
    }

    #[test]
    fn a_cut_holds_or_drops() {
        let mut held = filled(5, LinkFaults::none(), 3);
        held.cut(Side::Near, Cut::Hold);
        held.send(Side::Near, HostTime(9_000), 3).expect("room");
        assert_eq!(
            (held.next_arrival(Side::Far), held.receive(Side::Far, LATE)),
            (None, None)
        );
        held.send(Side::Far, HostTime(0), 9).expect("room");
        assert_eq!(
            held.receive(Side::Near, LATE),
            Some(9),
            "only one direction is cut"
        );
        held.mend(Side::Near);
        assert_eq!(arrivals(&mut held, Side::Far, LATE), [0, 1, 2, 3]);

        let mut dropped = filled(5, LinkFaults::none(), 3);
        dropped.cut(Side::Near, Cut::Drop);
        dropped.send(Side::Near, HostTime(9_000), 3).expect("lost");
        dropped.mend(Side::Near);
        dropped.send(Side::Near, HostTime(9_000), 4).expect("room");
        assert_eq!(arrivals(&mut dropped, Side::Far, LATE), [4]);
        assert_eq!(dropped.lost(), 4);
    }

    #[test]
    fn a_reset_loses_what_was_under_way() {
        let mut link = filled(6, LinkFaults::none(), 3);
        link.send(Side::Far, HostTime(0), 9).expect("room");
        link.reset();
        assert_eq!(link.lost(), 4);
        assert_eq!(link.receive(Side::Far, LATE), None);
        assert_eq!(link.receive(Side::Near, LATE), None);
    }

    #[test]
    fn a_link_that_nobody_reads_fills_up() {
        let mut link = filled(7, LinkFaults::none(), IN_FLIGHT_MAX as u32);
        assert_eq!(link.send(Side::Near, HostTime(0), 0), Err(LinkFull));
    }
}
