//! A number per step in bounded memory: bins of equal width that widen as the run goes on.

/// What the steps of one bin came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bin {
    /// Steps with a number.
    pub count: u64,
    /// Steps without one.
    pub missing: u64,
    /// Mean of the numbers.
    pub mean: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Bin {
    fn add(&mut self, value: Option<f64>) {
        match value.filter(|value| value.is_finite()) {
            Some(value) => self.merge(&Self { count: 1, missing: 0, mean: value, low: value, high: value }),
            None => self.missing += 1,
        }
    }

    fn merge(&mut self, other: &Self) {
        let missing = self.missing + other.missing;
        *self = match (self.count, other.count) {
            (_, 0) => *self,
            (0, _) => *other,
            (own, others) => {
                let count = own + others;
                // Weighted, not summed: a sum of numbers near the largest would be infinite.
                let [a, b] = [own, others].map(|part| part as f64 / count as f64);
                Self {
                    count,
                    missing,
                    mean: self.mean * a + other.mean * b,
                    low: self.low.min(other.low),
                    high: self.high.max(other.high),
                }
            }
        };
        self.missing = missing;
    }
}

/// A number per step, in at most so many bins. Steps may be left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    most: u64,
    width: u64,
    bins: Vec<Bin>,
}

impl Series {
    /// An empty one with at most `most` bins, at least 2.
    #[must_use]
    pub fn new(most: u64) -> Self {
        Self { most: most.max(2), width: 1, bins: Vec::new() }
    }

    /// Puts in the number of a step; what is not finite counts as missing.
    pub fn push(&mut self, step: u64, value: Option<f64>) {
        while step / self.width >= self.most {
            self.widen();
        }
        // Below `most`, which is small.
        let at = (step / self.width) as usize;
        if at >= self.bins.len() {
            self.bins.resize(at + 1, Bin::default());
        }
        if let Some(bin) = self.bins.get_mut(at) {
            bin.add(value);
        }
    }

    fn widen(&mut self) {
        self.width *= 2;
        let merged = self.bins.chunks(2).map(|pair| {
            let mut bin = Bin::default();
            pair.iter().for_each(|half| bin.merge(half));
            bin
        });
        self.bins = merged.collect();
    }

    /// The same with bins of at least so many steps.
    #[must_use]
    pub fn with_width(&self, least: u64) -> Self {
        let mut wide = self.clone();
        while wide.width < least && wide.bins.len() > 1 {
            wide.widen();
        }
        wide
    }

    /// Steps of a bin.
    #[must_use]
    pub fn width(&self) -> u64 {
        self.width
    }

    /// The bins, from step 0 on.
    #[must_use]
    pub fn bins(&self) -> &[Bin] {
        &self.bins
    }

    /// The bins with a number, each with its first step.
    pub fn filled(&self) -> impl Iterator<Item = (u64, &Bin)> {
        (0..).zip(&self.bins).filter(|(_, bin)| bin.count > 0).map(|(n, bin)| (n * self.width, bin))
    }

    /// Whether no step has a number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled().next().is_none()
    }

    /// All steps as one bin.
    #[must_use]
    pub fn total(&self) -> Bin {
        let mut total = Bin::default();
        self.bins.iter().for_each(|bin| total.merge(bin));
        total
    }

    /// Means in pieces without a gap, each point in the middle of its bin; no point lies behind `last`.
    #[must_use]
    pub fn pieces(&self, last: u64) -> Vec<Vec<(f64, Bin)>> {
        let mut pieces = vec![Vec::new()];
        for (n, bin) in (0..).zip(&self.bins) {
            match pieces.last_mut() {
                Some(piece) if bin.count > 0 => {
                    let begin = n * self.width;
                    let end = begin.saturating_add(self.width - 1).min(last);
                    piece.push(((begin as f64 + end as f64) / 2.0, *bin));
                }
                _ => pieces.push(Vec::new()),
            }
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }
}

