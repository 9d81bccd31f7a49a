//! Curves over steps as SVG. Every text goes through the template, which escapes it; everything else is a number.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::series::{Bin, Series};

/// Size of a chart, and what its frame leaves of it; timelines and heat maps have the same frame from left to right.
pub(super) const WIDTH: f64 = 860.0;
pub(super) const LEFT: f64 = 64.0;
pub(super) const RIGHT: f64 = 14.0;
const HEIGHT: f64 = 240.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 24.0;

/// Of all values, this share may lie beyond the edge where a few outliers would hide the rest.
const OUTLIERS: f64 = 0.02;
/// So many times as far as the others an outlier must be.
const FAR: f64 = 4.0;

/// No axis reaches further.
const FURTHEST: f64 = 1e300;

/// A curve.
#[derive(Debug)]
pub(super) struct Curve {
    /// Its name in the legend.
    pub(super) name: String,
    /// Number of its colour, from 0.
    pub(super) colour: usize,
    /// Whether it is dashed.
    pub(super) dashed: bool,
    /// Points with the lowest and the highest value around each, in pieces between gaps.
    pub(super) pieces: Vec<Vec<Point>>,
}

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    /// The step.
    pub(super) x: f64,
    /// The value.
    pub(super) y: f64,
    /// The lowest value around it.
    pub(super) low: f64,
    /// The highest.
    pub(super) high: f64,
}

impl Curve {
    /// The means of a series, with what its bins reach.
    #[must_use]
    pub(super) fn new(name: &str, colour: usize, series: &Series, last: u64) -> Self {
        let point = |(x, bin): (f64, Bin)| Point { x, y: bin.mean, low: bin.low, high: bin.high };
        let pieces = series.pieces(last).into_iter().map(|piece| piece.into_iter().map(point).collect());
        Self { name: name.to_owned(), colour, dashed: false, pieces: pieces.collect() }
    }

    /// Its means alone.
    #[must_use]
    pub(super) fn means(mut self) -> Self {
        self.points_mut(|point| (point.low, point.high) = (point.y, point.y));
        self
    }

    /// Dashed, without what its bins reach.
    #[must_use]
    pub(super) fn dashed(self) -> Self {
        Self { dashed: true, ..self.means() }
    }

    /// What lies between these multiples of it.
    #[must_use]
    pub(super) fn band(mut self, low: f64, high: f64) -> Self {
        self.points_mut(|point| (point.low, point.high) = (point.y * low, point.y * high));
        self
    }

    /// Whether it is 1 everywhere.
    pub(super) fn is_one(&self) -> bool {
        self.points().all(|point| point.low == 1.0 && point.high == 1.0)
    }

    fn points_mut(&mut self, change: impl Fn(&mut Point)) {
        self.pieces.iter_mut().flatten().for_each(change);
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        self.pieces.iter().flatten()
    }
}

/// A chart.
#[derive(Debug)]
pub(super) struct Chart {
    /// What a screen reader says of it.
    pub(super) title: String,
    /// What the vertical axis measures.
    pub(super) unit: String,
    /// The last step.
    pub(super) last: u64,
    /// The curves; later ones lie above.
    pub(super) curves: Vec<Curve>,
    /// Whether the vertical axis may be logarithmic, where values differ by decades.
    pub(super) logarithmic: bool,
    /// Whether the axis begins at 0.
    pub(super) from_zero: bool,
}

/// The vertical axis.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
    /// Whether values lie beyond an end.
    cut: bool,
}

