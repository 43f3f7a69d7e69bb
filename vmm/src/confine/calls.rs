//! Which system calls each thread may make.
//!
//! Found by reading the code and running the drills with `--confine logged`. A list that lacks a call
//! kills the process when it comes to it (SIGSYS, and a line in `dmesg` with the call's number).

#![forbid(unsafe_code)]

use libc::c_long;

/// What threads and their memory need, whatever they do.
pub(super) const RUNTIME: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // Messages to standard error; wake-ups between threads.
    libc::SYS_write,
];

/// The vCPU: enters the guest (ioctl, judged by its request), reads the counter and randomness from
/// descriptors that are open.
pub(super) const VCPU: &[c_long] = &[libc::SYS_close, libc::SYS_read];

/// Answered with an error where no file may be opened, not with death: the C library opens files of its own
/// accord (its allocator reads `/proc/sys/vm/overcommit_memory` when it first gives memory back) and does
/// without when it cannot.
pub(super) const NO_FILES: &[c_long] = &[libc::SYS_openat];

/// The log's writer: segment files.
pub(super) const LOG: &[c_long] = &[
    libc::SYS_close,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_statx,
    libc::SYS_unlink,
    libc::SYS_writev,
];

/// All others together: sockets, the TAP, the console, the control socket, names looked up, threads made.
pub(super) const PROCESS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_chmod,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_getcwd,
    libc::SYS_getpeername,
    libc::SYS_getpriority,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_ioctl,
    libc::SYS_listen,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_mlock,
    libc::SYS_open,
    libc::SYS_perf_event_open,
    libc::SYS_pipe2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_readlink,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sched_setaffinity,
    libc::SYS_seccomp,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_tid_address,
    libc::SYS_setpriority,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_stat,
    libc::SYS_uname,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    // The fence's helper, when this process ends.
    libc::SYS_kill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// Second byte of the ioctl requests of KVM.
pub(super) const IOCTL_KVM: u8 = 0xae;
/// Of performance counters.
pub(super) const IOCTL_PERF: u8 = b'$';
/// Of terminals, TAP devices and non-blocking descriptors.
pub(super) const IOCTL_TERMINAL_AND_TUN: u8 = b'T';
