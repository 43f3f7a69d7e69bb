//! The log link between the two hosts: frames pass through the rig, which can cut and impair them.
//!
//! Each direction has its own impairment, changeable at any time, and its own counters. One thread
//! per direction receives; a frame that must wait is handed to that direction's second thread. Which
//! frames are lost or doubled follows from a seed and the order of frames alone.
//!
//! An impairment may concern one address only: the arbiter's link is that of both hosts.
//!
//! `tc netem` would do this in the kernel, but many kernels lack it.

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vmm::backend::tap::Tap;

/// Longest frame: 64 KiB of payload and headers.
const FRAME_BYTES_MAX: usize = 66_000;

/// Frames that may wait for their time in one direction; more are lost, as in a real queue.
const DELAYED_FRAMES_MAX: usize = 4_096;

/// How often a receiving thread looks whether the link is gone.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Chances are given in parts per million.
const MILLION: u64 = 1_000_000;

/// One end of the link.
pub trait Port: Send + Sync + 'static {
    /// Waits for a frame; `WouldBlock` or `TimedOut` when none came for a while.
    ///
    /// # Errors
    /// What the operating system reports.
    fn receive(&self, frame: &mut [u8]) -> io::Result<usize>;

    /// Sends a frame; it is lost when the other end does not take it.
    ///
    /// # Errors
    /// What the operating system reports.
    fn send(&self, frame: &[u8]) -> io::Result<()>;
}

/// An emulator's datagram NIC as a port ([`crate::emulated_host::Nic::Datagram`]).
#[derive(Debug)]
pub struct DatagramPort {
    receiver: UnixDatagram,
    sender: UnixDatagram,
    theirs: PathBuf,
}

impl DatagramPort {
    /// Listens at `ours` (the NIC's `remote`) and sends to `theirs` (its `local`).
    ///
    /// # Errors
    /// When `ours` cannot be bound.
    pub fn bind(ours: &Path, theirs: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(ours);
        let receiver = UnixDatagram::bind(ours)
            .with_context(|| format!("cannot listen at {}", ours.display()))?;
        receiver.set_read_timeout(Some(CHECK_INTERVAL))?;
        let sender = UnixDatagram::unbound()?;
        sender.set_nonblocking(true)?;
        Ok(Self {
            receiver,
            sender,
            theirs: theirs.to_owned(),
        })
    }
}

impl Port for DatagramPort {
    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        self.receiver.recv(frame)
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.sender.send_to(frame, &self.theirs).map(|_| ())
    }
}

/// A TAP device as a port; the device may have moved to another network namespace.
#[derive(Debug)]
pub struct TapPort(Tap);

impl TapPort {
    /// Makes the TAP device `name` in this process's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(name: &str) -> Result<Self> {
        Ok(Self(Tap::open(name)?))
    }
}

impl Port for TapPort {
    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        let limit = Timespec::try_from(CHECK_INTERVAL).map_err(io::Error::other)?;
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit))?;
        self.0
            .receive(frame)?
            .ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        let taken = self.0.send(frame)?;
        if taken {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
}

/// What happens to the frames of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Impairment {
    /// Nothing passes.
    pub cut: bool,
    /// Time added to every frame, in microseconds.
    pub delay_us: u64,
    /// Frames lost, per million.
    pub loss_ppm: u32,
    /// Frames delivered twice, per million.
    pub duplicate_ppm: u32,
    /// Only frames from or to this address (IPv4 and ARP) are impaired; all, if none is given.
    pub only: Option<Ipv4Addr>,
}

/// What happened in one direction so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames received from the sender.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames not delivered: cut, lost by chance, or not taken by the receiver.
    pub lost: u64,
    /// Frames delivered twice.
    pub duplicated: u64,
}

/// Whether an Ethernet frame is from or to `address`, or asks for it or tells of it (ARP).
fn concerns(frame: &[u8], address: Ipv4Addr) -> bool {
    // RFC 791, section 3.1, and RFC 826, behind 14 bytes of Ethernet.
    let places = match frame.get(12..14) {
        Some([0x08, 0x00]) => [26, 30],
        Some([0x08, 0x06]) => [28, 38],
        _ => return false,
    };
    let octets = address.octets();
    places
        .iter()
        .any(|at| frame.get(*at..at + 4) == Some(&octets[..]))
}

/// One direction of a [`Link`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the primary's host to the backup's.
    ToBackup,
    /// From the backup's host to the primary's.
    ToPrimary,
}