impl Axis {
    fn of(chart: &Chart) -> Self {
        let shown = |value: f64| value.is_finite() && (!chart.logarithmic || value > 0.0);
        // Differences of what is further away would not be finite.
        let near = |value: f64| value.clamp(-FURTHEST, FURTHEST);
        let means = chart.curves.iter().flat_map(Curve::points).map(|p| near(p.y));
        let mut means: Vec<f64> = means.filter(|v| shown(*v)).collect();
        means.sort_by(f64::total_cmp);
        let ends =
            chart.curves.iter().flat_map(Curve::points).flat_map(|p| [p.low, p.high]).map(near).filter(|v| shown(*v));
        let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            return Self { low: 0.0, high: 1.0, logarithmic: false, cut: false };
        }
        if chart.logarithmic && high / low > 20.0 {
            return Self { low: low / 1.2, high: high * 1.2, logarithmic: true, cut: false };
        }
        let at = |share: f64| means.get(((means.len() - 1) as f64 * share) as usize).copied();
        let (inner_low, inner_high) = (at(OUTLIERS).unwrap_or(low), at(1.0 - OUTLIERS).unwrap_or(high));
        let spread = (inner_high - inner_low).max(inner_high.abs() * 1e-3);
        let (floor, ceiling) = (inner_low - FAR * spread, inner_high + FAR * spread);
        let cut = low < floor || high > ceiling;
        let (low, high) = (low.max(floor), high.min(ceiling));
        let low = if chart.from_zero { low.min(0.0) } else { low };
        let margin = match (high - low) * 0.04 {
            margin if margin > 0.0 && margin.is_finite() => margin,
            _ => (high.abs() * 0.05).max(1e-6),
        };
        let bottom = if low >= 0.0 { (low - margin).max(0.0) } else { low - margin };
        Self { low: bottom, high: high + margin, logarithmic: false, cut }
    }

    /// From 0 at the bottom to 1 at the top; what lies beyond is at the edge.
    fn place(&self, value: f64) -> f64 {
        let (value, low, high) = if self.logarithmic {
            (value.max(self.low).log10(), self.low.log10(), self.high.log10())
        } else {
            (value, self.low, self.high)
        };
        ((value - low) / (high - low)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            return ticks(self.low, self.high, 5);
        }
        let (first, last) = (self.low.log10().ceil() as i32, self.high.log10().floor() as i32);
        let every = usize::try_from((last - first) / 6 + 1).unwrap_or(1);
        let between: &[f64] = if last - first < 3 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let decades = (first - 1..=last).step_by(every).map(|decade| 10f64.powi(decade));
        let numbers = decades.flat_map(|decade| between.iter().map(move |n| n * decade));
        numbers.filter(|value| (self.low..=self.high).contains(value)).collect()
    }
}

/// Round numbers between two ends, about so many.
pub(super) fn ticks(low: f64, high: f64, about: u32) -> Vec<f64> {
    let rough = (high - low) / f64::from(about.max(1));
    if !(rough.is_finite() && rough > 0.0) {
        return vec![low];
    }
    let decade = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * decade).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let first = (low / step).ceil();
    let numbers = (0..=about * 2).map(|n| (first + f64::from(n)) * step);
    numbers.take_while(|value| *value <= high + step * 1e-9).collect()
}

/// A number in few characters.
#[must_use]
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "not finite".to_owned();
    }
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e6).contains(&size) {
        return format!("{value:.2e}");
    }
    let text = match size {
        100.0.. => format!("{value:.1}"),
        10.0.. => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    };
    let trimmed = text.trim_end_matches('0').trim_end_matches('.');
    if trimmed == "-0" { "0".to_owned() } else { trimmed.to_owned() }
}

/// Where a step is, from left to right.
pub(super) fn across(step: f64, last: u64) -> f64 {
    LEFT + step / (last as f64).max(1.0) * (WIDTH - LEFT - RIGHT)
}

/// The axis of steps, below something so high.
pub(super) fn steps_axis(last: u64, bottom: f64, across: impl Fn(f64) -> f64) -> Markup {
    let whole = |step: &f64| step.fract() == 0.0;
    // The last one would stand where the axis is named.
    let room = |step: &f64| across(*step) < WIDTH - RIGHT - 40.0;
    let steps: Vec<f64> = ticks(0.0, (last as f64).max(1.0), 8).into_iter().filter(whole).filter(room).collect();
    html! {
        @for step in steps {
            text.tick x=(px(across(step))) y=(px(bottom + 15.0)) text-anchor="middle" { (format!("{step:.0}")) }
        }
        text.tick x=(px(WIDTH - RIGHT)) y=(px(bottom + 15.0)) text-anchor="end" { "step" }
    }
}

/// A length.
pub(super) fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

