//! Days and times as PostgreSQL counts (from 2000-01-01) and prints them (`DateStyle = ISO`, `TimeZone = UTC`).

use crate::TimeTz;

const DAY_US: i64 = 86_400_000_000;
const HOUR_US: i64 = 3_600_000_000;
const MINUTE_US: i64 = 60_000_000;
const SECOND_US: i64 = 1_000_000;
/// 2000-01-01 counted from 0000-03-01, the era's first day.
const EPOCH_2000: i64 = 730_425;

/// Year (0 is 1 BC), month and day of a day counted from 2000-01-01 (proleptic Gregorian).
pub fn civil_from_days(days: i64) -> (i64, u8, u8) {
    let day = days + EPOCH_2000;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as u8, day as u8)
}

/// The day counted from 2000-01-01; `None` when the calendar has no such day.
pub fn days_from_civil(year: i64, month: u8, day: u8) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || !(-10_000_000..=10_000_000).contains(&year) {
        return None;
    }
    let shifted_year = year - i64::from(month <= 2);
    let era = shifted_year.div_euclid(400);
    let year_of_era = shifted_year.rem_euclid(400);
    let shifted_month = (i64::from(month) + 9) % 12;
    let of_year = (153 * shifted_month + 2) / 5 + i64::from(day) - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - EPOCH_2000;
    (civil_from_days(days) == (year, month, day)).then_some(days)
}

/// Whether PostgreSQL has such a time of day; 24:00 is the last.
pub(super) fn is_time(microseconds: i64) -> bool {
    (0..=DAY_US).contains(&microseconds)
}

fn year_month_day(days: i64) -> (String, &'static str) {
    let (year, month, day) = civil_from_days(days);
    let (shown, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{shown:04}-{month:02}-{day:02}"), era)
}

pub(super) fn print_date(days: i32) -> String {
    match days {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        days => {
            let (date, era) = year_month_day(i64::from(days));
            date + era
        }
    }
}

pub(super) fn print_timestamp(microseconds: i64, zone: &str) -> String {
    match microseconds {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        microseconds => {
            let (date, era) = year_month_day(microseconds.div_euclid(DAY_US));
            format!("{date} {}{zone}{era}", print_time(microseconds.rem_euclid(DAY_US)))
        }
    }
}

pub(super) fn print_time(microseconds: i64) -> String {
    let (hours, minutes) = (microseconds / HOUR_US, microseconds / MINUTE_US % 60);
    format!("{hours:02}:{minutes:02}:{}", seconds(microseconds.unsigned_abs() % MINUTE_US as u64))
}

/// Seconds of a minute with their fraction, without trailing zeros.
pub(super) fn seconds(microseconds: u64) -> String {
    let (whole, fraction) = (microseconds / SECOND_US as u64, microseconds % SECOND_US as u64);
    if fraction == 0 {
        return format!("{whole:02}");
    }
    format!("{whole:02}.{}", format!("{fraction:06}").trim_end_matches('0'))
}

pub(super) fn print_timetz(time: TimeTz) -> String {
    print_time(time.microseconds) + &offset(-i64::from(time.seconds_west))
}

fn offset(seconds_east: i64) -> String {
    let sign = if seconds_east < 0 { '-' } else { '+' };
    let total = seconds_east.abs();
    match (total / 3_600, total / 60 % 60, total % 60) {
        (hours, 0, 0) => format!("{sign}{hours:02}"),
        (hours, minutes, 0) => format!("{sign}{hours:02}:{minutes:02}"),
        (hours, minutes, seconds) => format!("{sign}{hours:02}:{minutes:02}:{seconds:02}"),
    }
}

/// Digits only; at most nine.
fn number(text: &str) -> Option<i64> {
    (!text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())?
}

fn parse_day(text: &str, before_christ: bool) -> Option<i64> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || year.len() < 4 || month.len() != 2 || day.len() != 2 {
        return None;
    }
    let year = match (number(year)?, before_christ) {
        (0, _) => return None,
        (year, true) => 1 - year,
        (year, false) => year,
    };
    days_from_civil(year, u8::try_from(number(month)?).ok()?, u8::try_from(number(day)?).ok()?)
}

fn without_era(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC").map_or((text, false), |text| (text, true))
}

pub(super) fn parse_date(text: &str) -> Option<i32> {
    match text {
        "infinity" => Some(i32::MAX),
        "-infinity" => Some(i32::MIN),
        text => {
            let (date, before_christ) = without_era(text);
            let days = i32::try_from(parse_day(date, before_christ)?).ok()?;
            (days != i32::MAX && days != i32::MIN).then_some(days)
        }
    }
}

/// Seconds with up to six digits of fraction, as microseconds.
pub(super) fn parse_seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').map_or((text, None), |(whole, fraction)| (whole, Some(fraction)));
    let fraction = match fraction {
        None => 0,
        Some(digits) if digits.len() > 6 => return None,
        Some(digits) => number(digits)? * 10i64.pow(6 - digits.len() as u32),
    };
    (whole.len() == 2).then_some(())?;
    Some(number(whole)? * SECOND_US + fraction)
}

pub(super) fn parse_time(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, ':');
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parse_seconds(parts.next()?)?);
    let minutes = (minutes.len() == 2).then(|| number(minutes))??;
    let hours = (hours.len() == 2).then(|| number(hours))??;
    let total = hours * HOUR_US + minutes * MINUTE_US + seconds;
    (minutes < 60 && seconds < MINUTE_US && is_time(total)).then_some(total)
}

/// Splits `…+hh[:mm[:ss]]` into what stands before it and the seconds east of UTC.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    let at = text.rfind(['+', '-'])?;
    let (before, zone) = text.split_at_checked(at)?;
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let mut seconds = 0;
    let mut unit = 3_600;
    for part in zone.get(1..)?.split(':') {
        if part.len() != 2 || unit == 0 {
            return None;
        }
        seconds += number(part)? * unit;
        unit /= 60;
    }
    Some((before, sign * seconds))
}

pub(super) fn parse_timetz(text: &str) -> Option<TimeTz> {
    let (time, east) = split_offset(text)?;
    Some(TimeTz { microseconds: parse_time(time)?, seconds_west: i32::try_from(-east).ok()? })
}

pub(super) fn parse_timestamp(text: &str, zoned: bool) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (text, before_christ) = without_era(text);
    let (date, time) = text.split_once(' ')?;
    let (time, east) = if zoned { split_offset(time)? } else { (time, 0) };
    let days = parse_day(date, before_christ)?;
    let local = days.checked_mul(DAY_US)?.checked_add(parse_time(time)?)?;
    let moment = local.checked_sub(east * SECOND_US)?;
    (moment != i64::MAX && moment != i64::MIN).then_some(moment)
}