/// A link between two ports; ends with this value.
pub struct Link {
    to_backup: Arc<Lane>,
    to_primary: Arc<Lane>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    /// Connects the two ports, unimpaired.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(primary: Arc<dyn Port>, backup: Arc<dyn Port>, seed: u64) -> Result<Self> {
        let to_backup = Lane::start("to-backup", Arc::clone(&primary), Arc::clone(&backup), seed)?;
        let to_primary = Lane::start("to-primary", backup, primary, seed.wrapping_add(1))?;
        Ok(Self {
            to_backup,
            to_primary,
        })
    }

    /// Changes one direction.
    pub fn impair(&self, direction: Direction, impairment: Impairment) {
        self.lane(direction).state().impairment = impairment;
    }

    /// Changes both directions.
    pub fn impair_both(&self, impairment: Impairment) {
        self.impair(Direction::ToBackup, impairment);
        self.impair(Direction::ToPrimary, impairment);
    }

    /// Lets nothing pass, either way.
    pub fn cut(&self) {
        self.impair_both(Impairment {
            cut: true,
            ..Impairment::default()
        });
    }

    /// Removes every impairment.
    pub fn mend(&self) {
        self.impair_both(Impairment::default());
    }

    /// What happened in one direction so far.
    #[must_use]
    pub fn counters(&self, direction: Direction) -> Counters {
        self.lane(direction).state().counters
    }

    const fn lane(&self, direction: Direction) -> &Arc<Lane> {
        match direction {
            Direction::ToBackup => &self.to_backup,
            Direction::ToPrimary => &self.to_primary,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for lane in [&self.to_backup, &self.to_primary] {
            lane.stopped.store(true, Ordering::Relaxed);
            lane.due.notify_all();
        }
    }
}

struct Lane {
    state: Mutex<State>,
    due: Condvar,
    stopped: AtomicBool,
}

struct State {
    impairment: Impairment,
    counters: Counters,
    chance: Chance,
    waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
}

