//! What it costs, in floating-point operations, from shapes.

use std::collections::HashMap;

use hlo::partitioning::Partitioning;
use hlo::{ComputationId, Module, Opcode, flops};

use crate::discover::trip_count;
use crate::layout::ControllerLayout;

/// Floating-point operations of one step, and those that making singular values equal adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Of products and convolutions of the step without control; those of a loop as often as it runs.
    pub step: u64,
    /// Of products of Newton-Schulz iterations, on all devices of a mesh together.
    pub spectral: u64,
    /// Whether the step has loops that run nobody knows how often; they count once.
    pub unknown_loops: bool,
}

impl Cost {
    /// Of a controller with this layout, in the step of `module` as it was before.
    #[must_use]
    pub fn of(module: &Module, layout: &ControllerLayout) -> Self {
        let steps = u64::from(layout.steps.get());
        let (step, unknown_loops) = step_flops(module);
        let iterations = layout.spectral.map_or(0, |spectral| spectral.iterations);
        let matrices = layout.matrices.iter().filter_map(|tensor| tensor.matrices);
        let each = matrices
            .map(|m| newton_schulz_flops(m.rows, m.columns, iterations).saturating_mul(m.count).saturating_mul(steps));
        // A mesh divides the products of the step among its devices; each of them does all of the iterations.
        let devices = Partitioning::of(module).ok().flatten().map_or(1, |found| found.partitions as u64);
        let spectral = each.fold(0, u64::saturating_add).saturating_mul(devices.max(1));
        Self { step, spectral, unknown_loops }
    }

    /// The added operations as a share of the step's.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a share")]
    pub fn share(&self) -> f64 {
        self.spectral as f64 / (self.step.max(1)) as f64
    }
}

/// Floating-point operations of the products of Newton-Schulz on one m × n matrix, m the shorter side: with two operations
/// for each term, an iteration has 2m²n for the Gram matrix, 2m³ for its square and 2m²n for its product with the matrix.
#[must_use]
pub fn newton_schulz_flops(rows: u64, columns: u64, iterations: u32) -> u64 {
    let (m, n) = (rows.min(columns), rows.max(columns));
    let square = m.saturating_mul(m).saturating_mul(2);
    let iteration = square.saturating_mul(n.saturating_mul(2).saturating_add(m));
    iteration.saturating_mul(u64::from(iterations))
}

/// Floating-point operations of all products and convolutions that the entry comes to; and whether there are loops that run
/// nobody knows how often.
#[must_use]
pub fn step_flops(module: &Module) -> (u64, bool) {
    let mut counter = Counter { module, known: HashMap::new(), unknown: false };
    let flops = counter.computation(module.entry(), 0);
    (flops, counter.unknown)
}

struct Counter<'m> {
    module: &'m Module,
    known: HashMap<ComputationId, u64>,
    unknown: bool,
}

/// Calls nested deeper than this are not followed.
const MAX_DEPTH: usize = 64;

impl Counter<'_> {
    fn computation(&mut self, id: ComputationId, depth: usize) -> u64 {
        if let Some(&known) = self.known.get(&id) {
            return known;
        }
        let Some(computation) = self.module.computation(id).filter(|_| depth < MAX_DEPTH) else { return 0 };
        let mut sum = 0_u64;
        for (site, instruction) in computation.instructions() {
            let called = |counter: &mut Self| -> Vec<u64> {
                instruction.called.iter().map(|&called| counter.computation(called, depth + 1)).collect()
            };
            let more = match instruction.opcode {
                Opcode::While => {
                    let trips = trip_count(self.module, id, site);
                    let once = called(self).into_iter().fold(0, u64::saturating_add);
                    self.unknown |= trips.is_none() && once > 0;
                    once.saturating_mul(trips.unwrap_or(1))
                }
                // One of the branches runs.
                Opcode::Conditional => called(self).into_iter().max().unwrap_or(0),
                Opcode::Call | Opcode::Fusion => called(self).into_iter().fold(0, u64::saturating_add),
                _ => flops::product(computation, instruction).unwrap_or(0),
            };
            sum = sum.saturating_add(more);
        }
        self.known.insert(id, sum);
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newton_schulz_counts_three_products_an_iteration() {
        // (2·16·16·32 + 2·16·16·16 + 2·16·16·32) · 5
        assert_eq!(newton_schulz_flops(16, 32, 5), 204_800);
        assert_eq!(newton_schulz_flops(32, 16, 5), 204_800);
        assert_eq!(newton_schulz_flops(u64::MAX, 2, 5), u64::MAX);
    }
}
