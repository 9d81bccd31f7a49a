//! The rows of the table, their bars, and the table itself.

use super::samples::Samples;
use super::statistics::Estimate;
use super::{Part, Set};

/// What is promised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bar {
    /// At most this; where it is 1, the interval has to include or lie below it.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// Only shown.
    None,
}

impl Bar {
    fn held(self, estimate: Estimate) -> Option<bool> {
        match self {
            Self::AtMost(bar) => Some(estimate.median <= bar || (bar == 1.0 && estimate.low <= bar)),
            Self::AtLeast(bar) => Some(estimate.median >= bar),
            Self::None => None,
        }
    }
}

/// A unit, with the digits that are shown.
#[derive(Debug, Clone, Copy)]
enum Unit {
    /// A ratio.
    Ratio,
    /// A ratio in hundredths.
    Percent,
    Milliseconds,
    Seconds,
}

impl Unit {
    fn told(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.3}"),
            Self::Percent => format!("{:.3} %", value * 100.0),
            Self::Milliseconds => format!("{value:.2} ms"),
            Self::Seconds => format!("{value:.3} s"),
        }
    }
}

/// One comparison.
#[derive(Debug, Clone)]
pub(super) struct Row {
    what: String,
    bar: Bar,
    unit: Unit,
    /// `None` where it was not measured.
    estimate: Option<Estimate>,
}

impl Row {
    /// How it reads in a table of Markdown.
    fn told(&self) -> String {
        let bar = match self.bar {
            Bar::AtMost(bar) => format!("at most {}", self.unit.told(bar)),
            Bar::AtLeast(bar) => format!("at least {}", self.unit.told(bar)),
            Bar::None => String::new(),
        };
        let Some(estimate) = self.estimate else { return format!("| {} | {bar} | not measured | | |", self.what) };
        let Estimate { median, low, high } = estimate;
        let verdict = match self.bar.held(estimate) {
            Some(true) => "held",
            Some(false) => "**missed**",
            None => "",
        };
        let [median, low, high] = [median, low, high].map(|value| self.unit.told(value));
        format!("| {} | {bar} | {median} | {low} to {high} | {verdict} |", self.what)
    }
}

/// The rows of a set of parts, measured or not.
pub(super) fn rows(set: Set, samples: &dyn Fn(Part) -> Samples) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |what: &str, bar, unit, estimate| {
        rows.push(Row { what: what.to_owned(), bar, unit, estimate });
    };
    let control = samples(Part::Control);
    let injected = Bar::AtMost(if set == Set::Cpu { 1.01 } else { 1.005 });
    for (name, what) in [
        ("default", "step under the default policy / plain step"),
        ("article", "step under the article's policy / plain step"),
        ("article-delayed", "the same, delayed"),
    ] {
        row(what, injected, Unit::Ratio, control.ratio(name, "plain"));
    }
    let delayed = control.ratio("article-delayed", "article");
    row("the article's policy, delayed / sync", Bar::None, Unit::Ratio, delayed);
    let handwritten = control.ratio("default", "handwritten");
    row("default policy / the same control written by hand in JAX", Bar::AtMost(1.0), Unit::Ratio, handwritten);
    let ours = control.more_ms("default", "plain");
    row("default policy less plain step", Bar::None, Unit::Milliseconds, ours);
    if set == Set::Cpu {
        // What control costs here, at the most that the measurement allows.
        let bar = ours.map_or(Bar::None, |ours| Bar::AtLeast(3.0 * ours.median.max(ours.high).max(0.0)));
        for (part, of, less, what) in [
            (Part::Jax, "jax-naive", "jax", "naive control on the host in JAX, less plain JAX"),
            (Part::Jax, "jax-packed", "jax", "packed and late control on the host in JAX, less plain JAX"),
            (Part::Torch, "torch-naive", "torch", "naive control on the host in PyTorch, less plain PyTorch"),
        ] {
            row(what, bar, Unit::Milliseconds, samples(part).more_ms(of, less));
        }
    }
    let train = samples(Part::Loop);
    let bare = train.ratio("bare", "train");
    row("steps/s of `train` / a bare execute loop", Bar::AtLeast(0.99), Unit::Ratio, bare);
    let jax = if set == Set::Cpu { Bar::None } else { Bar::AtLeast(1.0) };
    row("steps/s of `train` / a training loop in JAX", jax, Unit::Ratio, train.ratio("jax-loop", "train"));
    row("the plugin's own factor: time of the plain step / in JAX", Bar::None, Unit::Ratio, train.ratio("bare", "jax"));
    let apart = train.double_ratio(["jax-loop", "jax"], ["train", "bare"]);
    row("steps/s of `train` / a training loop in JAX, each over its own bare step", Bar::None, Unit::Ratio, apart);
    if set == Set::Cpu {
        let start = samples(Part::Start);
        row(
            "warm start: process start to the first step's metrics",
            Bar::AtMost(0.5),
            Unit::Seconds,
            start.time("step"),
        );
        row("warm start: process start until all is compiled", Bar::None, Unit::Seconds, start.time("ready"));
    }
    rows
}