impl Lane {
    fn start(name: &str, from: Arc<dyn Port>, to: Arc<dyn Port>, seed: u64) -> Result<Arc<Self>> {
        let state = State {
            impairment: Impairment::default(),
            counters: Counters::default(),
            chance: Chance(seed),
            waiting: BinaryHeap::new(),
        };
        let lane = Arc::new(Self {
            state: Mutex::new(state),
            due: Condvar::new(),
            stopped: AtomicBool::new(false),
        });
        let (receiving, target) = (Arc::clone(&lane), Arc::clone(&to));
        std::thread::Builder::new()
            .name(format!("link-{name}"))
            .spawn(move || receiving.receive_all(&*from, &*target))?;
        let delivering = Arc::clone(&lane);
        std::thread::Builder::new()
            .name(format!("late-{name}"))
            .spawn(move || delivering.deliver_late(&*to))?;
        Ok(lane)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive_all(&self, from: &dyn Port, to: &dyn Port) {
        let mut frame = vec![0; FRAME_BYTES_MAX];
        while !self.stopped.load(Ordering::Relaxed) {
            // Nothing came for a while, or the emulator is gone for now: look again.
            let Ok(length) = from.receive(&mut frame) else {
                continue;
            };
            self.pass(&frame[..length], to);
        }
    }

    fn pass(&self, frame: &[u8], to: &dyn Port) {
        let mut state = self.state();
        let (copies, delay) = state.fate(frame);
        if delay.is_zero() && state.waiting.is_empty() {
            drop(state);
            for _ in 0..copies {
                self.deliver(frame, to);
            }
            return;
        }
        let at = crate::wait::now() + delay;
        for _ in 0..copies {
            if state.waiting.len() >= DELAYED_FRAMES_MAX {
                state.counters.lost += 1;
                continue;
            }
            let number = state.counters.frames;
            state.waiting.push(Reverse((at, number, frame.to_vec())));
        }
        self.due.notify_all();
    }

    fn deliver(&self, frame: &[u8], to: &dyn Port) {
        if to.send(frame).is_err() {
            self.state().counters.lost += 1;
        }
    }

    fn deliver_late(&self, to: &dyn Port) {
        let mut state = self.state();
        while !self.stopped.load(Ordering::Relaxed) {
            let Some(Reverse((at, ..))) = state.waiting.peek() else {
                state = self.due.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = at.saturating_duration_since(crate::wait::now());
            if !left.is_zero() {
                state = match self.due.wait_timeout(state, left) {
                    Ok((state, _)) => state,
                    Err(poisoned) => poisoned.into_inner().0,
                };
                continue;
            }
            if let Some(Reverse((_, _, frame))) = state.waiting.pop() {
                drop(state);
                self.deliver(&frame, to);
                state = self.state();
            }
        }
    }
}

impl State {
    /// How often, and how late, the next frame is delivered. Always draws the same number of times,
    /// so that a change of one impairment does not shift the others.
    fn fate(&mut self, frame: &[u8]) -> (u32, Duration) {
        self.counters.frames += 1;
        self.counters.bytes += frame.len() as u64;
        let lost = self.chance.happens(self.impairment.loss_ppm);
        let doubled = self.chance.happens(self.impairment.duplicate_ppm);
        let only = self.impairment.only;
        if only.is_some_and(|address| !concerns(frame, address)) {
            return (1, Duration::ZERO);
        }
        if self.impairment.cut || lost {
            self.counters.lost += 1;
            return (0, Duration::ZERO);
        }
        self.counters.duplicated += u64::from(doubled);
        (
            1 + u32::from(doubled),
            Duration::from_micros(self.impairment.delay_us),
        )
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, good enough to choose frames.
struct Chance(u64);

impl Chance {
    fn happens(&mut self, ppm: u32) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % MILLION < u64::from(ppm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    type Frame = Vec<u8>;

    struct Ends {
        sent: Mutex<Sender<Vec<u8>>>,
        to_come: Mutex<Receiver<Vec<u8>>>,
    }

    impl Port for Ends {
        fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
            let bytes = self.to_come.lock().unwrap().recv_timeout(CHECK_INTERVAL);
            let bytes = bytes.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            frame[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        }

        fn send(&self, frame: &[u8]) -> io::Result<()> {
            self.sent.lock().unwrap().send(frame.to_vec()).unwrap();
            Ok(())
        }
    }

    /// A port, what to feed it with and what came out of it.
    fn port() -> (Arc<dyn Port>, Sender<Frame>, Receiver<Frame>) {
        let (feed, to_come) = channel();
        let (sent, came) = channel();
        (
            Arc::new(Ends {
                sent: Mutex::new(sent),
                to_come: Mutex::new(to_come),
            }),
            feed,
            came,
        )
    }

    #[test]
    fn a_cut_link_passes_nothing_and_a_mended_one_everything() {
        let (primary, feed, _from_backup) = port();
        let (backup, _feed_backup, came) = port();
        let link = Link::new(primary, backup, 1).unwrap();
        feed.send(vec![1]).unwrap();
        assert_eq!(came.recv().unwrap(), [1]);
        link.cut();
        feed.send(vec![2]).unwrap();
        while link.counters(Direction::ToBackup).frames < 2 {
            std::thread::yield_now();
        }
        link.mend();
        feed.send(vec![3]).unwrap();
        assert_eq!(came.recv().unwrap(), [3]);
        let counters = link.counters(Direction::ToBackup);
        assert_eq!((counters.frames, counters.lost), (3, 1));
    }

    #[test]
    fn delayed_frames_keep_their_order_and_doubled_ones_come_twice() {
        let (primary, feed, _from_backup) = port();
        let (backup, _feed_backup, came) = port();
        let link = Link::new(primary, backup, 1).unwrap();
        let twice = Impairment {
            delay_us: 2_000,
            duplicate_ppm: 1_000_000,
            ..Default::default()
        };
        link.impair(Direction::ToBackup, twice);
        for number in 0..3 {
            feed.send(vec![number]).unwrap();
        }
        let order: Vec<u8> = (0..6).map(|_| came.recv().unwrap()[0]).collect();
        assert_eq!(order, [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn an_impairment_of_one_address_leaves_the_others_alone() {
        let ip = |from: u8, to: u8| {
            let mut frame = vec![0; 34];
            frame[12] = 0x08;
            frame[26..30].copy_from_slice(&[10, 77, 0, from]);
            frame[30..34].copy_from_slice(&[10, 77, 0, to]);
            frame
        };
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        arp[38..42].copy_from_slice(&[10, 77, 0, 1]);
        let first = Ipv4Addr::new(10, 77, 0, 1);
        for frame in [ip(1, 3), ip(3, 1), arp] {
            assert!(concerns(&frame, first), "{frame:?}");
        }
        for frame in [ip(2, 3), ip(3, 2), vec![0; 13], vec![8; 20]] {
            assert!(!concerns(&frame, first), "{frame:?}");
        }
        let (hosts, feed, _from_arbiter) = port();
        let (arbiter, _feed_arbiter, came) = port();
        let link = Link::new(hosts, arbiter, 1).unwrap();
        link.impair_both(Impairment {
            cut: true,
            only: Some(first),
            ..Default::default()
        });
        feed.send(ip(1, 3)).unwrap();
        feed.send(ip(2, 3)).unwrap();
        assert_eq!(came.recv().unwrap(), ip(2, 3));
    }

    #[test]
    fn losses_follow_from_the_seed() {
        let draw = |seed| {
            let mut chance = Chance(seed);
            (0..1_000)
                .map(|_| chance.happens(100_000))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let lost = draw(7).into_iter().filter(|lost| *lost).count();
        assert!((60..140).contains(&lost), "{lost} of 1000 at 10%");
    }
}
