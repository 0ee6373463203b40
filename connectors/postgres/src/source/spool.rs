//! Transactions that are still running when the server begins to send them: kept aside, in files once they are large,
//! until they commit; forgotten when they abort, as a whole or in part.
//!
//! Record: `u32` length of what follows, `u32` subtransaction, the message as it came.

use crate::client::replication::Lsn;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use crossfade_connector::Failure;
use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
};

/// How much of one transaction stays in memory.
const MEMORY_BYTES_MAX: usize = 512 * 1024;
const READ_BYTES: usize = 256 * 1024;

/// All transactions that are kept aside.
pub(super) struct Spools {
    folder: PathBuf,
    running: HashMap<u32, Spool>,
    /// The transaction whose block is being read.
    current: Option<u32>,
}

#[derive(Default)]
struct Spool {
    waiting: BytesMut,
    file: Option<(PathBuf, File)>,
    aborted: HashSet<u32>,
}

/// A committed transaction, to be read from its beginning.
pub(super) struct Replay {
    file: Option<(PathBuf, File)>,
    /// Read from the file and not taken yet.
    buffer: BytesMut,
    /// What never went to the file.
    tail: Bytes,
    aborted: HashSet<u32>,
}

fn cannot(path: &Path, error: io::Error) -> Failure {
    Failure::retry(format!("keeping a large transaction aside in {}", path.display()), error)
}

impl Spools {
    /// An empty folder: what an earlier run left there will be sent again.
    pub(super) async fn new(folder: &Path) -> Result<Self, Failure> {
        tokio::fs::create_dir_all(folder).await.map_err(|error| cannot(folder, error))?;
        let mut entries = tokio::fs::read_dir(folder).await.map_err(|error| cannot(folder, error))?;
        while let Some(entry) = entries.next_entry().await.map_err(|error| cannot(folder, error))? {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "spool") {
                tokio::fs::remove_file(&path).await.map_err(|error| cannot(&path, error))?;
            }
        }
        Ok(Self { folder: folder.to_owned(), running: HashMap::new(), current: None })
    }

    pub(super) fn is_in_block(&self) -> bool {
        self.current.is_some()
    }

    pub(super) fn start(&mut self, xid: u32) {
        self.current = Some(xid);
        self.running.entry(xid).or_default();
    }

    pub(super) fn stop(&mut self) {
        self.current = None;
    }

    /// Keeps a message of the current block.
    pub(super) async fn keep(&mut self, subxid: u32, message: &[u8]) -> Result<(), Failure> {
        let Some(xid) = self.current else { return Ok(()) };
        let spool = self.running.entry(xid).or_default();
        spool.waiting.put_u32(message.len() as u32 + 4);
        spool.waiting.put_u32(subxid);
        spool.waiting.put_slice(message);
        if spool.waiting.len() >= MEMORY_BYTES_MAX {
            spool.write(&self.folder, xid).await?;
        }
        Ok(())
    }

    /// A subtransaction was rolled back, or the whole transaction.
    pub(super) async fn abort(&mut self, xid: u32, subxid: u32) -> Result<(), Failure> {
        if xid != subxid {
            self.running.entry(xid).or_default().aborted.insert(subxid);
            return Ok(());
        }
        match self.running.remove(&xid).and_then(|spool| spool.file) {
            None => Ok(()),
            Some((path, _)) => tokio::fs::remove_file(&path).await.map_err(|error| cannot(&path, error)),
        }
    }

    /// The transaction committed: its messages, from the first one on.
    pub(super) async fn commit(&mut self, xid: u32) -> Result<Replay, Failure> {
        let mut spool = self.running.remove(&xid).unwrap_or_default();
        let tail = spool.waiting.split().freeze();
        let file = match spool.file {
            None => None,
            Some((path, mut file)) => {
                file.flush().await.map_err(|error| cannot(&path, error))?;
                let file = File::open(&path).await.map_err(|error| cannot(&path, error))?;
                Some((path, file))
            }
        };
        Ok(Replay { file, buffer: BytesMut::new(), tail, aborted: spool.aborted })
    }
}

impl Spool {
    async fn write(&mut self, folder: &Path, xid: u32) -> Result<(), Failure> {
        if self.file.is_none() {
            let path = folder.join(format!("{xid}.spool"));
            let file = File::create(&path).await.map_err(|error| cannot(&path, error))?;
            self.file = Some((path, file));
        }
        if let Some((path, file)) = &mut self.file {
            file.write_all(&self.waiting).await.map_err(|error| cannot(path, error))?;
            self.waiting.clear();
        }
        Ok(())
    }
}

impl Replay {
    /// The next message that was not rolled back; `None` at the end, when the file is gone too.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while let Some(mut record) = self.record().await? {
            let subxid = record.get_u32();
            if !self.aborted.contains(&subxid) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    async fn record(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(total) = record_bytes(&self.buffer).filter(|total| *total <= self.buffer.len()) {
                let mut record = self.buffer.split_to(total).freeze();
                record.advance(4);
                return Ok(Some(record));
            }
            if !self.read_more().await? {
                break;
            }
        }
        let Some(total) = record_bytes(&self.tail).filter(|total| *total <= self.tail.len()) else { return Ok(None) };
        let mut record = self.tail.split_to(total);
        record.advance(4);
        Ok(Some(record))
    }

    /// Reads on in the file; false at its end, when it is removed.
    async fn read_more(&mut self) -> Result<bool, Failure> {
        let Some((path, file)) = &mut self.file else { return Ok(false) };
        self.buffer.reserve(READ_BYTES);
        match file.read_buf(&mut self.buffer).await.map_err(|error| cannot(path, error))? {
            0 if self.buffer.is_empty() => {
                tokio::fs::remove_file(&path).await.map_err(|error| cannot(path, error))?;
                self.file = None;
                Ok(false)
            }
            0 => Err(cannot(path, io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends inside a message"))),
            _ => Ok(true),
        }
    }
}

fn record_bytes(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize + 4)
}

/// Where a streamed transaction ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamEnd {
    pub(super) xid: u32,
    pub(super) end_lsn: Lsn,
    pub(super) commit_time_us: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn messages(mut replay: Replay) -> Vec<Bytes> {
        let mut all = Vec::new();
        while let Some(message) = replay.next().await.unwrap() {
            all.push(message);
        }
        all
    }

    #[tokio::test]
    async fn a_committed_transaction_comes_back_in_order_without_what_was_rolled_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut spools = Spools::new(folder.path()).await.unwrap();
        let big = vec![7u8; 200 * 1024];
        for round in 0..10u8 {
            spools.start(1);
            spools.keep(1, &[round]).await.unwrap();
            spools.keep(5, &big).await.unwrap();
            spools.stop();
            spools.start(2);
            spools.keep(2, b"other").await.unwrap();
            spools.stop();
        }
        assert!(folder.path().join("1.spool").exists());
        spools.abort(1, 5).await.unwrap();
        spools.abort(2, 2).await.unwrap();
        let replay = spools.commit(1).await.unwrap();
        assert_eq!(messages(replay).await, (0..10u8).map(|round| Bytes::from(vec![round])).collect::<Vec<_>>());
        assert!(!folder.path().join("1.spool").exists());
        assert!(messages(spools.commit(2).await.unwrap()).await.is_empty());
    }

    #[tokio::test]
    async fn what_an_earlier_run_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("9.spool"), b"left").unwrap();
        std::fs::write(folder.path().join("making-slot"), b"kept").unwrap();
        Spools::new(folder.path()).await.unwrap();
        assert!(!folder.path().join("9.spool").exists());
        assert!(folder.path().join("making-slot").exists());
    }
}