/// The table.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = "| | bar | median | 95% interval | |\n|---|---|---|---|---|\n".to_owned();
    for row in rows {
        text += &row.told();
        text.push('\n');
    }
    text
}

/// What compiler flags and client options are worth.
pub(super) fn flags(samples: &Samples) -> String {
    let mut text =
        "| setting | time / as it is | 95% interval | time / JAX | 95% interval |\n|---|---|---|---|---|\n".to_owned();
    let interval = |e: Estimate| format!("{:.3} | {:.3} to {:.3}", e.median, e.low, e.high);
    for name in samples.names().into_iter().filter(|&name| name != "jax") {
        if let (Some(own), Some(jax)) = (samples.ratio(name, "as it is"), samples.ratio(name, "jax")) {
            text += &format!("| `{name}` | {} | {} |\n", interval(own), interval(jax));
        }
    }
    for note in &samples.notes {
        text += &format!("\n- {note}");
    }
    text
}

/// What several steps in one launch are worth, by model.
pub(super) fn launches(measured: &[(&str, Samples)]) -> String {
    let mut rows = Vec::new();
    for (model, samples) in measured {
        for (single, launch, loop_name) in
            [("single", "launch", "a bare execute loop"), ("train", "train-launch", "`train`")]
        {
            rows.push(Row {
                what: format!("`{model}`, {loop_name}: steps/s in launches of 8 / one by one"),
                bar: Bar::AtLeast(1.0),
                unit: Unit::Ratio,
                estimate: samples.ratio(single, launch),
            });
        }
    }
    table(&rows)
}

/// How much rarer a checkpoint is by default than where it was measured: every 500 steps, not every 10.
const CHECKPOINTS_RARER: f64 = 50.0;
/// The same of reading the metrics: once a second, not ten times.
const SCRAPES_RARER: f64 = 10.0;

/// What checkpoints and reading the metrics take of a run's time.
pub(super) fn operations(samples: &Samples) -> String {
    let row = |what: &str, name, rarer, bar| Row {
        what: what.to_owned(),
        bar: Bar::AtMost(bar),
        unit: Unit::Percent,
        estimate: samples.share_more(name, "train", rarer),
    };
    table(&[
        row("a checkpoint every 500 steps", "checkpoints", CHECKPOINTS_RARER, 0.01),
        row("metrics read once a second", "scraped", SCRAPES_RARER, 0.005),
    ])
}

/// Steps from one comparison of replicas to the next, by default.
const CHECK_EVERY: f64 = 500.0;

