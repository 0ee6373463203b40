//! Opens a folder: takes the lock, looks, cuts what was never whole, starts the writer.

use super::{
    End, Options,
    consumers::{self, Consumers},
    corrupt,
    disk::Disk,
    index::{Index, index_path},
    io_error, lock_path,
    recover::{Found, survey},
    schemas::{self, Register, RegisterFile},
    segment::{Before, SEGMENT_HEADER, Segment, SegmentHeader, segment_path},
    shared::{Contents, Inner, Shared},
    sync_dir,
    writer::{Tape, Writer},
};
use crate::{LogError, schemas::Schemas};
use crossfade_event::Offset;
use std::{
    fs::{File, OpenOptions, TryLockError},
    hash::{BuildHasher, Hasher, RandomState},
    io::{Read, Seek, Write},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

pub(super) fn for_writing(dir: &Path, options: Options) -> Result<Inner, LogError> {
    refuse_unbuilt(&options)?;
    make_dir(dir)?;
    let lock = lock(dir)?;
    let found = match survey(dir, true)? {
        Some(found) => found,
        None => make(dir, &options)?,
    };
    settle(dir, &found, options.sync)?;
    if options.sync {
        harden(dir, &found, &*options.disk)?;
    }
    let Found { segments, index, end, register, consumers, .. } = found;
    let Some(active) = segments.last() else {
        return Err(corrupt(dir, 0, "no segment is left"));
    };
    let header = active.header;
    let path = segment_path(dir, header.base);
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io_error("opening", &path))?;
    reserve(&file, options.segment_bytes);
    let register_path = schemas::path(dir);
    let register_file = OpenOptions::new().write(true).open(&register_path);
    let register_file = register_file.map_err(io_error("opening", &register_path))?;
    let register_file = RegisterFile { file: register_file, at: register.at, path: register_path };
    let epoch = header.epoch + 1;
    let contents = Contents { segments, end, schemas: register.schemas, consumers };
    let shared = Arc::new(Shared::new(dir.to_owned(), contents, Some(options)));
    let Some(active) = shared.segments().last().cloned() else { return Err(corrupt(dir, 0, "no segment is left")) };
    let tape = Tape::new(shared.clone(), active, file, index, end, epoch, register_file.at);
    let writer = Writer::new(shared.clone(), tape, register_file, lock);
    let thread = std::thread::Builder::new().name("crossfade-log".to_owned()).spawn(move || writer.run());
    Ok(Inner { shared, writer: Some(thread.map_err(io_error("starting the writer of", dir))?) })
}

pub(super) fn for_reading(dir: &Path) -> Result<Inner, LogError> {
    let mut attempts = 0;
    let found = loop {
        attempts += 1;
        match survey(dir, false) {
            Ok(Some(found)) => break found,
            Ok(None) => {
                let cause = std::io::Error::new(std::io::ErrorKind::NotFound, "there is no log here");
                return Err(io_error("opening the log in", dir)(cause));
            }
            // The writing process dropped a segment, or cut one, while we looked.
            Err(LogError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound && attempts < 10 => {}
            Err(LogError::Corrupt { .. }) if attempts < 3 => {}
            Err(error) => return Err(error),
        }
    };
    let Found { segments, end, register, consumers, .. } = found;
    let contents = Contents { segments, end, schemas: register.schemas, consumers };
    Ok(Inner { shared: Arc::new(Shared::new(dir.to_owned(), contents, None)), writer: None })
}

fn refuse_unbuilt(options: &Options) -> Result<(), LogError> {
    if options.partitions != 1 {
        let wanted = options.partitions;
        return Err(LogError::NotBuilt(format!("keep {wanted} partitions; leave `partitions` out, or set it to 1")));
    }
    if options.segment_bytes < 4096 {
        return Err(LogError::NotBuilt("keep segments of less than 4096 bytes".to_owned()));
    }
    Ok(())
}

fn make_dir(dir: &Path) -> Result<(), LogError> {
    if !dir.is_dir() {
        std::fs::create_dir_all(dir).map_err(io_error("making", dir))?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
    }
    Ok(())
}

/// Takes the one writer's lock; it goes with the file handle, also when the process is killed.
fn lock(dir: &Path) -> Result<File, LogError> {
    let path = lock_path(dir);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = file.map_err(io_error("opening", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let pid = file.read_to_string(&mut owner).ok().and_then(|_| owner.trim().parse().ok()).unwrap_or(0);
            return Err(LogError::Locked { dir: dir.to_owned(), pid });
        }
        Err(TryLockError::Error(cause)) => return Err(io_error("locking", &path)(cause)),
    }
    let note = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes())
    };
    note(&mut file).map_err(io_error("writing", &path))?;
    Ok(file)
}

