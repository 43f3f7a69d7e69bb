//! A TAP device: whole Ethernet frames to and from the host's network.
//!
//! Opened by name, non-blocking, without the packet-information header. The device must exist or
//! the process must have CAP_NET_ADMIN, in which case it is created and goes away with the last
//! handle. Attaching it to a bridge and bringing it up is the operator's business.
//!
//! Only the live side may hold it open for the guest: frames written here *are* the guest's output.
//! Left out: offloads, virtio-net headers, multiple queues.

#![expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]

#[cfg(doc)]
use logging_channel::record::limits::PACKET_BYTES_MAX;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use tokio::io::unix::AsyncFd;

/// Where the kernel makes TAP devices.
const CLONE_DEVICE: &str = "/dev/net/tun";
/// Longest interface name, without its terminating zero.
const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

/// A TAP device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not an interface name.
    #[error(
        "{0:?} is not an interface name: 1 to {NAME_BYTES_MAX} bytes without slash, colon or white space"
    )]
    Name(String),
    /// No TUN/TAP in this kernel or no permission.
    #[error("cannot open {CLONE_DEVICE}: {0} (is the tun module loaded?)")]
    Device(#[source] io::Error),
    /// The interface cannot be attached.
    #[error("cannot attach TAP interface {name}: {source}{}", remedy(source))]
    Attach {
        /// Interface name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            " (create it for this user: ip tuntap add dev NAME mode tap user USER)"
        }
        Some(libc::EBUSY) => " (another process holds it)",
        Some(libc::EINVAL) => " (an interface of this name exists and is no TAP device)",
        _ => "",
    }
}

/// An open TAP device.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Opens the interface `name`.
    ///
    /// # Errors
    /// When the name is none, TUN/TAP is absent, or the interface cannot be had.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let mut request = request(name)?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(CLONE_DEVICE)
            .map_err(TapError::Device)?;
        let attach = |source| TapError::Attach {
            name: name.to_owned(),
            source,
        };
        attach_interface(&file, &mut request).map_err(attach)?;
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|e| attach(e.into()))?;
        rustix::fs::fcntl_setfl(&file, flags | rustix::fs::OFlags::NONBLOCK)
            .map_err(|e| attach(e.into()))?;
        Ok(Self {
            file,
            name: name.to_owned(),
        })
    }

    /// Interface name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the next received frame into `buffer` and says how long it is; `None` when there is
    /// none now. A frame longer than `buffer` is cut by the kernel: [`PACKET_BYTES_MAX`] bytes are
    /// enough for every MTU.
    ///
    /// # Errors
    /// When the interface went down or away.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends one frame. False when the interface's queue is full: the frame is dropped, as a full
    /// network card drops it, and the guest's protocols repeat it.
    ///
    /// # Errors
    /// When the interface went down or away, or the frame is shorter than an Ethernet header.
    pub fn send(&self, frame: &[u8]) -> io::Result<bool> {
        match (&self.file).write(frame) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Tap {
    /// Registers the interface with the running tokio reactor, so that frames can be waited for.
    ///
    /// # Errors
    /// When there is no reactor or the kernel refuses.
    pub fn watch(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: a `Tap` owns its descriptor, never replaces it, and closes it only when dropped.
        Ok(unsafe { AsyncFd::register(self) }?)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl std::os::fd::AsRawFd for Tap {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.file)
    }
}

/// `struct ifreq` as TUNSETIFF reads it: a name and flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    /// The rest of the kernel's union.
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

fn request(name: &str) -> Result<InterfaceRequest, TapError> {
    let bytes = name.as_bytes();
    let bad = |b: &u8| b.is_ascii_whitespace() || matches!(b, b'/' | b':' | b'%' | 0);
    if bytes.is_empty() || bytes.len() > NAME_BYTES_MAX || bytes.iter().any(bad) || name == "." {
        return Err(TapError::Name(name.to_owned()));
    }
    let mut padded = [0; libc::IFNAMSIZ];
    padded[..bytes.len()].copy_from_slice(bytes);
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    Ok(InterfaceRequest {
        name: padded,
        flags,
        rest: [0; 22],
    })
}

fn attach_interface(file: &File, request: &mut InterfaceRequest) -> io::Result<()> {
    // SAFETY: `file` is an open /dev/net/tun and TUNSETIFF reads (and writes back) one `ifreq`,
    // whose size `InterfaceRequest` has.
    let status = unsafe {
        vmm_sys_util::ioctl::ioctl_with_mut_ref(file, libc::TUNSETIFF as libc::c_ulong, request)
    };
    if status < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_are_refused_before_the_kernel_is_asked() {
        for name in ["", "a/b", "a b", ".", "sixteen-bytes-xx", "a:b", "tap%d"] {
            assert!(
                matches!(Tap::open(name), Err(TapError::Name(_))),
                "{name:?}"
            );
        }
    }

    #[test]
    fn request_asks_for_a_tap_without_packet_information() {
        let request = request("tap0").expect("fine");
        assert_eq!(&request.name[..5], b"tap0\0");
        assert_eq!(request.flags, 0x1002);
    }
}
