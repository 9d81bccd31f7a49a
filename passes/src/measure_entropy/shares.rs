//! `energy` and `magnitude`: shares of a mass.
//!
//! For a gradient g with a = g² or a = |g|, the mass M = Σ a and p = a/M,
//!
//! ```text
//! h = −Σ p ln p = ln M − (Σ a ln a)/M
//! ```
//!
//! There are two ways to this number:
//!
//! * *shares*: M first, then −Σ p ln p. Exact to 1e-6 at any scale, but the second sum waits for the first.
//! * *offset*: M and B = Σ a·(c − ln a)/d in one reading, h = ln M − c + d·B/M. For `energy` c = 41 and d = 2⁷: for
//!   every normal `f32` a, B does not overflow where M does not, nor do its terms underflow, as (c − ln a)/d is below 1
//!   for large a and above 1 for the smallest. For `magnitude` c = 0 and d = 1: where g² is a normal number, |ln a| is
//!   at most 44 and a far from both ends. The rounding of both sums counts |c − ln a| times, and h / ln n keeps a part
//!   that falls with n: up to 1e-5 for gradients at the ends of the range.
//!
//! Style `Shares` takes shares, `Variadic` the offset, with S, M and B in one reduce, which tensors of the same dimensions
//! share; `Separate` the offset above [`SHARES_LIMIT`] elements.
//!
//! The whole gradient follows by the chain rule with the weights w = Mᵢ/ΣM: h = Σ w·(hᵢ − ln w).
//!
//! Terms whose share (by offset: whose a) is below the smallest normal number count as zero.

use hlo::InstructionId;
use hlo::build::{BuildError, Built, ComparisonDirection};

use super::emit::{Emitter, Gradient, Stack, sum};
use super::{Measured, ReductionStyle};

/// Up to this many elements [`ReductionStyle::Separate`] takes shares: so small a tensor is read twice from cache.
pub const SHARES_LIMIT: u64 = 1 << 14;

/// What shares are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mass {
    /// a = g².
    Energy,
    /// a = |g|.
    Magnitude,
}

impl Mass {
    /// The offset c of the one-pass sum: for `energy`, from 40.7 on no term of a normal number underflows.
    fn offset(self) -> f32 {
        match self {
            Self::Energy => 41.0,
            Self::Magnitude => 0.0,
        }
    }

    /// The divisor d of the one-pass sum: for `energy` at least 48 for no term to overflow; a power of two, so that it
    /// costs no accuracy.
    fn divisor(self) -> f32 {
        match self {
            Self::Energy => 128.0,
            Self::Magnitude => 1.0,
        }
    }
}

/// Sums over one tensor, as scalars, or over the tensors of a stack, as vectors.
#[derive(Clone, Copy)]
struct Sums {
    /// S.
    energy: InstructionId,
    /// M; for `energy` it is S.
    mass: InstructionId,
    /// h itself where shares were taken, else B.
    weighted: InstructionId,
    shares: bool,
}

/// Energy and entropy of all gradients.
pub(super) fn emit(e: &mut Emitter<'_>, gradients: &[Gradient], mass: Mass) -> Result<Measured, BuildError> {
    let mut found = vec![None; gradients.len()];
    for stack in e.stacks(gradients)? {
        let sums = stacked(e, &stack, mass)?;
        for (row, &index) in stack.members.iter().enumerate() {
            let mut own = |x| if stack.members.len() == 1 { Ok(x) } else { e.b.element(x, row as i64) };
            let energy = own(sums.energy)?;
            let mass = if sums.mass == sums.energy { energy } else { own(sums.mass)? };
            let sums = Sums { energy, mass, weighted: own(sums.weighted)?, shares: sums.shares };
            if let Some(slot) = found.get_mut(index) {
                *slot = Some(sums);
            }
        }
    }
    let sums: Vec<Sums> = found.into_iter().flatten().collect();
    e.of_all();
    let energy = e.b.pack(&sums.iter().map(|s| s.energy).collect::<Vec<_>>())?;
    let masses = match mass {
        Mass::Energy => energy,
        Mass::Magnitude => e.b.pack(&sums.iter().map(|s| s.mass).collect::<Vec<_>>())?,
    };
    let weighted = e.b.pack(&sums.iter().map(|s| s.weighted).collect::<Vec<_>>())?;
    let shares: Vec<_> = sums.iter().map(|s| s.shares).collect();
    let nats = nats(e, mass, masses, weighted, &shares)?;
    let whole = whole(e, masses, nats)?;
    Ok(Measured { energy, nats: e.b.append(nats, whole)? })
}

