//! Medians of paired measurements, and how sure they are.

/// A median with its 95% interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// Resamples of a bootstrap.
const RESAMPLES: usize = 10_000;

impl Estimate {
    /// The median of the values, with the percentile interval of a bootstrap. The same values give the same interval.
    ///
    /// `None` where there are none, or one is not a number.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|v| v.is_nan()) {
            return None;
        }
        let mut random = SplitMix(values.len() as u64);
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| median(values.iter().filter_map(|_| values.get(random.below(values.len()))).copied().collect()))
            .collect();
        medians.sort_by(f64::total_cmp);
        let at = |share: f64| medians.get((share * (RESAMPLES - 1) as f64).round() as usize).copied();
        Some(Self { median: median(values.to_vec()), low: at(0.025)?, high: at(0.975)? })
    }
}

/// The middle one, or the mean of the middle two; NaN where there are none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), middle.checked_sub(1).and_then(|below| values.get(below))) {
        (Some(upper), Some(lower)) if values.len().is_multiple_of(2) => (lower + upper) / 2.0,
        (Some(middle), _) => *middle,
        _ => f64::NAN,
    }
}

/// Steele, Lea and Flood's generator: all that a bootstrap needs.
struct SplitMix(u64);

impl SplitMix {
    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The high half of the product is uniform up to one part in 2^64.
        ((u128::from(z) * end as u128) >> 64) as usize
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_no_values() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn the_interval_of_a_known_set_is_that_of_its_order_statistics() {
        // By the binomial distribution the median of 1 to 25 lies between the 8th and the 18th value with 95% probability.
        let values: Vec<f64> = (1..=25).map(f64::from).collect();
        let estimate = Estimate::of(&values).unwrap();
        assert_eq!(estimate.median, 13.0);
        assert!((estimate.low - 8.0).abs() <= 1.0 && (estimate.high - 18.0).abs() <= 1.0, "{estimate:?}");
        assert_eq!(Estimate::of(&values), Some(estimate), "the same values give the same interval");
    }

    #[test]
    fn intervals_cover_as_often_as_they_say() {
        let mut random = SplitMix(7);
        let mut uniform = || random.below(1 << 40) as f64 / (1u64 << 40) as f64;
        let covered = (0..200).filter(|_| {
            let values: Vec<f64> = (0..24).map(|_| uniform()).collect();
            Estimate::of(&values).is_some_and(|e| (e.low..=e.high).contains(&0.5))
        });
        let covered = covered.count();
        assert!((180..=199).contains(&covered), "{covered} of 200");
    }

    #[test]
    fn equal_values_have_no_spread_and_bad_ones_no_estimate() {
        assert_eq!(Estimate::of(&[2.0; 9]), Some(Estimate { median: 2.0, low: 2.0, high: 2.0 }));
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[1.0, f64::NAN]), None);
    }
}
