//! A value per tensor and step as a heat map, and events on a time line, as SVG.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::chart::{LEFT, RIGHT, WIDTH, across, number, px, steps_axis};
use super::overview::Event;
use super::series::Series;

/// Where cells begin: names are long.
const NAMES: f64 = 232.0;
/// Height of a row; of one where there are many.
const ROW: f64 = 16.0;
const LOW_ROW: f64 = 11.0;
/// More rows than that are low.
const MANY: usize = 40;
/// Characters of a name; the rest is in its tooltip.
const NAME: usize = 40;
/// Colours that are told apart: a path for each keeps the page small.
const LEVELS: usize = 48;

/// Points of the colour map viridis, from low to high.
const VIRIDIS: [[f64; 3]; 9] = [
    [68.0, 1.0, 84.0],
    [71.0, 44.0, 122.0],
    [59.0, 81.0, 139.0],
    [44.0, 113.0, 142.0],
    [33.0, 144.0, 141.0],
    [39.0, 173.0, 129.0],
    [92.0, 200.0, 99.0],
    [170.0, 220.0, 50.0],
    [253.0, 231.0, 37.0],
];

/// A heat map.
#[derive(Debug)]
pub(super) struct HeatMap<'a> {
    /// What a screen reader says of it.
    pub(super) title: &'a str,
    /// Name and values of each row.
    pub(super) rows: Vec<(&'a str, &'a Series)>,
    /// The last step.
    pub(super) last: u64,
}

/// The colour of a share of the range, as `#rrggbb`.
fn colour(share: f64) -> String {
    let place = share.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let at = place as usize;
    let from = VIRIDIS.get(at).copied().unwrap_or_default();
    let to = VIRIDIS.get(at + 1).copied().unwrap_or(from);
    let mixed = from.iter().zip(to).map(|(a, b)| (a + (b - a) * place.fract()).round() as u8);
    mixed.fold("#".to_owned(), |text, part| format!("{text}{part:02x}"))
}

fn level(value: f64, low: f64, high: f64) -> usize {
    let share = if high > low { (value - low) / (high - low) } else { 0.5 };
    ((share * LEVELS as f64) as usize).min(LEVELS - 1)
}

fn colour_of(level: usize) -> String {
    colour(level as f64 / (LEVELS - 1) as f64)
}

/// A long name with its middle left out.
fn short(name: &str) -> String {
    let characters: Vec<char> = name.chars().collect();
    if characters.len() <= NAME {
        return name.to_owned();
    }
    let half = NAME / 2;
    let (head, tail) = (characters.iter().take(half - 1), characters.iter().skip(characters.len() - half));
    head.chain(&['…']).chain(tail).collect()
}

impl HeatMap<'_> {
    /// The means of all bins from the lowest to the highest.
    fn range(&self) -> Option<(f64, f64)> {
        let means = self.rows.iter().flat_map(|(_, series)| series.filled()).map(|(_, bin)| bin.mean);
        let fold =
            |range: Option<(f64, f64)>, v: f64| Some(range.map_or((v, v), |(low, high)| (low.min(v), high.max(v))));
        means.fold(None, fold)
    }

    /// For each level the cells of it, in units of bins and rows: neighbours are one rectangle.
    fn cells(&self, low: f64, high: f64) -> Vec<String> {
        let mut paths = vec![String::new(); LEVELS];
        for (row, (_, series)) in self.rows.iter().enumerate() {
            let levels: Vec<_> =
                series.bins().iter().map(|bin| (bin.count > 0).then(|| level(bin.mean, low, high))).collect();
            let mut column = 0;
            for run in levels.chunk_by(|a, b| a == b) {
                let path = run.first().copied().flatten().and_then(|level| paths.get_mut(level));
                if let Some(path) = path {
                    // Writing to a string does not fail.
                    let _ = write!(path, "M{column} {row}h{n}v1h-{n}z", n = run.len());
                }
                column += run.len();
            }
        }
        paths
    }

    /// The map with its legend; a sentence where no tensor has a value.
    #[must_use]
    pub(super) fn draw(&self) -> Markup {
        let Some((low, high)) = self.range() else { return html! { p.none { "No tensor has a value yet." } } };
        let row = if self.rows.len() > MANY { LOW_ROW } else { ROW };
        let bottom = row * self.rows.len() as f64;
        // Rows are of one run, so their bins are of one width.
        let width = self.rows.iter().map(|(_, series)| series.width()).max().unwrap_or(1) as f64;
        let steps = (self.last as f64 + 1.0).max(1.0);
        let cell = (WIDTH - NAMES - RIGHT) * width / steps;
        html! {
            p.legend {
                span { (number(low)) }
                svg.scale viewBox={ "0 0 " (LEVELS) " 4" } preserveAspectRatio="none" aria-hidden="true" {
                    @for level in 0..LEVELS { rect x=(level) width="1.1" height="4" fill=(colour_of(level)) {} }
                }
                span { (number(high)) }
                span.unit {
                    @if width > 1.0 { "each cell is the mean of " (width) " steps; " }
                    "grey: no value"
                }
            }
            div.plot.tall {
                svg viewBox={ "0 0 " (WIDTH) " " (px(bottom + 20.0)) } role="img" aria-label=(self.title) {
                    clipPath id={ "clip-" (self.id()) } {
                        rect x=(NAMES) y="0" width=(WIDTH - NAMES - RIGHT) height=(px(bottom)) {}
                    }
                    rect.empty x=(NAMES) y="0" width=(WIDTH - NAMES - RIGHT) height=(px(bottom)) {}
                    g clip-path={ "url(#clip-" (self.id()) ")" } {
                        g shape-rendering="crispEdges"
                            transform={ "translate(" (NAMES) " 0) scale(" (format!("{cell:.6}")) " " (row) ")" }
                        {
                            @for (level, path) in self.cells(low, high).iter().enumerate() {
                                @if !path.is_empty() { path fill=(colour_of(level)) d=(path) {} }
                            }
                        }
                    }
                    (steps_axis(self.last, bottom, |step| NAMES + step / steps * (WIDTH - NAMES - RIGHT)))
                    @for (n, (name, _)) in self.rows.iter().enumerate() {
                        text.name.low[row < ROW] x=(NAMES - 6.0) y=(px((n as f64 + 0.5) * row + 3.5)) text-anchor="end" {
                            (short(name)) title { (name) }
                        }
                    }
                }
            }
        }
    }

    /// A name for what only this picture refers to.
    fn id(&self) -> String {
        self.title.chars().filter(char::is_ascii_alphanumeric).collect()
    }
}

