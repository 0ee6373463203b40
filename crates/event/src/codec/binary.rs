//! PostgreSQL's binary forms.

use super::{Fault, datetime::is_time, fits, numeric};
use crate::{Interval, Logical, TimeTz, Value};
use bytes::{BufMut, BytesMut};

/// The version byte in front of a jsonb.
const JSONB_VERSION: u8 = 1;

pub(super) fn decode(logical: Logical, bytes: &[u8]) -> Result<Value, Fault> {
    if matches!(logical, Logical::Opaque | Logical::Dynamic) {
        return Err(Fault::NeedsText);
    }
    read(logical, bytes).ok_or(Fault::Malformed)
}

fn read(logical: Logical, bytes: &[u8]) -> Option<Value> {
    Some(match logical {
        Logical::Bool => Value::Bool(match bytes {
            [0] => false,
            [1] => true,
            _ => return None,
        }),
        Logical::Int16 => Value::Int(i16::from_be_bytes(bytes.try_into().ok()?).into()),
        Logical::Int32 => Value::Int(i32::from_be_bytes(bytes.try_into().ok()?).into()),
        Logical::Int64 => Value::Int(i64::from_be_bytes(bytes.try_into().ok()?)),
        Logical::Float32 => Value::Float32(f32::from_be_bytes(bytes.try_into().ok()?)),
        Logical::Float64 => Value::Float64(f64::from_be_bytes(bytes.try_into().ok()?)),
        Logical::Numeric => Value::Numeric(numeric::decode(bytes)?),
        Logical::Text => Value::Text(utf8(bytes)?),
        Logical::Bytes => Value::Bytes(bytes.to_vec()),
        Logical::Date => Value::Date(i32::from_be_bytes(bytes.try_into().ok()?)),
        Logical::Time => Value::Time(Some(i64::from_be_bytes(bytes.try_into().ok()?)).filter(|time| is_time(*time))?),
        Logical::TimeTz => {
            let (time, zone) = bytes.split_first_chunk::<8>()?;
            let microseconds = Some(i64::from_be_bytes(*time)).filter(|time| is_time(*time))?;
            Value::TimeTz(TimeTz { microseconds, seconds_west: i32::from_be_bytes(zone.try_into().ok()?) })
        }
        Logical::Timestamp => Value::Timestamp(i64::from_be_bytes(bytes.try_into().ok()?)),
        Logical::TimestampTz => Value::TimestampTz(i64::from_be_bytes(bytes.try_into().ok()?)),
        Logical::Interval => {
            let (time, rest) = bytes.split_first_chunk::<8>()?;
            let (days, months) = rest.split_first_chunk::<4>()?;
            Value::Interval(Interval {
                months: i32::from_be_bytes(months.try_into().ok()?),
                days: i32::from_be_bytes(*days),
                microseconds: i64::from_be_bytes(*time),
            })
        }
        Logical::Uuid => Value::Uuid(bytes.try_into().ok()?),
        Logical::Json => Value::Json(utf8(bytes)?),
        Logical::Jsonb => match bytes.split_first()? {
            (&JSONB_VERSION, text) => Value::Jsonb(utf8(text)?),
            _ => return None,
        },
        Logical::Opaque | Logical::Dynamic => return None,
    })
}

fn utf8(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

pub(super) fn encode(logical: Logical, value: &Value, out: &mut BytesMut) -> Result<(), Fault> {
    if matches!(logical, Logical::Opaque | Logical::Dynamic) {
        return Err(Fault::NeedsText);
    }
    fits(logical, value)?;
    match (logical, value) {
        (Logical::Int16, Value::Int(int)) => out.put_i16(i16::try_from(*int).map_err(|_| Fault::OutOfRange)?),
        (Logical::Int32, Value::Int(int)) => out.put_i32(i32::try_from(*int).map_err(|_| Fault::OutOfRange)?),
        (_, Value::Bool(value)) => out.put_u8(u8::from(*value)),
        (_, Value::Int(int) | Value::Time(int) | Value::Timestamp(int) | Value::TimestampTz(int)) => out.put_i64(*int),
        (_, Value::Float32(float)) => out.put_f32(*float),
        (_, Value::Float64(float)) => out.put_f64(*float),
        (_, Value::Numeric(numeric)) => numeric::encode(numeric, out).ok_or(Fault::OutOfRange)?,
        (_, Value::Text(text) | Value::Json(text) | Value::Other(text)) => out.put_slice(text.as_bytes()),
        (_, Value::Jsonb(text)) => {
            out.put_u8(JSONB_VERSION);
            out.put_slice(text.as_bytes());
        }
        (_, Value::Bytes(bytes) | Value::RawText(bytes)) => out.put_slice(bytes),
        (_, Value::Date(days)) => out.put_i32(*days),
        (_, Value::TimeTz(time)) => {
            out.put_i64(time.microseconds);
            out.put_i32(time.seconds_west);
        }
        (_, Value::Interval(interval)) => {
            out.put_i64(interval.microseconds);
            out.put_i32(interval.days);
            out.put_i32(interval.months);
        }
        (_, Value::Uuid(uuid)) => out.put_slice(uuid),
    }
    Ok(())
}
