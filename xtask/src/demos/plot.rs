//! Loss curves as SVG.

use std::ops::Range;

use anyhow::Result;
use plotters::prelude::*;

use super::runs::{Group, SMOOTH};

const SIZE: (u32, u32) = (960, 540);

/// Told apart by all kinds of colour vision (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Where the axis ends at the latest: a little above ln 256, the loss of a model that knows nothing.
const HIGHEST: f64 = 6.0;

/// Points of a curve, in pieces between gaps.
type Pieces = Vec<Vec<(f64, f64)>>;

/// The smoothed training losses of the first seed; `marks` are steps to shade.
pub(super) fn losses(group: &Group, title: &str, marks: &[Range<u64>]) -> Result<String> {
    let curves: Vec<(&str, Pieces)> =
        group.series.iter().filter_map(|s| Some((s.plan.label.as_str(), pieces(s.runs.first()?.smoothed())))).collect();
    let values = || curves.iter().flat_map(|(_, pieces)| pieces.iter().flatten().map(|p| p.1));
    let (low, high) = values().fold((f64::INFINITY, 0.0f64), |(low, high), v| (low.min(v), high.max(v)));
    let losses = if low < high.min(HIGHEST) { low * 0.97..(high * 1.03).min(HIGHEST) } else { 0.0..HIGHEST };
    let cut = if high > losses.end { format!("; {HIGHEST} and more at the edge") } else { String::new() };

    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..group.steps as f64, losses.clone())?;
        chart
            .configure_mesh()
            .x_desc("step")
            .y_desc(format!("nats per byte, mean of {SMOOTH} steps{cut}"))
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.2}"))
            .light_line_style(WHITE)
            .label_style(("sans-serif", 14))
            .draw()?;
        chart.draw_series(marks.iter().map(|m| {
            let corners = [(m.start as f64, losses.start), (m.end as f64, losses.end)];
            Rectangle::new(corners, BLACK.mix(0.15).filled())
        }))?;
        for ((label, pieces), colour) in curves.into_iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            let mut label = Some(label);
            for piece in pieces {
                let piece = piece.into_iter().map(|(step, loss)| (step, loss.min(losses.end)));
                let drawn = chart.draw_series(LineSeries::new(piece, style))?;
                // One entry in the legend, however many pieces there are.
                if let Some(label) = label.take() {
                    drawn.label(label).legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
                }
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.4))
            .label_font(("sans-serif", 14))
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

/// A curve, broken where it has no value.
fn pieces(points: impl Iterator<Item = (u64, Option<f64>)>) -> Pieces {
    let mut pieces = vec![Vec::new()];
    for (step, value) in points {
        match (value, pieces.last_mut()) {
            (Some(value), Some(piece)) => piece.push((step as f64, value)),
            _ => pieces.push(Vec::new()),
        }
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}
