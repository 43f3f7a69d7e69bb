//! Getting a vCPU thread out of KVM_RUN.
//!
//! A kick is a real-time signal to the vCPU's thread. The handler, installed without SA_RESTART,
//! sets `immediate_exit` in the run page of the vCPU that the *receiving thread* has armed: a kick
//! that lands before KVM_RUN makes it return at once, one that lands inside makes it return EINTR.
//! So no kick is lost between "look at the queue" and "enter the guest".
//!
//! Rules: the signal stays unblocked on the vCPU thread (arming unblocks it) and is blocked
//! nowhere else on purpose; any other thread that receives it ignores it, because nothing is armed
//! there. [`Armed`] is not `Send`: it belongs to the thread that made it. The handler only does two
//! stores through a thread-local, so it is async-signal-safe.
//!
//! A kick is never counted as an exit, and says nothing about *where* the guest stopped.

#![expect(
    unsafe_code,
    reason = "signal handler, and immediate_exit shared with it"
)]

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering, compiler_fence};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

/// The kick signal: the first real-time signal, which neither Rust's runtime nor tokio uses.
#[must_use]
pub fn signal() -> i32 {
    SIGRTMIN()
}

/// What the handler writes to; null when nothing is armed on this thread.
#[derive(Clone, Copy)]
struct Target {
    immediate_exit: *const AtomicU8,
    pending: *const AtomicBool,
}

thread_local! {
    static TARGET: Cell<Target> =
        const { Cell::new(Target { immediate_exit: ptr::null(), pending: ptr::null() }) };
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let target = TARGET.get();
    if target.immediate_exit.is_null() {
        return;
    }
    // SAFETY: a non-null target was set by `Armed` on this same thread and is cleared before the
    // memory goes away; both places are only ever accessed atomically.
    unsafe { (*target.pending).store(true, Ordering::Relaxed) };
    // SAFETY: as above.
    unsafe { (*target.immediate_exit).store(1, Ordering::Relaxed) };
}

/// Kicks one vCPU, from any thread. Cheap to clone; harmless once the vCPU is gone.
#[derive(Debug, Clone)]
pub struct Kicker {
    thread: Arc<AtomicI32>,
}

impl Kicker {
    /// Makes the vCPU's current or next `run` return `Kicked`.
    pub fn kick(&self) {
        let thread = self.thread.load(Ordering::Acquire);
        if thread == 0 {
            return;
        }
        let process = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: tgkill takes plain numbers. Should the thread have ended meanwhile and its id
        // be used again in this process, the handler finds nothing armed there and does nothing.
        let _gone = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal()) };
    }
}

/// The vCPU's side: owns the flag that the handler sets, on the thread that runs the guest.
pub(super) struct Armed {
    thread: Arc<AtomicI32>,
    pending: Box<AtomicBool>,
    immediate_exit: *const AtomicU8,
    /// Belongs to its thread.
    _not_send: PhantomData<*const ()>,
}

impl Armed {
    /// Arms the calling thread for the vCPU whose `immediate_exit` byte is given.
    ///
    /// # Safety
    /// `immediate_exit` must stay mapped until the result is dropped, and nobody may hold a Rust
    /// reference to that byte while another thread of execution (the handler) can run.
    pub(super) unsafe fn new(immediate_exit: *mut u8) -> std::io::Result<Self> {
        register_signal_handler(signal(), on_kick)
            .map_err(|e| std::io::Error::from_raw_os_error(e.errno()))?;
        unblock_signal(signal()).map_err(|e| std::io::Error::other(e.to_string()))?;
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        let armed = Self {
            thread: Arc::new(AtomicI32::new(thread)),
            pending: Box::new(AtomicBool::new(false)),
            immediate_exit: immediate_exit.cast_const().cast(),
            _not_send: PhantomData,
        };
        let pending: *const AtomicBool = &raw const *armed.pending;
        TARGET.set(Target {
            immediate_exit: armed.immediate_exit,
            pending,
        });
        Ok(armed)
    }

    /// A handle for other threads.
    pub(super) fn kicker(&self) -> Kicker {
        Kicker {
            thread: Arc::clone(&self.thread),
        }
    }

    fn exit_flag(&self) -> &AtomicU8 {
        // SAFETY: `new`'s caller keeps the byte mapped while `self` lives.
        unsafe { &*self.immediate_exit }
    }

    /// After EINTR: forgets kicks so far. One that lands in between is at worst reported twice.
    pub(super) fn acknowledge(&self) {
        self.exit_flag().store(0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        self.pending.store(false, Ordering::Relaxed);
    }

    /// Makes the next KVM_RUN return before entering the guest.
    pub(super) fn force_exit(&self) {
        self.exit_flag().store(1, Ordering::Relaxed);
    }

    /// Undoes [`Armed::force_exit`] without losing a kick that came meanwhile.
    pub(super) fn unforce_exit(&self) {
        self.exit_flag().store(0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        if self.pending.load(Ordering::Relaxed) {
            self.exit_flag().store(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        self.thread.store(0, Ordering::Release);
        // Only this vCPU's own arming: a later vCPU of the thread may have replaced it.
        if TARGET.get().immediate_exit == self.immediate_exit {
            TARGET.set(Target {
                immediate_exit: ptr::null(),
                pending: ptr::null(),
            });
            compiler_fence(Ordering::SeqCst);
        }
    }
}

/// The armed byte of a run page, as a raw pointer so that no reference to it lingers.
pub(super) fn arm(vcpu: &mut kvm_ioctls::VcpuFd) -> std::io::Result<Armed> {
    let flag = &raw mut vcpu.get_kvm_run().immediate_exit;
    // SAFETY: the run page is mapped as long as `vcpu` lives; `Vcpu` declares its `Armed` before
    // the descriptor, so it is dropped first. Later references to the page are made by
    // `get_kvm_run` and do not read or write this byte.
    unsafe { Armed::new(flag) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kick_sets_the_flag_of_the_armed_thread_and_is_not_lost() {
        let mut byte = 0u8;
        let flag = &raw mut byte;
        // SAFETY: `byte` outlives `armed` and is not otherwise used meanwhile.
        let armed = unsafe { Armed::new(flag) }.expect("armed");
        let kicker = armed.kicker();
        std::thread::spawn(move || kicker.kick())
            .join()
            .expect("kicked");
        // The signal was queued before join returned; a system call's way back delivers it.
        let _here = rustix::thread::gettid();
        assert_eq!(armed.exit_flag().load(Ordering::Relaxed), 1);
        armed.force_exit();
        armed.unforce_exit();
        assert_eq!(
            armed.exit_flag().load(Ordering::Relaxed),
            1,
            "the kick survives a forced exit"
        );
        armed.acknowledge();
        assert_eq!(armed.exit_flag().load(Ordering::Relaxed), 0);
        armed.force_exit();
        armed.unforce_exit();
        assert_eq!(armed.exit_flag().load(Ordering::Relaxed), 0);
    }

    #[test]
    fn kicking_a_dropped_vcpu_does_nothing() {
        let mut byte = 0u8;
        let flag = &raw mut byte;
        // SAFETY: `byte` outlives `armed` and is not otherwise used meanwhile.
        let armed = unsafe { Armed::new(flag) }.expect("armed");
        let kicker = armed.kicker();
        drop(armed);
        kicker.kick();
        assert_eq!(byte, 0);
    }
}
