//! How much must have come before whoever waits at a socket is woken (`SO_RCVLOWAT`, socket(7) and tcp(7) of Linux).
//!
//! A reader that pauses is woken all the same, by every message: the runtime's own thread waits at all sockets. Under a stream
//! of small messages a sixth of our processor time went into that, and the server's process that sent it took an eighth more.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// A reader that pauses is woken early by so much.
const GATHERED_BYTES: libc::c_int = 512 << 10;

/// While `gathers`, nobody is woken before much has come. Afterwards whoever waits is told at once of what is there.
///
/// # Errors
/// Where the system does not know it.
pub(super) fn gather(socket: BorrowedFd<'_>, gathers: bool) -> io::Result<()> {
    let bytes: libc::c_int = if gathers { GATHERED_BYTES } else { 1 };
    #[expect(unsafe_code, reason = "no safe library sets this option")]
    // SAFETY: the descriptor is open as long as it is borrowed; the value is an int, which the call reads and does not keep.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            std::ptr::from_ref(&bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
