//! Medians, spread and ratios, as rows of a Markdown table.

/// The table's head.
pub(crate) const HEAD: &str = "| work | unit | peer: median (min – max) | crossfade: median (min – max) | ratio (median of rounds) |\n|---|---|---|---|---|";

/// The median of some figures; zero for none.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted.get(odd / 2).copied().unwrap_or_default(),
        even => sorted.iter().skip(even / 2 - 1).take(2).sum::<f64>() / 2.0,
    }
}

/// Prints one row: each round's pair gives a ratio, and the median of those is what counts.
pub(crate) fn row(work: &str, unit: &str, peer: &[f64], ours: &[f64]) {
    let ratios: Vec<f64> = ours.iter().zip(peer).map(|(ours, peer)| ours / peer).collect();
    println!("| {work} | {unit} | {} | {} | {:.2} |", spread(peer), spread(ours), median(&ratios));
}

/// The median with the least and the most.
pub(crate) fn spread(figures: &[f64]) -> String {
    let min = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let max = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let digits = if max >= 100.0 { 0 } else { 2 };
    format!("{:.digits$} ({min:.digits$} – {max:.digits$})", median(figures))
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }
}
