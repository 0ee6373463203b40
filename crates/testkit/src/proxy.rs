//! Faults on the wire: a proxy on 127.0.0.1 that passes bytes through until it is told to cut, hold, refuse or crumble
//! them. Where a connection is cut follows from a seed.

use crate::{ports, seeded};
use rand::{Rng, rngs::StdRng};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What is done to connections, open and new ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: bytes pass.
    None,
    /// A connection is cut after so many bytes from the server, counted from when the fault was set: another number for
    /// each connection, drawn from this range.
    CutAfter(Range<u64>),
    /// Nothing passes, either way, and nobody is told: as when a cable is pulled.
    Stall,
    /// Bytes pass in pieces of so many at most.
    Split(usize),
    /// New connections are closed at once; open ones are cut.
    Refuse,
}

/// A proxy that runs until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    fault: watch::Sender<(u64, Fault)>,
    cuts: Arc<AtomicUsize>,
    stop: Option<watch::Sender<bool>>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Wire {
    fault: watch::Receiver<(u64, Fault)>,
    cuts: Arc<AtomicUsize>,
    seed: u64,
    number: usize,
}

impl Proxy {
    /// Before a server that listens on `upstream` of 127.0.0.1.
    pub fn start(upstream: u16, seed: u64) -> Self {
        let port = ports::free();
        let (fault, faults) = watch::channel((0, Fault::None));
        let (stop, stopped) = watch::channel(false);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let cuts = Arc::new(AtomicUsize::new(0));
        let wire_cuts = Arc::clone(&cuts);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap_or_else(|error| panic!("no runtime for a proxy: {error}"));
            runtime.block_on(async move {
                let listener = TcpListener::bind(("127.0.0.1", port)).await;
                let listener = listener.unwrap_or_else(|error| panic!("a proxy has no port: {error}"));
                let _ = ready.send(());
                accept(listener, upstream, stopped, |number| Wire {
                    fault: faults.clone(),
                    cuts: Arc::clone(&wire_cuts),
                    seed,
                    number,
                })
                .await;
            });
        });
        is_ready.recv().unwrap_or_else(|_| panic!("a proxy did not start"));
        Self { port, fault, cuts, stop: Some(stop), thread: Some(thread) }
    }

    /// Where to connect to instead of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets what is done from now on.
    pub fn set(&self, fault: Fault) {
        self.fault.send_modify(|current| *current = (current.0 + 1, fault));
    }

    /// Cuts every open connection; new ones pass.
    pub fn cut_all(&self) {
        self.set(Fault::Refuse);
        self.set(Fault::None);
    }

    /// How many connections it has cut.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: TcpListener,
    upstream: u16,
    mut stopped: watch::Receiver<bool>,
    wire: impl Fn(usize) -> Wire,
) {
    let mut wires = tokio::task::JoinSet::new();
    for number in 0.. {
        let client = tokio::select! {
            // Safe to cancel: a connection not yet accepted stays in the kernel's queue.
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => return,
        };
        let Ok((client, _)) = client else { continue };
        let wire = wire(number);
        wires.spawn(async move {
            if wire.fault.borrow().1 == Fault::Refuse {
                return;
            }
            let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            wire.carry(client, server).await;
        });
    }
}

