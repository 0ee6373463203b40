//! Intervals as PostgreSQL prints them with `IntervalStyle = postgres`: `1 year 2 mons -3 days +04:05:06.7`.

use super::datetime::{parse_seconds, seconds};
use crate::Interval;

const HOUR_US: u64 = 3_600_000_000;
const MINUTE_US: u64 = 60_000_000;
const FOREVER: Interval = Interval { months: i32::MAX, days: i32::MAX, microseconds: i64::MAX };
const NEVER: Interval = Interval { months: i32::MIN, days: i32::MIN, microseconds: i64::MIN };

/// The words so far. A positive part after a negative one carries a plus sign.
struct Words {
    text: String,
    after_negative: bool,
}

impl Words {
    fn part(&mut self, value: i32, unit: &str) {
        if value == 0 {
            return;
        }
        let space = if self.text.is_empty() { "" } else { " " };
        let plus = if self.after_negative && value > 0 { "+" } else { "" };
        let plural = if value == 1 { "" } else { "s" };
        self.text.push_str(&format!("{space}{plus}{value} {unit}{plural}"));
        self.after_negative = value < 0;
    }

    fn clock(&mut self, microseconds: i64) {
        if microseconds == 0 && !self.text.is_empty() {
            return;
        }
        let space = if self.text.is_empty() { "" } else { " " };
        let sign = match (microseconds < 0, self.after_negative) {
            (true, _) => "-",
            (false, true) => "+",
            (false, false) => "",
        };
        let left = microseconds.unsigned_abs();
        let (hours, minutes) = (left / HOUR_US, left / MINUTE_US % 60);
        self.text.push_str(&format!("{space}{sign}{hours:02}:{minutes:02}:{}", seconds(left % MINUTE_US)));
    }
}

pub(super) fn print(interval: Interval) -> String {
    match interval {
        FOREVER => return "infinity".to_owned(),
        NEVER => return "-infinity".to_owned(),
        _ => {}
    }
    let mut words = Words { text: String::new(), after_negative: false };
    words.part(interval.months / 12, "year");
    words.part(interval.months % 12, "mon");
    words.part(interval.days, "day");
    words.clock(interval.microseconds);
    words.text
}

pub(super) fn parse(text: &str) -> Option<Interval> {
    match text {
        "infinity" => return Some(FOREVER),
        "-infinity" => return Some(NEVER),
        "" => return None,
        _ => {}
    }
    let (mut months, mut days, mut microseconds) = (0i64, 0i64, 0i64);
    let mut words = text.split(' ');
    while let Some(word) = words.next() {
        if word.contains(':') {
            microseconds = clock(word)?;
            return words.next().is_none().then(|| make(months, days, microseconds))?;
        }
        let amount: i64 = word.parse::<i32>().ok()?.into();
        match words.next()?.trim_end_matches('s') {
            "year" => months += amount * 12,
            "mon" => months += amount,
            "day" => days += amount,
            _ => return None,
        }
    }
    make(months, days, microseconds)
}

fn make(months: i64, days: i64, microseconds: i64) -> Option<Interval> {
    Some(Interval { months: i32::try_from(months).ok()?, days: i32::try_from(days).ok()?, microseconds })
}

fn clock(word: &str) -> Option<i64> {
    let (negative, rest) = match word.as_bytes().first()? {
        b'-' => (true, word.get(1..)?),
        b'+' => (false, word.get(1..)?),
        _ => (false, word),
    };
    let mut parts = rest.splitn(3, ':');
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parse_seconds(parts.next()?)?);
    let digits = |text: &str| text.len() >= 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(hours) || !digits(minutes) {
        return None;
    }
    let (hours, minutes): (i128, i128) = (hours.parse().ok()?, minutes.parse().ok()?);
    let total =
        hours.checked_mul(i128::from(HOUR_US))? + minutes.checked_mul(i128::from(MINUTE_US))? + i128::from(seconds);
    i64::try_from(if negative { -total } else { total }).ok()
}