impl Chart {
    /// The chart, and above it a legend.
    #[must_use]
    pub(super) fn draw(&self) -> Markup {
        let axis = Axis::of(self);
        let bottom = HEIGHT - BOTTOM;
        let up = |value: f64| bottom - axis.place(value) * (bottom - TOP);
        let reach = |piece: &[Point]| piece.iter().any(|p| p.low != p.high);
        html! {
            p.legend {
                @for curve in &self.curves {
                    span { i class={ "k c" (curve.colour % COLOURS) @if curve.dashed { " dashed" } } {} (curve.name) }
                }
                span.unit {
                    (self.unit)
                    @if axis.logarithmic { ", logarithmic" }
                    @if axis.cut { "; what lies far beyond the rest is drawn at the edge" }
                }
            }
            div.plot {
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(self.title) {
                    @for value in axis.ticks() {
                        line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(px(up(value))) y2=(px(up(value))) {}
                        text.tick x=(LEFT - 8.0) y=(px(up(value) + 4.0)) text-anchor="end" { (number(value)) }
                    }
                    (steps_axis(self.last, bottom, |step| across(step, self.last)))
                    @for curve in &self.curves {
                        g class={ "c" (curve.colour % COLOURS) } {
                            @for piece in &curve.pieces {
                                @if reach(piece) { path.reach d=(self.around(piece, up)) {} }
                            }
                            @for piece in &curve.pieces {
                                @match piece.as_slice() {
                                    [only] => { circle cx=(px(across(only.x, self.last))) cy=(px(up(only.y))) r="2.5" {} }
                                    _ => { path.line.dashed[curve.dashed] d=(self.along(piece, up)) {} }
                                }
                            }
                        }
                    }
                    rect.frame x=(LEFT) y=(TOP) width=(WIDTH - LEFT - RIGHT) height=(bottom - TOP) {}
                }
            }
        }
    }

    fn along(&self, piece: &[Point], up: impl Fn(f64) -> f64) -> String {
        let mut path = String::new();
        for (n, point) in piece.iter().enumerate() {
            let command = if n == 0 { 'M' } else { 'L' };
            // Writing to a string does not fail.
            let _ = write!(path, "{command}{} {}", px(across(point.x, self.last)), px(up(point.y)));
        }
        path
    }

    fn around(&self, piece: &[Point], up: impl Fn(f64) -> f64) -> String {
        let above = piece.iter().map(|p| Point { y: p.high, ..*p });
        let below = piece.iter().rev().map(|p| Point { y: p.low, ..*p });
        let outline: Vec<Point> = above.chain(below).collect();
        self.along(&outline, up) + "Z"
    }
}

/// Colours of curves.
pub(super) const COLOURS: usize = 7;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    fn chart(values: &[f64], logarithmic: bool) -> Chart {
        let mut series = Series::new(4096);
        (0..).zip(values).for_each(|(step, &value)| series.push(step, Some(value)));
        let last = values.len() as u64 - 1;
        let curves = vec![Curve::new("loss", 0, &series, last)];
        Chart { title: "t".into(), unit: "u".into(), last, curves, logarithmic, from_zero: false }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 1.0, 5).len(), 6);
        assert_eq!(ticks(0.0, 1499.0, 8), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0, 1200.0, 1400.0]);
        assert_eq!(ticks(3.0, 3.0, 5), [3.0]);
        assert_eq!(ticks(0.0, 1e300, 5).len(), 6);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in
            [(0.0, "0"), (1500.0, "1500"), (0.25, "0.25"), (1e-7, "1.00e-7"), (f64::NAN, "not finite"), (-0.00, "0")]
        {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn outliers_do_not_hide_the_rest() {
        let mut values: Vec<f64> = (0..200).map(|n| 5.0 - f64::from(n) / 100.0).collect();
        values[100] = 1e9;
        let axis = Axis::of(&chart(&values, false));
        assert!(axis.cut && axis.high < 20.0, "{axis:?}");
        assert_eq!(axis.place(1e9), 1.0);
        values[100] = 6.0;
        assert!(!Axis::of(&chart(&values, false)).cut);
    }

    #[test]
    fn axes_of_few_or_extreme_values() {
        for values in [&[2.0][..], &[0.0], &[3.0; 5], &[f64::MAX, -f64::MAX], &[1e-300, 1e300]] {
            for logarithmic in [false, true] {
                let chart = chart(values, logarithmic);
                let svg = chart.draw().into_string();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{values:?}: {svg}");
            }
        }
        let axis = Axis::of(&chart(&[0.01, 1.0, 100.0], true));
        assert!(axis.logarithmic && axis.ticks().contains(&1.0), "{:?}", axis.ticks());
    }

    #[test]
    fn a_single_step_is_a_dot_and_texts_are_escaped() {
        let mut chart = chart(&[2.0], false);
        chart.curves[0].name = "<script>alert(1)</script>".into();
        chart.title = "\"><script>".into();
        let svg = chart.draw().into_string();
        assert!(svg.contains("<circle") && !svg.contains("<script"), "{svg}");
        assert!(svg.contains("&lt;script&gt;alert(1)"), "{svg}");
    }
}
