//! The suite of `crossfade-testkit`, as every log passes it, against the real broker.

use super::*;
use crossfade_testkit::log_suite;

fn make(partitions: u32) -> Option<impl Fn() -> KafkaLog> {
    let kafka = Kafka::shared()?;
    Some(move || open(kafka, &kafka.prefix("suite"), partitions))
}

macro_rules! suite {
    ($provider:ident, $partitions:expr, $($test:ident)*) => {
        mod $provider {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let Some(make) = make($partitions) else { return };
                    log_suite::$test(make).await;
                }
            )*
        }
    };
}

macro_rules! every_log {
    ($provider:ident, $partitions:expr) => {
        crossfade_testkit::every_log_test! { suite! { $provider, $partitions, } }
    };
}

every_log!(the_log_on_kafka, 1);
every_log!(the_log_on_kafka_with_8_partitions, 8);