/// Events over steps, a row for each kind.
#[must_use]
pub(super) fn timeline(events: &[Event], last: u64) -> Markup {
    const LANE: f64 = 22.0;
    let bottom = LANE * events.len() as f64;
    html! {
        div.plot {
            svg viewBox={ "0 0 " (WIDTH) " " (px(bottom + 20.0)) } role="img" aria-label="events over steps" {
                @for (n, event) in events.iter().enumerate() {
                    @let top = n as f64 * LANE;
                    line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(px(top + LANE)) y2=(px(top + LANE)) {}
                    text.lane x=(LEFT + 4.0) y=(px(top + 10.0)) { (event.name) " · " (event.total) }
                    path class={ "event " (event.weight.class()) } d=(marks(event, last, top + LANE)) {}
                }
                (steps_axis(last, bottom, |step| across(step, last)))
            }
        }
    }
}

/// A mark for each bin with an event, taller where there are more.
fn marks(event: &Event, last: u64, bottom: f64) -> String {
    let most = event.when.filled().map(|(_, bin)| bin.count).max().unwrap_or(1) as f64;
    let mut path = String::new();
    for (begin, bin) in event.when.filled() {
        let height = 3.0 + 6.0 * bin.count as f64 / most;
        let middle = begin as f64 + (event.when.width() - 1) as f64 / 2.0;
        // Writing to a string does not fail.
        let _ = write!(path, "M{} {}v-{}", px(across(middle.min(last as f64), last)), px(bottom), px(height));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_colour_map_is_viridis() {
        for (share, text) in [(0.0, "#440154"), (0.5, "#21908d"), (1.0, "#fde725"), (-3.0, "#440154"), (7.0, "#fde725")]
        {
            assert_eq!(colour(share), text);
        }
    }

    #[test]
    fn neighbours_of_one_colour_are_one_rectangle_and_gaps_stay_empty() {
        let mut series = Series::new(16);
        for (step, value) in [Some(0.0), Some(0.0), None, Some(1.0)].into_iter().enumerate() {
            series.push(step as u64, value);
        }
        let map = HeatMap { title: "t", rows: vec![("a", &series)], last: 3 };
        assert_eq!(map.range(), Some((0.0, 1.0)));
        let paths: Vec<_> = map.cells(0.0, 1.0).into_iter().filter(|p| !p.is_empty()).collect();
        assert_eq!(paths, ["M0 0h2v1h-2z", "M3 0h1v1h-1z"]);
    }

    #[test]
    fn names_are_shortened_in_the_middle_and_escaped() {
        let long = format!("blocks/{}/kernel", "x".repeat(80));
        assert_eq!(short(&long).chars().count(), NAME);
        let mut series = Series::new(4);
        series.push(0, Some(0.5));
        let name = "<script>alert(1)</script>";
        let svg = HeatMap { title: "t", rows: vec![(name, &series)], last: 0 }.draw().into_string();
        assert!(!svg.contains("<script") && svg.contains("&lt;script&gt;"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
