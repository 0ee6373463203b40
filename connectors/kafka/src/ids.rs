//! Which topics there are, under which ids, and which brokers: what of librdkafka its safe wrapper does not offer.
//!
//! A topic that is deleted and made anew has its old name and another id. Asking here never makes a topic, as asking for
//! metadata may.
#![expect(
    unsafe_code,
    reason = "DescribeTopics, and metadata of no topic, are only in the C interface; every call and every pointer is in this file"
)]

use rdkafka::{
    admin::AdminClient,
    client::ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
};
use rdkafka_sys as sys;
use std::{
    ffi::{CStr, CString},
    os::raw::{c_char, c_int},
    ptr,
    time::Duration,
};

/// A topic as the cluster has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Topic {
    /// The cluster's own id for it.
    pub(crate) id: String,
    /// How many partitions.
    pub(crate) partitions: u32,
}

/// Destroys a C object when it goes.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the pointer came from the constructor that belongs to this destructor, and is used by nobody else.
            unsafe { (self.1)(self.0) }
        }
    }
}

/// How many brokers there are, asked of any that answers: of the brokers alone, whatever topics there are.
///
/// It tells the client, too, which of them takes what concerns the whole cluster. A client without topics asks that by
/// itself only every few minutes, and until then sends all of it to one that may be dead.
pub(crate) fn brokers<C: ClientContext>(admin: &AdminClient<C>, timeout: Duration) -> Result<usize, KafkaError> {
    let millis = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    let mut metadata: *const sys::rd_kafka_metadata = ptr::null();
    // SAFETY: the client lives as long as `admin`, which is borrowed. The answer is read before it is destroyed, once.
    unsafe {
        let error = sys::rd_kafka_metadata(admin.inner().native_ptr(), 0, ptr::null_mut(), &mut metadata, millis);
        let error = RDKafkaErrorCode::from(error);
        if error != RDKafkaErrorCode::NoError || metadata.is_null() {
            return Err(KafkaError::MetadataFetch(error));
        }
        let count = (*metadata).broker_cnt;
        sys::rd_kafka_metadata_destroy(metadata);
        Ok(usize::try_from(count).unwrap_or_default())
    }
}

/// What is said of one topic.
pub(crate) type Described = Result<Option<Topic>, KafkaError>;

/// The topics of these names, in their order; `None` for one that is not there.
pub(crate) fn describe<C: ClientContext>(
    admin: &AdminClient<C>,
    names: &[&str],
    timeout: Duration,
) -> Result<Vec<Described>, KafkaError> {
    let client = admin.inner().native_ptr();
    let texts = names.iter().map(|name| CString::new(*name)).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
    let millis = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: `client` lives as long as `admin`, which is borrowed. The names are copied by the collection. Each object
    // made here is destroyed once, after the last use of what it lends: the event last but for nothing.
    unsafe {
        let queue = Owned(sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_destroy);
        let collection = Owned(
            sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()),
            sys::rd_kafka_TopicCollection_destroy,
        );
        let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = Owned(sys::rd_kafka_AdminOptions_new(client, operation), sys::rd_kafka_AdminOptions_destroy);
        sys::rd_kafka_AdminOptions_set_request_timeout(options.0, millis, ptr::null_mut(), 0);
        sys::rd_kafka_DescribeTopics(client, collection.0, options.0, queue.0);
        let event = Owned(sys::rd_kafka_queue_poll(queue.0, millis.saturating_add(1_000)), sys::rd_kafka_event_destroy);
        if event.0.is_null() {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut));
        }
        let error = RDKafkaErrorCode::from(sys::rd_kafka_event_error(event.0));
        if error != RDKafkaErrorCode::NoError {
            return Err(KafkaError::AdminOp(error));
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::Fail));
        }
        let mut count = 0usize;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        let mut found: Vec<(String, Result<Topic, RDKafkaErrorCode>)> = Vec::new();
        for index in 0..count {
            let topic = *topics.add(index);
            let name = CStr::from_ptr(sys::rd_kafka_TopicDescription_name(topic)).to_string_lossy().into_owned();
            let error = RDKafkaErrorCode::from(sys::rd_kafka_error_code(sys::rd_kafka_TopicDescription_error(topic)));
            match error {
                RDKafkaErrorCode::NoError => {}
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => continue,
                error => {
                    found.push((name, Err(error)));
                    continue;
                }
            }
            let mut partitions = 0usize;
            sys::rd_kafka_TopicDescription_partitions(topic, &mut partitions);
            let id = sys::rd_kafka_Uuid_base64str(sys::rd_kafka_TopicDescription_topic_id(topic));
            let id = CStr::from_ptr(id).to_string_lossy().into_owned();
            found.push((name, Ok(Topic { id, partitions: partitions as u32 })));
        }
        let named = |name: &&str| match found.iter().find(|(there, _)| there == name) {
            Some((_, Ok(topic))) => Ok(Some(topic.clone())),
            Some((_, Err(code))) => Err(KafkaError::AdminOp(*code)),
            None => Ok(None),
        };
        Ok(names.iter().map(named).collect())
    }
}
