//! Values that carry their own type: SQLite's storage classes.

use super::Fault;
use crate::Value;
use bytes::{BufMut, BytesMut};

const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;
const RAW_TEXT: u8 = 5;

pub(super) fn decode(bytes: &[u8]) -> Option<Value> {
    let (tag, payload) = bytes.split_first()?;
    Some(match *tag {
        INTEGER => Value::Int(i64::from_be_bytes(payload.try_into().ok()?)),
        REAL => Value::Float64(f64::from_be_bytes(payload.try_into().ok()?)),
        TEXT => Value::Text(std::str::from_utf8(payload).ok()?.to_owned()),
        BLOB => Value::Bytes(payload.to_vec()),
        RAW_TEXT => Value::RawText(payload.to_vec()),
        _ => return None,
    })
}

pub(super) fn encode(value: &Value, out: &mut BytesMut) -> Result<(), Fault> {
    match value {
        Value::Int(int) => {
            out.put_u8(INTEGER);
            out.put_i64(*int);
        }
        // SQLite keeps no NaN: it would store NULL instead.
        Value::Float64(float) if float.is_nan() => return Err(Fault::OutOfRange),
        Value::Float64(float) => {
            out.put_u8(REAL);
            out.put_f64(*float);
        }
        Value::Text(text) => {
            out.put_u8(TEXT);
            out.put_slice(text.as_bytes());
        }
        Value::Bytes(bytes) => {
            out.put_u8(BLOB);
            out.put_slice(bytes);
        }
        Value::RawText(bytes) => {
            out.put_u8(RAW_TEXT);
            out.put_slice(bytes);
        }
        _ => return Err(Fault::Mismatch),
    }
    Ok(())
}
