//! Figures as people read them.

/// `1,234,567`
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1.2 MiB`
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    while value >= 1024.0 {
        let Some(next) = units.next() else { break };
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// `45 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`
pub(crate) fn seconds(number: u64) -> String {
    let pair = |big: u64, one: &str, small: u64, other: &str| {
        if small == 0 { format!("{big} {one}") } else { format!("{big} {one} {small} {other}") }
    };
    match number {
        0..60 => format!("{number} s"),
        60..3_600 => pair(number / 60, "min", number % 60, "s"),
        3_600..86_400 => pair(number / 3_600, "h", number % 3_600 / 60, "min"),
        _ => pair(number / 86_400, "d", number % 86_400 / 3_600, "h"),
    }
}

/// `120 ms`, `2.5 s`, `3 min 5 s`
pub(crate) fn millis(number: u64) -> String {
    match number {
        0..1_000 => format!("{number} ms"),
        1_000..60_000 => format!("{:.1} s", number as f64 / 1_000.0),
        _ => seconds(number / 1_000),
    }
}

/// `12,300/s`; below ten with one digit.
pub(crate) fn per_second(rate: f64) -> String {
    if rate > 0.0 && rate < 10.0 {
        format!("{rate:.1}/s")
    } else {
        format!("{}/s", grouped(rate.round().max(0.0) as u64))
    }
}

/// `45%`, never 100 before the end.
pub(crate) fn percent(done: u64, total: u64) -> String {
    if total == 0 {
        return "0%".to_owned();
    }
    format!("{}%", (u128::from(done.min(total)) * 100 / u128::from(total)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_plain() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
        assert_eq!(bytes(1_023), "1023 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(seconds(59), "59 s");
        assert_eq!(seconds(60), "1 min");
        assert_eq!(seconds(3_725), "1 h 2 min");
        assert_eq!(seconds(90_000), "1 d 1 h");
        assert_eq!(millis(999), "999 ms");
        assert_eq!(millis(2_540), "2.5 s");
        assert_eq!(per_second(0.0), "0/s");
        assert_eq!(per_second(3.24), "3.2/s");
        assert_eq!(per_second(12_345.6), "12,346/s");
        assert_eq!(percent(999, 1_000), "99%");
        assert_eq!(percent(5, 0), "0%");
    }
}