fn stacked(e: &mut Emitter<'_>, stack: &Stack, mass: Mass) -> Result<Sums, BuildError> {
    e.of(stack);
    let short = &stack.short;
    let (g, kept) = (stack.value, usize::from(stack.members.len() > 1));
    let square = e.b.multiply(g, g)?;
    let shares = match e.reduction {
        ReductionStyle::Shares => true,
        ReductionStyle::Separate => stack.elements <= SHARES_LIMIT,
        ReductionStyle::Variadic => false,
    };
    match (mass, shares) {
        (Mass::Energy, true) => {
            let [energy] = e.fold([sum(square, "energy")], kept, short)?;
            let terms = share_terms(e, square, energy)?;
            let [weighted] = e.fold([sum(terms, "entropy")], kept, short)?;
            Ok(Sums { energy, mass: energy, weighted, shares })
        }
        (Mass::Energy, false) => {
            let terms = offset_terms(e, square, mass)?;
            let [energy, weighted] = e.fold([sum(square, "energy"), sum(terms, "entropy")], kept, short)?;
            Ok(Sums { energy, mass: energy, weighted, shares })
        }
        (Mass::Magnitude, true) => {
            let a = e.b.abs(g)?;
            let [energy, mass] = e.fold([sum(square, "energy"), sum(a, "magnitude")], kept, short)?;
            let terms = share_terms(e, a, mass)?;
            let [weighted] = e.fold([sum(terms, "entropy")], kept, short)?;
            Ok(Sums { energy, mass, weighted, shares })
        }
        (Mass::Magnitude, false) => {
            let a = e.b.abs(g)?;
            let terms = offset_terms(e, a, mass)?;
            let folds = [sum(square, "energy"), sum(a, "magnitude"), sum(terms, "entropy")];
            let [energy, mass, weighted] = e.fold(folds, kept, short)?;
            Ok(Sums { energy, mass, weighted, shares })
        }
    }
}

/// −p ln p, elementwise, with p = a/M.
fn share_terms(e: &mut Emitter<'_>, a: InstructionId, mass: InstructionId) -> Built {
    let total = e.spread(mass, a)?;
    let p = e.b.divide(a, total)?;
    e.surprise(p)
}

/// a·(c − ln a)/d, elementwise.
fn offset_terms(e: &mut Emitter<'_>, a: InstructionId, mass: Mass) -> Built {
    let log = e.b.log(a)?;
    let offset = e.like(mass.offset(), a)?;
    let weight = e.b.subtract(offset, log)?;
    let divisor = e.like(1.0 / mass.divisor(), a)?;
    let weight = e.b.multiply(weight, divisor)?;
    let term = e.b.multiply(a, weight)?;
    e.where_normal(a, term)
}

/// h of all tensors from M and the weighted sums.
fn nats(e: &mut Emitter<'_>, mass: Mass, masses: InstructionId, sums: InstructionId, shares: &[bool]) -> Built {
    if shares.iter().all(|&t| t) {
        return Ok(sums);
    }
    let log = e.b.log(masses)?;
    let offset = e.like(mass.offset(), masses)?;
    let base = e.b.subtract(log, offset)?;
    let mean = e.b.divide(sums, masses)?;
    let divisor = e.like(mass.divisor(), masses)?;
    let mean = e.b.multiply(mean, divisor)?;
    let by_offset = e.b.add(base, mean)?;
    let by_offset = e.where_normal(masses, by_offset)?;
    if shares.iter().all(|&t| !t) {
        return Ok(by_offset);
    }
    let marks: Vec<f32> = shares.iter().map(|&t| f32::from(u8::from(t))).collect();
    let marks = e.b.constant_f32_vector(&marks)?;
    let zero = e.like(0.0, masses)?;
    let direct = e.b.compare(marks, zero, ComparisonDirection::Ne)?;
    e.b.select(direct, sums, by_offset)
}

/// h of the whole gradient by the chain rule.
fn whole(e: &mut Emitter<'_>, masses: InstructionId, nats: InstructionId) -> Built {
    let total = e.total(masses)?;
    // Divided by at least the smallest normal number, w is 0 and not NaN for a zero gradient.
    let divisor = e.at_least_smallest(total)?;
    let divisor = e.spread(divisor, masses)?;
    let w = e.b.divide(masses, divisor)?;
    let floor = e.at_least_smallest(w)?;
    let log = e.b.log(floor)?;
    let inner = e.b.subtract(nats, log)?;
    let inner = e.b.multiply(w, inner)?;
    e.total(inner)
}