/// The first segment of a new log.
fn make(dir: &Path, options: &Options) -> Result<Found, LogError> {
    let register = schemas::load(dir, Offset(u64::MAX))?;
    let consumers = Consumers::load(dir)?;
    if register.schemas.all().next().is_some() {
        return Err(corrupt(&schemas::path(dir), 0, "there are schemas here, and no segment"));
    }
    if consumers.furthest().is_some_and(|(_, at)| at > Offset(0)) {
        return Err(corrupt(&consumers::path(dir), 0, "there are consumers here, and no segment"));
    }
    let drawn = || RandomState::new().build_hasher().finish();
    let header = SegmentHeader {
        log: options.id.unwrap_or_else(drawn),
        base: Offset(0),
        epoch: 1,
        before: Before::NOTHING,
        schemas_at: 0,
    };
    create(dir, &header, &*options.disk, options.segment_bytes, options.sync)?;
    Ok(Found {
        segments: vec![Segment::new(dir, header, None)],
        index: Index::new(&header),
        end: End { next: Offset(0), segment: Offset(0), at: SEGMENT_HEADER as u64, upto: None },
        beyond: Vec::new(),
        register: Register { schemas: Schemas::default(), at: 0 },
        consumers,
        unvouched_at: SEGMENT_HEADER as u64,
    })
}

/// Makes a segment file, durable with its name.
pub(super) fn create(
    dir: &Path,
    header: &SegmentHeader,
    disk: &dyn Disk,
    segment_bytes: u64,
    sync: bool,
) -> Result<File, LogError> {
    let path = segment_path(dir, header.base);
    // A file by this name can only be one whose making was cut off: all others are known.
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.map_err(io_error("making", &path))?;
    reserve(&file, segment_bytes);
    disk.write(&file, &header.to_bytes(), 0).map_err(io_error("writing", &path))?;
    if sync {
        disk.sync(&file).map_err(io_error("syncing", &path))?;
        sync_dir(dir)?;
    }
    Ok(file)
}

/// Sets room aside, so that an fdatasync need not write the file's growth too. A disk that has less room left, or a
/// file system that cannot do it, is no reason to stop: the writes will tell.
pub(super) fn reserve(file: &File, bytes: u64) {
    if let Err(error) = fs4::fs_std::FileExt::allocate(file, bytes) {
        tracing::debug!(%error, "no room was set aside for a segment");
    }
}

/// Brings the folder to what was found: removes what lies beyond the end, cuts the last segment and the register.
fn settle(dir: &Path, found: &Found, sync: bool) -> Result<(), LogError> {
    for path in &found.beyond {
        tracing::warn!(file = %path.display(), "removing a segment that holds only an unfinished head");
        std::fs::remove_file(path).map_err(io_error("removing", path))?;
        sync_dir(dir)?;
    }
    // The index of a segment that takes frames again would be wrong.
    let index = index_path(dir, found.end.segment);
    match std::fs::remove_file(&index) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io_error("removing", &index)(error)),
        _ => {}
    }
    cut(&segment_path(dir, found.end.segment), found.end.at, sync)?;
    cut(&schemas::path(dir), found.register.at, sync)
}

/// Makes durable what is now taken as such. The process before may have died between a write and its sync; or a sync
/// failed, after which the kernel holds pages that it takes for clean and that are not on disk. So everything that no
/// later frame vouches for is written again, and only then synced.
fn harden(dir: &Path, found: &Found, disk: &dyn Disk) -> Result<(), LogError> {
    rewrite(&segment_path(dir, found.end.segment), found.unvouched_at.min(found.end.at), found.end.at, disk)?;
    rewrite(&schemas::path(dir), 0, found.register.at, disk)?;
    sync_dir(dir)
}

fn rewrite(path: &Path, from: u64, to: u64, disk: &dyn Disk) -> Result<(), LogError> {
    const PIECE: u64 = 1 << 20;
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(io_error("opening", path))?;
    let mut at = from;
    while at < to {
        let mut piece = vec![0; (to - at).min(PIECE) as usize];
        file.read_exact_at(&mut piece, at).map_err(io_error("reading", path))?;
        disk.write(&file, &piece, at).map_err(io_error("writing", path))?;
        at += piece.len() as u64;
    }
    disk.sync(&file).map_err(io_error("syncing", path))
}

/// Cuts a file to its sound length, and makes it where there is none.
fn cut(path: &Path, length: u64, sync: bool) -> Result<(), LogError> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(io_error("opening", path))?;
    if file.metadata().map_err(io_error("looking at", path))?.len() != length {
        file.set_len(length).map_err(io_error("cutting", path))?;
        if sync {
            file.sync_all().map_err(io_error("syncing", path))?;
        }
    }
    Ok(())
}