impl Wire {
    /// Until one end closes, or the fault says so. Both halves end together, as a broken connection does.
    async fn carry(self, client: TcpStream, server: TcpStream) {
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let mut rng = seeded::worker(self.seed, self.number);
        let mut watched = self.fault.clone();
        let since = watched.borrow_and_update().0;
        let cut = tokio::select! {
            cut = pass(from_server, to_client, self.fault.clone(), Some(&mut rng)) => cut,
            cut = pass(from_client, to_server, self.fault.clone(), None) => cut,
            () = refused(watched, since) => true,
        };
        if cut {
            self.cuts.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Returns once the connections that were open are to be cut. Two changes in a row may be seen as one: a change that
/// skipped a number held a refusal.
async fn refused(mut fault: watch::Receiver<(u64, Fault)>, mut since: u64) {
    while fault.changed().await.is_ok() {
        let (number, current) = fault.borrow_and_update().clone();
        if current == Fault::Refuse || number > since + 1 {
            return;
        }
        since = number;
    }
}

/// How much of a connection is left under [`Fault::CutAfter`], and for which setting of the fault it was drawn.
#[derive(Default)]
struct Budget(Option<(u64, u64)>);

impl Budget {
    /// How many of `wanted` bytes may pass; zero when the connection is to be cut.
    fn take(&mut self, number: u64, range: Range<u64>, rng: &mut StdRng, wanted: usize) -> usize {
        let left = match self.0 {
            Some((drawn_for, left)) if drawn_for == number => left,
            _ => rng.random_range(range),
        };
        let passing = left.min(wanted as u64);
        self.0 = Some((number, left - passing));
        passing as usize
    }
}

/// True when the fault ended it, false when an end closed. Only the way from the server has an `rng`.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut fault: watch::Receiver<(u64, Fault)>,
    mut rng: Option<&mut StdRng>,
) -> bool {
    let mut buffer = vec![0; 64 * 1024];
    let mut budget = Budget::default();
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return false };
        let mut rest = buffer.get(..read).unwrap_or_default();
        while !rest.is_empty() {
            let (number, current) = fault.borrow_and_update().clone();
            let passing = match (current, rng.as_deref_mut()) {
                (Fault::None, _) | (Fault::CutAfter(_), None) => rest.len(),
                (Fault::CutAfter(range), Some(rng)) => budget.take(number, range, rng, rest.len()),
                (Fault::Split(most), _) => most.clamp(1, rest.len()),
                (Fault::Refuse, _) => 0,
                (Fault::Stall, _) => {
                    // Fails when the proxy goes.
                    if fault.changed().await.is_err() {
                        return false;
                    }
                    continue;
                }
            };
            let (piece, later) = rest.split_at(passing);
            if piece.is_empty() {
                return true;
            }
            if to.write_all(piece).await.is_err() {
                return false;
            }
            rest = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::wait_until;
    use std::time::Duration;

    /// A server that says back what it hears.
    async fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = socket.into_split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        port
    }

    async fn heard(socket: &mut TcpStream, sent: usize) -> usize {
        let _ = socket.write_all(&vec![7; sent]).await;
        let (mut total, mut buffer) = (0, vec![0; 1024]);
        while total < sent {
            match socket.read(&mut buffer).await {
                Ok(read @ 1..) => total += read,
                _ => break,
            }
        }
        total
    }

    #[tokio::test]
    async fn bytes_pass_are_cut_held_and_refused_as_told() {
        let proxy = Proxy::start(echo().await, 1);
        let connect = async || TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();

        let mut socket = connect().await;
        assert_eq!(heard(&mut socket, 5000).await, 5000);
        proxy.set(Fault::Split(3));
        assert_eq!(heard(&mut socket, 5000).await, 5000);

        proxy.set(Fault::CutAfter(100..200));
        assert!((100..200).contains(&heard(&mut socket, 5000).await));
        wait_until("the first cut", async || proxy.cuts() == 1).await;

        proxy.set(Fault::None);
        let mut socket = connect().await;
        assert_eq!(heard(&mut socket, 10).await, 10);
        proxy.set(Fault::Stall);
        let held = tokio::time::timeout(Duration::from_millis(100), heard(&mut socket, 10)).await;
        assert!(held.is_err(), "a stalled wire must not carry");
        proxy.set(Fault::None);
        let mut ten = [0; 10];
        socket.read_exact(&mut ten).await.unwrap();

        proxy.cut_all();
        assert_eq!(heard(&mut socket, 10).await, 0);
        wait_until("the second cut", async || proxy.cuts() == 2).await;
        proxy.set(Fault::Refuse);
        assert_eq!(heard(&mut connect().await, 10).await, 0);
        proxy.set(Fault::None);
        assert_eq!(heard(&mut connect().await, 10).await, 10);
    }

    #[test]
    fn the_same_seed_cuts_at_the_same_place() {
        let draw = || Budget::default().take(1, 0..1_000_000, &mut seeded::worker(7, 3), usize::MAX);
        assert_eq!(draw(), draw());
    }
}
