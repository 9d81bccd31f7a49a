//! Positions cut into a part to train on and a part held out.
//!
//! The data are cut into blocks of equal size and every tenth is held out, so that the held-out part is like the rest.
//! What is too short for that gives its last tenth, at least one window. No window lies in both parts, and none
//! across a border: windows that do are lost.

/// One part in so many is held out.
const HELD_OUT: usize = 10;

/// A range of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) start: usize,
    pub(super) len: usize,
    /// Window starts in all segments before this one.
    starts_before: u64,
}

/// Ranges of positions that each hold a window at least.
#[derive(Debug)]
pub(super) struct Segments {
    pub(super) all: Vec<Segment>,
    window: usize,
    starts: u64,
}

/// The two parts.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) training: Segments,
    pub(super) held_out: Segments,
}

impl Parts {
    /// Cuts `len` positions, at least two windows, in blocks of `block`.
    pub(super) fn new(len: usize, window: usize, block: usize) -> Self {
        let blocks = len / block.max(1);
        let (mut training, mut held_out) = (Vec::new(), Vec::new());
        if blocks < HELD_OUT {
            let held = (len / HELD_OUT).max(window).min(len);
            training.push((0, len - held));
            held_out.push((len - held, held));
        } else {
            let mut start = 0;
            for index in (HELD_OUT - 1..blocks).step_by(HELD_OUT) {
                training.push((start, index * block - start));
                held_out.push((index * block, block));
                start = (index + 1) * block;
            }
            training.push((start, len - start));
        }
        Self { training: Segments::new(&training, window), held_out: Segments::new(&held_out, window) }
    }
}

impl Segments {
    fn new(ranges: &[(usize, usize)], window: usize) -> Self {
        let mut starts = 0;
        let mut all = Vec::new();
        for &(start, len) in ranges.iter().filter(|&&(_, len)| len >= window) {
            all.push(Segment { start, len, starts_before: starts });
            starts += (len - window + 1) as u64;
        }
        Self { all, window, starts }
    }

    /// Number of positions.
    pub(super) fn len(&self) -> usize {
        self.all.iter().map(|s| s.len).sum()
    }

    /// Number of positions at which a window may start.
    pub(super) fn starts(&self) -> u64 {
        self.starts
    }

    /// The position of the `number`-th of them.
    pub(super) fn start(&self, number: u64) -> usize {
        let after = self.all.partition_point(|s| s.starts_before <= number);
        self.all.get(after.saturating_sub(1)).map_or(0, |segment| {
            segment.start + usize::try_from(number.saturating_sub(segment.starts_before)).unwrap_or(0)
        })
    }

    /// Number of windows that do not overlap.
    pub(super) fn windows(&self) -> usize {
        self.all.iter().map(|s| s.len / self.window.max(1)).sum()
    }

    /// Where window `index` starts, counted modulo [`Segments::windows`].
    pub(super) fn window(&self, index: usize) -> usize {
        let mut index = index % self.windows().max(1);
        for segment in &self.all {
            let count = segment.len / self.window.max(1);
            if index < count {
                return segment.start + index * self.window;
            }
            index -= count;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_window_lies_in_both_parts(len in 2usize..5000, window in 1usize..40, block in 1usize..700) {
            let len = len.max(2 * window);
            let block = block.max(window);
            let parts = Parts::new(len, window, block);
            let mut role = vec![0u8; len];
            for start in (0..parts.training.starts()).map(|n| parts.training.start(n)) {
                role[start..start + window].fill(1);
            }
            for start in (0..parts.held_out.windows()).map(|n| parts.held_out.window(n)) {
                prop_assert!(role[start..start + window].iter().all(|&r| r != 1));
                role[start..start + window].fill(2);
            }
            prop_assert!(parts.training.starts() > 0 && parts.held_out.windows() > 0);
            prop_assert!(parts.held_out.len() <= (len / 9).max(window));
            if window == 1 {
                // Every position is in one of the parts.
                prop_assert!(!role.contains(&0));
                prop_assert_eq!(parts.training.len() + parts.held_out.len(), len);
            }
        }
    }
}