/// What replicas exchange for control and what comparing them takes, by model.
pub(super) fn replicas(measured: &[(&str, Samples)]) -> String {
    let mut text = "| | step, ms | statistics of each replica's own gradients / of the shared one | more for a step, µs | that exchange \
                    by itself, µs | a launch without it, µs | one comparison, ms | of 500 steps |\n|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    let told = |estimate: Option<Estimate>, times: f64, digits: usize| {
        estimate.map_or("not measured".to_owned(), |e| {
            let [median, low, high] = [e.median, e.low, e.high].map(|value| value * times);
            format!("{median:.digits$} ({low:.digits$} to {high:.digits$})")
        })
    };
    for (model, samples) in measured {
        for count in [2, 8] {
            let of = |name: &str| format!("{name}-{count}");
            let (global, local, check) = (of("global"), of("local"), of("check"));
            let (reduce, launch) = (of("reduce"), of("launch"));
            let cells = [
                format!("`{model}`, {count} replicas"),
                told(samples.time(&global), 1e3, 2),
                told(samples.ratio(&local, &global), 1.0, 3),
                told(samples.more_ms(&local, &global), 1e3, 0),
                told(samples.more_ms(&reduce, &launch), 1e3, 0),
                told(samples.time(&launch), 1e6, 0),
                told(samples.time(&check), 1e3, 2),
                told(samples.ratio(&check, &global), 100.0 / CHECK_EVERY, 3) + " %",
            ];
            text += &format!("| {} |\n", cells.join(" | "));
        }
    }
    for (model, samples) in measured {
        for note in &samples.notes {
            text += &format!("\n- `{model}`, {note}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn estimate(low: f64, median: f64, high: f64) -> Estimate {
        Estimate { median, low, high }
    }

    #[test]
    fn a_bar_holds_when_the_point_meets_it_and_a_bar_of_one_when_the_interval_does() {
        for (bar, low, median, high, held) in [
            (Bar::AtMost(1.01), 0.99, 1.01, 1.02, Some(true)),
            (Bar::AtMost(1.01), 0.99, 1.011, 1.02, Some(false)),
            (Bar::AtMost(1.0), 0.999, 1.01, 1.02, Some(true)),
            (Bar::AtMost(1.0), 0.8, 0.9, 0.95, Some(true)),
            (Bar::AtMost(1.0), 1.001, 1.01, 1.02, Some(false)),
            (Bar::AtLeast(0.99), 0.9, 0.99, 1.0, Some(true)),
            (Bar::AtLeast(0.99), 0.9, 0.98, 1.0, Some(false)),
            (Bar::AtLeast(1.0), 0.9, 0.99, 1.1, Some(false)),
            (Bar::None, 0.9, 0.99, 1.1, None),
        ] {
            assert_eq!(bar.held(estimate(low, median, high)), held, "{bar:?} {low} {median} {high}");
        }
    }

    fn round(times: &[(&str, f64)]) -> Samples {
        let times: BTreeMap<_, _> = times.iter().map(|(name, time)| ((*name).to_owned(), *time)).collect();
        Samples { rounds: vec![times; 5], ..Samples::default() }
    }

    #[test]
    fn rows_say_bar_point_interval_and_verdict() {
        let samples = |part| match part {
            Part::Control => round(&[("plain", 0.1), ("default", 0.102), ("handwritten", 0.103)]),
            Part::Jax => round(&[("jax", 0.1), ("jax-naive", 0.109), ("jax-packed", 0.101)]),
            _ => Samples::default(),
        };
        let text = table(&rows(Set::Cpu, &samples));
        for line in [
            "| step under the default policy / plain step | at most 1.010 | 1.020 | 1.020 to 1.020 | **missed** |",
            "| step under the article's policy / plain step | at most 1.010 | not measured | | |",
            "| default policy / the same control written by hand in JAX | at most 1.000 | 0.990 | 0.990 to 0.990 | held |",
            "| default policy less plain step |  | 2.00 ms | 2.00 ms to 2.00 ms |  |",
            "| naive control on the host in JAX, less plain JAX | at least 6.00 ms | 9.00 ms | 9.00 ms to 9.00 ms | held |",
            "| packed and late control on the host in JAX, less plain JAX | at least 6.00 ms | 1.00 ms | 1.00 ms to 1.00 ms | **missed** |",
            "| steps/s of `train` / a bare execute loop | at least 0.990 | not measured | | |",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[test]
    fn control_that_costs_nothing_asks_nothing_of_the_host() {
        let samples = |part| match part {
            Part::Control => round(&[("plain", 0.1), ("default", 0.098)]),
            Part::Torch => round(&[("torch", 0.2), ("torch-naive", 0.21)]),
            _ => Samples::default(),
        };
        let text = table(&rows(Set::Cpu, &samples));
        assert!(text.contains("PyTorch | at least 0.00 ms | 10.00 ms | 10.00 ms to 10.00 ms | held |"), "{text}");
    }

    #[test]
    fn a_gpu_has_its_own_bars_and_rows() {
        let samples = |part| match part {
            Part::Loop => round(&[("bare", 0.1), ("train", 0.1), ("jax", 0.1), ("jax-loop", 0.099)]),
            _ => Samples::default(),
        };
        let text = table(&rows(Set::Gpu, &samples));
        assert!(text.contains("at most 1.005") && !text.contains("PyTorch") && !text.contains("warm start"), "{text}");
        assert!(
            text.contains("a training loop in JAX | at least 1.000 | 0.990 | 0.990 to 0.990 | **missed** |"),
            "{text}"
        );
    }

    #[test]
    fn launches_are_compared_with_single_steps_of_the_same_model() {
        let samples = round(&[("single", 0.03), ("launch", 0.01), ("train", 0.03), ("train-launch", 0.04)]);
        let text = launches(&[("mlp", samples)]);
        assert!(
            text.contains(
                "`mlp`, a bare execute loop: steps/s in launches of 8 / one by one | at least 1.000 | 3.000 "
            ),
            "{text}"
        );
        assert!(text.contains("`train`: steps/s in launches of 8 / one by one | at least 1.000 | 0.750 "), "{text}");
        assert!(text.contains("held") && text.contains("**missed**"), "{text}");
    }

    #[test]
    fn what_operations_take_is_told_as_often_as_they_are_by_default() {
        let text = operations(&round(&[("train", 0.1), ("checkpoints", 0.105), ("scraped", 0.11)]));
        assert!(text.contains("every 500 steps | at most 1.000 % | 0.100 % | 0.100 % to 0.100 % | held |"), "{text}");
        assert!(
            text.contains("once a second | at most 0.500 % | 1.000 % | 1.000 % to 1.000 % | **missed** |"),
            "{text}"
        );
    }

    #[test]
    fn replicas_are_compared_within_their_number() {
        let times =
            [("global-2", 0.01), ("local-2", 0.011), ("reduce-2", 3e-4), ("launch-2", 1e-4), ("check-2", 0.002)];
        let text = replicas(&[("mlp", round(&times))]);
        let row = text.lines().find(|line| line.starts_with("| `mlp`, 2 replicas")).unwrap();
        for part in ["10.00 (", "1.100 (", "1000 (", "| 200 (", "| 100 (", "2.00 (", "0.040 (0.040 to 0.040) %"] {
            assert!(row.contains(part), "{part}: {row}");
        }
        assert!(text.contains("| `mlp`, 8 replicas | not measured"), "{text}");
    }

    #[test]
    fn flags_are_compared_with_the_plugin_as_it_is_and_with_jax() {
        let mut samples = round(&[("as it is", 0.12), ("jax", 0.1), ("x=true", 0.11)]);
        samples.notes.push("`y`: unknown".to_owned());
        let text = flags(&samples);
        assert!(text.contains("| `x=true` | 0.917 | 0.917 to 0.917 | 1.100 | 1.100 to 1.100 |"), "{text}");
        assert!(text.contains("| `as it is` | 1.000 | 1.000 to 1.000 | 1.200 | 1.200 to 1.200 |"), "{text}");
        assert!(!text.contains("`jax`"), "{text}");
        assert!(text.ends_with("- `y`: unknown"), "{text}");
    }
}
