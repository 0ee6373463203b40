//! The suite of `crossfade-testkit`, provider by provider.

use crossfade_log::{
    embedded::{Embedded, Options},
    memory::Memory,
};
use crossfade_testkit::log_suite;
use std::{cell::Cell, path::Path};

/// Segments so small that every test fills several.
pub(crate) fn small() -> Options {
    Options { segment_bytes: 64 * 1024, ..Options::default() }
}

pub(crate) fn open(dir: &Path) -> Embedded {
    Embedded::open(dir, small()).unwrap()
}

fn embedded() -> impl Fn() -> Embedded {
    let (dir, count) = (tempfile::tempdir().unwrap(), Cell::new(0));
    move || {
        count.set(count.get() + 1);
        open(&dir.path().join(count.get().to_string()))
    }
}

macro_rules! suite {
    ($provider:ident, $make:expr, $($test:ident)*) => {
        mod $provider {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    log_suite::$test($make).await;
                }
            )*
        }
    };
}

macro_rules! every_log {
    ($provider:ident, $make:expr) => {
        crossfade_testkit::every_log_test! { suite! { $provider, $make, } }
    };
}

every_log!(the_embedded_log, embedded());
every_log!(the_log_in_memory, Memory::new);
every_log!(the_log_in_memory_with_8_partitions_and_gaps, || Memory::with(8, true));
suite! {
    the_embedded_log_that_survives, open,
    everything_is_there_after_reopening
    the_position_survives_trimming_and_reopening
    an_unfinished_head_is_gone_after_reopening
    consumers_still_hold_after_reopening
}