/// Steps per second between bins of a clock that counts seconds; nothing where it does not go on.
#[must_use]
pub fn rates(clock: &Series) -> Vec<(f64, f64)> {
    let mut rates = Vec::new();
    let mut before: Option<(f64, f64)> = None;
    let mut steps = 0;
    for (begin, bin) in clock.filled() {
        let width = clock.width() as f64;
        let end = begin as f64 + width;
        match before {
            // A clock that was set back, or lines that were lost.
            Some((_, seconds)) if bin.high < seconds => {
                (before, steps) = (Some((end, bin.high)), 0);
            }
            Some((from, seconds)) => {
                steps += bin.count;
                if bin.high > seconds {
                    rates.push(((from + end) / 2.0, steps as f64 / (bin.high - seconds)));
                    (before, steps) = (Some((end, bin.high)), 0);
                }
            }
            // What came before the end of the first bin is partly compiling and waiting.
            None => before = Some((end, bin.high)),
        }
    }
    rates
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn every_step_has_a_bin_while_there_is_room() {
        let mut series = Series::new(4);
        for (step, value) in [(0, Some(1.0)), (1, None), (3, Some(f64::NAN))] {
            series.push(step, value);
        }
        assert_eq!(series.width(), 1);
        let counts: Vec<_> = series.bins().iter().map(|b| (b.count, b.missing)).collect();
        assert_eq!(counts, [(1, 0), (0, 1), (0, 0), (0, 1)]);
        assert_eq!(series.pieces(3).len(), 1);
    }

    #[test]
    fn bins_widen_and_keep_every_number() {
        let mut series = Series::new(8);
        let values: Vec<f64> = (0..1000).map(|n| f64::from(n * 7919 % 1000)).collect();
        for (step, &value) in (0..).zip(&values) {
            series.push(step, Some(value));
        }
        assert_eq!((series.width(), series.bins().len()), (128, 8));
        for (n, bin) in series.bins().iter().enumerate() {
            let part = &values[n * 128..((n + 1) * 128).min(1000)];
            assert_eq!(bin.count, part.len() as u64);
            assert!((bin.mean - part.iter().sum::<f64>() / part.len() as f64).abs() < 1e-9);
            assert_eq!(bin.low, part.iter().copied().fold(f64::INFINITY, f64::min));
            assert_eq!(bin.high, part.iter().copied().fold(0.0, f64::max));
        }
        assert_eq!(series.with_width(200).bins().len(), 4);
        assert_eq!(series.with_width(200).total().count, 1000);
        let total = series.total();
        assert!(total.count == 1000 && (total.mean - 499.5).abs() < 1e-9, "{total:?}");
        // The last bin is not full: its middle is that of the steps there are.
        assert_eq!(series.pieces(999)[0].last().map(|p| p.0), Some((896.0 + 999.0) / 2.0));
    }

    #[test]
    fn extreme_numbers_and_steps_are_no_trouble() {
        let mut series = Series::new(2);
        for step in 0..5 {
            series.push(step, Some(f64::MAX));
        }
        assert!(series.total().mean.is_finite());
        series.push(u64::MAX, Some(-f64::MAX));
        assert_eq!(series.bins().len(), 2);
        assert!(series.total().mean.is_finite());
        assert!(series.pieces(u64::MAX)[0].iter().all(|(step, _)| step.is_finite()));
    }

    #[test]
    fn rates_are_steps_over_seconds_and_survive_a_clock_that_stands_or_is_set_back() {
        let clock = |times: &[f64]| {
            let mut series = Series::new(64);
            (0..).zip(times).for_each(|(step, &time)| series.push(step, Some(time)));
            rates(&series)
        };
        assert_eq!(clock(&[1.0]), []);
        assert_eq!(clock(&[0.0, 0.5, 1.5]), [(1.5, 2.0), (2.5, 1.0)]);
        // Steps of one launch are read together.
        assert_eq!(clock(&[1.0, 1.0, 2.0, 2.0]), [(2.0, 2.0)]);
        assert_eq!(clock(&[5.0, 6.0, 1.0, 2.0]), [(1.5, 1.0), (3.5, 1.0)]);
    }
}
