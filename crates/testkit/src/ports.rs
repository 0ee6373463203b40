//! Free ports on 127.0.0.1.

use std::{
    net::TcpListener,
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Below the range from which systems draw the ports of outgoing connections, so that a server that is stopped for a
/// moment finds its port free again.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// A port that nobody listens on just now. Two processes begin at different places, and no port is given twice to one.
pub fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (process::id().wrapping_mul(2_654_435_761) >> 16) as u16;
    for _ in 0..COUNT {
        let port = FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on 127.0.0.1");
}
