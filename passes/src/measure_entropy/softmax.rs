//! `softmax`: shares by a softmax of the gradient's magnitudes.
//!
//! For a gradient g with a = |g| and a temperature T, p = eᵃᐟᵀ / Σ eᵃᐟᵀ. With m = max a and x = (a − m)/T,
//!
//! ```text
//! Z = Σ eˣ     B = Σ x·eˣ     h = −Σ p ln p = ln Z − B/Z
//! ```
//!
//! No term overflows, both parts of h are at least 0, and h is exact to 1e-6. x is taken to be at least −128, where
//! eˣ is 0 in `f32`, so that no product is 0·∞.
//!
//! T is the policy's temperature as it stands (`literal`), or times the root mean square of the whole gradient,
//! √(ΣS/N) (`rms`), which is known before any of these sums is taken and is one for all tensors, so that
//! the whole gradient follows from the statistics of its tensors: with d = (mᵢ − max m)/T and f = eᵈ,
//!
//! ```text
//! Z = Σ f·Zᵢ     B = Σ f·(Bᵢ + d·Zᵢ)
//! ```
//!
//! Elements that are zero have a share like all others, so tensors whose gradient is zero count in the whole.
//!
//! A literal T of 1 is far above any gradient in practice: all shares are then equal, and h / ln n is 1.00000 on
//! healthy and on corrupted batches alike. `rms` makes of it a signal that does not depend on the gradient's scale.
//!
//! In every style a first reading finds S and m and a second one Z and B: without m, eˣ would overflow where T is small
//! beside the gradient. `Variadic` folds S and m together, and Z and B.

use hlo::InstructionId;
use hlo::build::{BuildError, Built};

use super::Measured;
use super::emit::{Emitter, Gradient, largest, sum};
use crate::policy::TemperatureUnit;

/// The lowest exponent: eˣ is 0 in `f32` from −104 on.
const LOWEST: f32 = -128.0;

/// Energy and entropy of all gradients; `temperature` is a scalar in `unit`.
pub(super) fn emit(
    e: &mut Emitter<'_>,
    gradients: &[Gradient],
    temperature: InstructionId,
    unit: TemperatureUnit,
) -> Result<Measured, BuildError> {
    let mut magnitudes = Vec::with_capacity(gradients.len());
    let mut energies = Vec::with_capacity(gradients.len());
    let mut tops = Vec::with_capacity(gradients.len());
    for gradient in gradients {
        e.of_one(gradient);
        let g = e.wide(gradient)?;
        let square = e.b.multiply(g, g)?;
        let a = e.b.abs(g)?;
        let [energy, top] = e.fold([sum(square, "energy"), largest(a, "largest")], 0, &gradient.short)?;
        magnitudes.push(a);
        energies.push(energy);
        tops.push(top);
    }
    e.of_all();
    let energy = e.b.pack(&energies)?;
    let temperature = match unit {
        TemperatureUnit::Literal => temperature,
        TemperatureUnit::Rms => {
            let elements = gradients.iter().fold(0_u64, |sum, g| sum.saturating_add(g.elements));
            let rms = root_mean_square(e, energy, elements)?;
            e.b.multiply(temperature, rms)?
        }
    };
    // 0 only where the whole gradient is.
    let temperature = e.at_least_smallest(temperature)?;

    let mut partitions = Vec::with_capacity(gradients.len());
    let mut weighted = Vec::with_capacity(gradients.len());
    for ((gradient, &a), &top) in gradients.iter().zip(&magnitudes).zip(&tops) {
        e.of_one(gradient);
        let x = exponents(e, a, top, temperature)?;
        let weights = e.b.exp(x)?;
        let terms = e.b.multiply(weights, x)?;
        let [z, b] = e.fold([sum(weights, "partition"), sum(terms, "weighted")], 0, &gradient.short)?;
        partitions.push(z);
        weighted.push(b);
    }
    e.of_all();
    let partitions = e.b.pack(&partitions)?;
    let weighted = e.b.pack(&weighted)?;
    let tops = e.b.pack(&tops)?;

    let top = e.top(tops)?;
    let d = exponents(e, tops, top, temperature)?;
    let f = e.b.exp(d)?;
    let moved = e.b.multiply(d, partitions)?;
    let moved = e.b.add(weighted, moved)?;
    let moved = e.b.multiply(f, moved)?;
    let scaled = e.b.multiply(f, partitions)?;
    let whole_partition = e.total(scaled)?;
    let whole_weighted = e.total(moved)?;

    let partitions = e.b.append(partitions, whole_partition)?;
    let weighted = e.b.append(weighted, whole_weighted)?;
    let log = e.b.log(partitions)?;
    let mean = e.b.divide(weighted, partitions)?;
    Ok(Measured { energy, nats: e.b.subtract(log, mean)? })
}

/// (a − m)/T, elementwise, at least [`LOWEST`].
fn exponents(e: &mut Emitter<'_>, a: InstructionId, top: InstructionId, temperature: InstructionId) -> Built {
    let top = e.spread(top, a)?;
    let x = e.b.subtract(a, top)?;
    let temperature = e.spread(temperature, a)?;
    let x = e.b.divide(x, temperature)?;
    let lowest = e.like(LOWEST, a)?;
    e.b.maximum(x, lowest)
}

/// √(ΣS/N) as √(max S)·√(Σ(S/max S)/N), which neither overflows nor underflows on the way.
fn root_mean_square(e: &mut Emitter<'_>, energy: InstructionId, elements: u64) -> Built {
    let top = e.top(energy)?;
    let divisor = e.at_least_smallest(top)?;
    let divisor = e.spread(divisor, energy)?;
    let relative = e.b.divide(energy, divisor)?;
    let total = e.total(relative)?;
    #[allow(clippy::cast_precision_loss, reason = "f32 is the device's precision")]
    let elements = e.b.constant_f32(elements as f32)?;
    let mean = e.b.divide(total, elements)?;
    let root = e.b.sqrt(mean)?;
    let scale = e.b.sqrt(top)?;
    e.b.named("entropic.rms").multiply(scale, root)
}
