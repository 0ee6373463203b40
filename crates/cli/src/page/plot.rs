//! Latencies of both sides as two curves: what part of the runs took no longer than so many milliseconds. The scale is
//! logarithmic, for a slow run in a hundred is what one looks for.

use std::fmt::{self, Write};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 26.0;

/// Points of a curve at most: past that some runs stand for several.
const POINTS_MAX: usize = 400;

/// Writes the plot of some runs; nothing where there are too few.
pub(super) fn write(html: &mut String, took_ms: &[(f64, f64)]) -> fmt::Result {
    if took_ms.len() < 2 {
        return Ok(());
    }
    let sorted = |of: fn(&(f64, f64)) -> f64| {
        let mut took: Vec<f64> = took_ms.iter().map(of).map(|ms| ms.max(0.001)).collect();
        took.sort_unstable_by(f64::total_cmp);
        took
    };
    let (source, target) = (sorted(|took| took.0), sorted(|took| took.1));
    let all = || source.iter().chain(&target).copied();
    let scale = Scale::of(all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    writeln!(
        html,
        "<figure><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"part of the runs that took no longer than so many milliseconds, on both sides\">"
    )?;
    for (part, name) in [(0.5, "p50"), (0.95, "p95"), (0.99, "")] {
        let y = height(part);
        writeln!(html, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>", WIDTH - RIGHT)?;
        writeln!(html, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>", LEFT - 6.0, y + 4.0)?;
    }
    for ms in scale.marks() {
        let (x, bottom) = (scale.x(ms), HEIGHT - BOTTOM);
        writeln!(html, "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>")?;
        writeln!(html, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{ms} ms</text>", HEIGHT - 8.0)?;
    }
    for (side, took) in [("old", &source), ("new", &target)] {
        writeln!(html, "<path class=\"{side}\" d=\"{}\"/>", curve(took, &scale))?;
    }
    let x = WIDTH - RIGHT - 4.0;
    for (side, name, y) in [("old", "source", HEIGHT - BOTTOM - 24.0), ("new", "target", HEIGHT - BOTTOM - 8.0)] {
        writeln!(html, "<text class=\"{side}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{name}</text>")?;
    }
    writeln!(html, "</svg></figure>")
}

fn height(part: f64) -> f64 {
    TOP + (1.0 - part) * (HEIGHT - TOP - BOTTOM)
}

/// Milliseconds to places, from one power of ten to another.
struct Scale {
    least: i32,
    most: i32,
}

impl Scale {
    fn of(least: f64, most: f64) -> Self {
        let (least, most) = (least.log10().floor() as i32, most.log10().ceil() as i32);
        Self { least, most: most.max(least + 1) }
    }

    fn x(&self, ms: f64) -> f64 {
        let part = (ms.log10() - f64::from(self.least)) / f64::from(self.most - self.least);
        LEFT + part.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn marks(&self) -> impl Iterator<Item = f64> + use<> {
        (self.least..=self.most).map(|power| 10f64.powi(power))
    }
}

fn curve(took: &[f64], scale: &Scale) -> String {
    let step = took.len().div_ceil(POINTS_MAX).max(1);
    let last = took.len() - 1;
    let mut path = String::new();
    for (place, ms) in took.iter().enumerate().filter(|(place, _)| place % step == 0 || *place == last) {
        let part = (place + 1) as f64 / took.len() as f64;
        let word = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{word}{:.1} {:.1}", scale.x(*ms), height(part));
    }
    path
}
