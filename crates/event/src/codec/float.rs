//! Floats as PostgreSQL prints them: the shortest digits that lie strictly inside the interval that rounds back.
//!
//! Rust's shortest form also takes a decimal that lies exactly on the interval's bound when the float's last bit is
//! even (1e23); PostgreSQL does not rely on the reader's rounding and prints one digit more. Such decimals are found
//! by their odd part, which has exactly one bit more than the float's mantissa, and then one more digit is taken.
//! Of two decimals that are equally near Rust takes the greater, PostgreSQL the even one.

use std::fmt::LowerExp;

pub(super) fn print_f64(value: f64) -> String {
    special(value).unwrap_or_else(|| layout(&digits(value, 53, |text| text.parse().ok() == Some(value)), 15))
}

pub(super) fn print_f32(value: f32) -> String {
    special(f64::from(value)).unwrap_or_else(|| layout(&digits(value, 24, |text| text.parse().ok() == Some(value)), 6))
}

/// Only what PostgreSQL prints: no `inf`, no hexadecimal.
pub(super) fn is_printed(text: &str) -> bool {
    matches!(text, "NaN" | "Infinity" | "-Infinity")
        || (text.bytes().any(|byte| byte.is_ascii_digit())
            && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e')))
}

fn special(value: f64) -> Option<String> {
    Some(match value {
        value if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        value if value == 0.0 => if value.is_sign_negative() { "-0" } else { "0" }.to_owned(),
        _ => return None,
    })
}

/// `d.ddde±x`
fn digits<F: LowerExp + Copy>(value: F, mantissa_bits: u32, reads_back: impl Fn(&str) -> bool) -> String {
    let shortest = format!("{value:e}");
    let taken = shortest.split('e').next().map_or(0, |m| m.bytes().filter(u8::is_ascii_digit).count());
    let good = |text: &String| reads_back(text) && !on_bound(text, mantissa_bits);
    let even = format!("{value:.*e}", taken.saturating_sub(1));
    if good(&even) {
        return even;
    }
    if good(&shortest) {
        return shortest;
    }
    (taken..=17).map(|decimals| trim(&format!("{value:.decimals$e}"))).find(good).unwrap_or(shortest)
}

/// Without trailing zeros of the mantissa.
fn trim(text: &str) -> String {
    match text.split_once('e') {
        Some((mantissa, exponent)) if mantissa.contains('.') => {
            format!("{}e{exponent}", mantissa.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text.to_owned(),
    }
}

/// Whether the decimal lies exactly half way between two neighbouring floats.
fn on_bound(text: &str, mantissa_bits: u32) -> bool {
    let Some((mut digits, exponent)) = parts(text) else { return false };
    let power = exponent.unsigned_abs();
    if power > 30 {
        return false;
    }
    let Some(five) = 5u128.checked_pow(power) else { return false };
    if exponent >= 0 {
        let Some(product) = digits.checked_mul(five) else { return false };
        digits = product;
    } else if digits % five == 0 {
        digits /= five;
    } else {
        return false;
    }
    digits != 0 && 128 - (digits >> digits.trailing_zeros()).leading_zeros() == mantissa_bits + 1
}

/// The digits as one integer, and the power of ten it is multiplied with.
fn parts(text: &str) -> Option<(u128, i32)> {
    let (mantissa, exponent) = text.trim_start_matches('-').split_once('e')?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}").parse().ok()?;
    Some((digits, exponent.parse::<i32>().ok()? - i32::try_from(fraction.len()).ok()?))
}

/// Plain from 1e-4 up to the type's digits, with an exponent of at least two digits beyond.
fn layout(text: &str, digits_max: i32) -> String {
    let Some((mantissa, exponent)) = text.split_once('e') else { return text.to_owned() };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..digits_max).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    if exponent < 0 {
        return format!("{sign}0.{}{digits}", "0".repeat(exponent.unsigned_abs() as usize - 1));
    }
    let whole = exponent.unsigned_abs() as usize + 1;
    match digits.split_at_checked(whole) {
        Some((before, "")) => format!("{sign}{before}"),
        Some((before, after)) => format!("{sign}{before}.{after}"),
        None => format!("{sign}{digits}{}", "0".repeat(whole - digits.len())),
    }
}
