//! Matrices of equal singular values, as HLO.
//!
//! Matrices come as stacks f32\[c, m, n\], and what there is one of for each matrix as f32\[c\].

use hlo::build::{BuildError, Builder, Built, ComparisonDirection};
use hlo::proto::{DotDimensionNumbers, HloInstructionProto, PrecisionConfig, ReplicaGroup};
use hlo::{ComputationId, InstructionId, Module, Opcode, PrimitiveType, Shape};

use crate::policy::SpectralDtype;

/// Coefficients of the quintic iteration p(s) = a·s + b·s³ + c·s⁵ on singular values: Keller Jordan, "Muon: an optimizer for
/// hidden layers in neural networks" (2024, <https://kellerjordan.github.io/posts/muon/>).
///
/// They are chosen for a steep slope at 0 and not for convergence: what started between 0.01 and 1 is between 0.68 and 1.13
/// after five iterations, and stays about there.
pub const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// XLA's `HIGHEST`: products of f32 are those of f32, not of a shorter type (TF32, or one pass of bf16).
const HIGHEST: i32 = 2;

/// Emits at the end of the entry.
pub(super) struct Emitter<'m> {
    pub(super) b: Builder<'m>,
    pub(super) iterations: u32,
    pub(super) dtype: SpectralDtype,
    add: ComputationId,
    maximum: ComputationId,
    zero: InstructionId,
    one: InstructionId,
    smallest: InstructionId,
}

/// A stack with each matrix divided by its norm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    /// The matrices, with norm 1; zero where they are not sound. f32\[c, m, n\].
    pub(super) matrices: InstructionId,
    /// The largest magnitude among the elements of each, f32\[c\]; 1 where it is not sound.
    peak: InstructionId,
    /// The norm of each over that, f32\[c\].
    norm: InstructionId,
    /// Whether a matrix is neither zero nor has elements that are not finite, pred\[c\].
    sound: InstructionId,
}

/// What became of a stack with norms 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Equalised {
    /// Norm 1, singular values nearly equal, f32\[c, m, n\].
    pub(super) matrices: InstructionId,
    /// Spectral entropy of what they were, f32\[c\]; meaningless where that was zero.
    pub(super) entropy: InstructionId,
}

/// Numbers of the policy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    /// f32\[\].
    pub(super) alpha: InstructionId,
    /// f32\[\].
    pub(super) target: InstructionId,
    /// Of each matrix, f32\[c\].
    pub(super) k: InstructionId,
}

/// What became of a stack of updates.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixed {
    /// The updates, f32\[c, m, n\].
    matrices: InstructionId,
    /// The share of each that was made equal, f32\[c\].
    alpha: InstructionId,
    /// Spectral entropy of what each was, f32\[c\]; 0 where it is not sound.
    entropy: InstructionId,
    /// 1 where one is sound, and 0 elsewhere, f32\[c\].
    sound: InstructionId,
}

/// What became of the update of one tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct MixedTensor {
    /// The stack, f32\[c, m, n\].
    pub(super) matrices: InstructionId,
    /// Whether any of it is different, pred\[\].
    pub(super) differs: InstructionId,
    /// Sum of the spectral entropies of what is sound, f32\[\].
    pub(super) entropy: InstructionId,
    /// How many matrices are sound, f32\[\].
    pub(super) sound: InstructionId,
}

impl<'m> Emitter<'m> {
    pub(super) fn new(module: &'m mut Module, iterations: u32, dtype: SpectralDtype) -> Result<Self, BuildError> {
        let f32 = PrimitiveType::F32;
        let add = Builder::reducer(module, "entropic.spectral_sum", Opcode::Add, f32)?;
        let maximum = Builder::reducer(module, "entropic.spectral_max", Opcode::Maximum, f32)?;
        let mut b = Builder::at_entry(module);
        b.set_scope("entropic.spectral", "entropic/spectral");
        let zero = b.constant_f32(0.0)?;
        let one = b.constant_f32(1.0)?;
        let smallest = b.constant_f32(f32::MIN_POSITIVE)?;
        Ok(Self { b, iterations, dtype, add, maximum, zero, one, smallest })
    }

    /// Divides each matrix of a stack by its norm.
    ///
    /// It is divided by its largest element first: squares of elements of 1e-30 or 1e30 would underflow or overflow.
    pub(super) fn unit(&mut self, x: InstructionId) -> Result<Unit, BuildError> {
        let magnitude = self.b.abs(x)?;
        let peak = self.fold(magnitude, self.maximum)?;
        let smallest = self.b.broadcast_scalar_like(self.smallest, peak)?;
        let finite = self.b.is_finite(peak)?;
        let normal = self.b.compare(peak, smallest, ComparisonDirection::Ge)?;
        let sound = self.b.and(finite, normal)?;
        let one = self.b.broadcast_scalar_like(self.one, peak)?;
        let peak = self.b.select(sound, peak, one)?;
        let divisor = self.over(peak, x)?;
        let small = self.b.divide(x, divisor)?;
        let square = self.b.multiply(small, small)?;
        let energy = self.fold(square, self.add)?;
        // A largest element that is finite, beside one that is no number, where the target's maximum leaves that out.
        let finite = self.b.is_finite(energy)?;
        let sound = self.b.and(sound, finite)?;
        let energy = self.b.select(sound, energy, one)?;
        let norm = self.b.sqrt(energy)?;
        let divisor = self.over(norm, x)?;
        let matrices = self.b.divide(small, divisor)?;
        let zeros = self.b.broadcast_scalar_like(self.zero, matrices)?;
        let spread = self.over(sound, x)?;
        let matrices = self.b.select(spread, matrices, zeros)?;
        Ok(Unit { matrices, peak, norm, sound })
    }

    /// Newton-Schulz on a stack with norms 1, and the norms made 1 again:
    ///
    /// ```text
    /// G = X·Xᵀ,   X ← a·X + (b·G + c·G·G)·X       (Xᵀ·X, on the right, where columns are the shorter side)
    /// ```
    ///
    /// emitted as (a·1 + b·G + c·G·G)·X, for which no array as large as X is made but the next X.
    /// With σ the singular values of a matrix of norm 1, the first G has the trace Σσ² = 1 and the squared norm Σσ⁴, so that
    /// the Rényi entropy of order 2 of the shares σ² is −ln ‖G‖², and at most ln of the shorter side.
    pub(super) fn equalise(&mut self, unit: InstructionId) -> Result<Equalised, BuildError> {
        let dims = self.b.shape(unit)?.dims().to_vec();
        let &[_, rows, columns] = dims.as_slice() else {
            return Err(BuildError::NotInferable { opcode: Opcode::Dot });
        };
        let wide = rows <= columns;
        let mut x = unit;
        let mut entropy = None;
        let [a, b, c] = COEFFICIENTS;
        let linear = self.times_identity(a, dims.first().copied().unwrap_or(0), rows.min(columns))?;
        for _ in 0..self.iterations {
            let gram = if wide { self.dot(x, x, 2, 2)? } else { self.dot(x, x, 1, 1)? };
            if entropy.is_none() {
                entropy = Some(self.entropy(gram, rows.min(columns))?);
            }
            let square = self.dot(gram, gram, 2, 1)?;
            let cubic = self.times(b, gram)?;
            let quintic = self.times(c, square)?;
            let polynomial = self.b.add(cubic, quintic)?;
            let polynomial = self.b.add(linear, polynomial)?;
            x = if wide { self.dot(polynomial, x, 2, 1)? } else { self.dot(x, polynomial, 2, 1)? };
        }
        let square = self.b.multiply(x, x)?;
        let energy = self.fold(square, self.add)?;
        let norm = self.b.sqrt(energy)?;
        // Of a zero matrix, which nobody reads.
        let smallest = self.b.broadcast_scalar_like(self.smallest, norm)?;
        let norm = self.b.maximum(norm, smallest)?;
        let divisor = self.over(norm, x)?;
        let matrices = self.b.divide(x, divisor)?;
        let entropy = entropy.unwrap_or(norm);
        Ok(Equalised { matrices, entropy })
    }

    /// −ln ‖G‖² / ln r, in \[0, 1\], f32\[c\].
    fn entropy(&mut self, gram: InstructionId, shorter: i64) -> Built {
        let square = self.b.multiply(gram, gram)?;
        let energy = self.fold(square, self.add)?;
        let log = self.b.log(energy)?;
        #[allow(clippy::cast_precision_loss, reason = "a side of a matrix")]
        let value = self.times(-1.0 / (shorter.max(2) as f64).ln(), log)?;
        self.within_one(value)
    }

    /// A vector, within 0 and 1.
    fn within_one(&mut self, x: InstructionId) -> Built {
        let zero = self.b.broadcast_scalar_like(self.zero, x)?;
        let one = self.b.broadcast_scalar_like(self.one, x)?;
        let x = self.b.maximum(x, zero)?;
        self.b.minimum(x, one)
    }

    /// (1 − α)·D + α·k·‖D‖·O, with the α of each matrix; D itself where it is not sound.
    pub(super) fn mix(
        &mut self,
        d: InstructionId,
        unit: &Unit,
        made: Equalised,
        numbers: Numbers,
    ) -> Result<Mixed, BuildError> {
        let alpha = self.share(made.entropy, numbers)?;
        let gain = self.b.multiply(numbers.k, unit.norm)?;
        let gain = self.b.multiply(gain, unit.peak)?;
        let finite = self.b.is_finite(gain)?;
        let sound = self.b.and(unit.sound, finite)?;
        let zeros = self.b.broadcast_scalar_like(self.zero, alpha)?;
        let alpha = self.b.select(sound, alpha, zeros)?;
        let gain = self.b.multiply(alpha, gain)?;
        let ones = self.b.broadcast_scalar_like(self.one, alpha)?;
        let rest = self.b.subtract(ones, alpha)?;
        let rest = self.over(rest, d)?;
        let kept = self.b.multiply(rest, d)?;
        let gain = self.over(gain, d)?;
        let equal = self.b.multiply(gain, made.matrices)?;
        let mixed = self.b.add(kept, equal)?;
        let moves = self.b.compare(alpha, zeros, ComparisonDirection::Gt)?;
        let spread = self.over(moves, d)?;
        let matrices = self.b.select(spread, mixed, d)?;
        let entropy = self.b.select(unit.sound, made.entropy, zeros)?;
        let sound = self.b.convert(unit.sound, PrimitiveType::F32)?;
        Ok(Mixed { matrices, alpha, entropy, sound })
    }

    /// Matrices `first..last` of a stack, as those of one tensor.
    pub(super) fn tensor(&mut self, of: &Mixed, first: i64, last: i64) -> Result<MixedTensor, BuildError> {
        let matrices = self.b.slice_first(of.matrices, first, last)?;
        let most = self.fold_part(of.alpha, first, last, self.maximum)?;
        let differs = self.b.compare(most, self.zero, ComparisonDirection::Gt)?;
        let entropy = self.fold_part(of.entropy, first, last, self.add)?;
        let sound = self.fold_part(of.sound, first, last, self.add)?;
        Ok(MixedTensor { matrices, differs, entropy, sound })
    }

    /// A fold of elements `first..last` of a vector. Of a single one it is that one, for which nothing is launched.
    fn fold_part(&mut self, x: InstructionId, first: i64, last: i64, reducer: ComputationId) -> Built {
        if last - first == 1 {
            return self.b.element(x, first);
        }
        let part = self.b.slice_first(x, first, last)?;
        self.b.reduce_all(part, self.zero, reducer)
    }

    /// The α of each matrix: that of the policy, and under a target t below 1 times (t − E)/(1 − E) within 0 and 1, as if
    /// the entropy E rose to 1 evenly with the mix.
    fn share(&mut self, entropy: InstructionId, numbers: Numbers) -> Built {
        let like = |e: &mut Self, scalar| e.b.broadcast_scalar_like(scalar, entropy);
        let (alpha, target, one) = (like(self, numbers.alpha)?, like(self, numbers.target)?, like(self, self.one)?);
        let smallest = like(self, self.smallest)?;
        let short = self.b.subtract(target, entropy)?;
        let way = self.b.subtract(one, entropy)?;
        let way = self.b.maximum(way, smallest)?;
        let part = self.b.divide(short, way)?;
        let part = self.within_one(part)?;
        let whole = self.b.compare(target, one, ComparisonDirection::Ge)?;
        let part = self.b.select(whole, one, part)?;
        self.b.multiply(alpha, part)
    }

    /// Mean entropies of all tensors as telemetry has them: f32\[n + 1\] with −1 where there is none, the last that of all
    /// matrices by their elements. Each tensor comes with the elements of one of its matrices.
    pub(super) fn tell(&mut self, tensors: &[Option<(MixedTensor, f32)>], none: f32) -> Built {
        let none = self.b.constant_f32(none)?;
        let (mut weighted, mut weight) = (self.zero, self.zero);
        let mut told = Vec::with_capacity(tensors.len() + 1);
        for tensor in tensors {
            let Some((mixed, elements)) = tensor else {
                told.push(none);
                continue;
            };
            told.push(self.mean(mixed.entropy, mixed.sound, none)?);
            let elements = self.b.constant_f32(*elements)?;
            let entropy = self.b.multiply(elements, mixed.entropy)?;
            let sound = self.b.multiply(elements, mixed.sound)?;
            weighted = self.b.add(weighted, entropy)?;
            weight = self.b.add(weight, sound)?;
        }
        let all = self.mean(weighted, weight, none)?;
        told.push(all);
        self.b.pack(&told)
    }

    /// A sum over its weight; `none` without any.
    fn mean(&mut self, sum: InstructionId, weight: InstructionId, none: InstructionId) -> Built {
        let any = self.b.compare(weight, self.zero, ComparisonDirection::Gt)?;
        let divisor = self.b.maximum(weight, self.one)?;
        let mean = self.b.divide(sum, divisor)?;
        self.b.select(any, mean, none)
    }

    /// A fold of each matrix of a stack, f32\[c\].
    fn fold(&mut self, x: InstructionId, reducer: ComputationId) -> Built {
        let attributes = HloInstructionProto { dimensions: vec![1, 2], ..Default::default() };
        self.b.emit_with(Opcode::Reduce, &[x, self.zero], Shape::default(), attributes, vec![reducer])
    }

    /// One value per matrix, over the dimensions of the stack.
    fn over(&mut self, x: InstructionId, like: InstructionId) -> Built {
        let stated = Shape::array(self.b.shape(x)?.element_type(), self.b.shape(like)?.dims());
        let attributes = HloInstructionProto { dimensions: vec![0], ..Default::default() };
        self.b.emit_with(Opcode::Broadcast, &[x], stated, attributes, Vec::new())
    }

    fn times(&mut self, factor: f64, x: InstructionId) -> Built {
        let factor = self.b.constant(PrimitiveType::F32, factor)?;
        let factor = self.b.broadcast_scalar_like(factor, x)?;
        self.b.multiply(factor, x)
    }

    /// A factor times the identity, for each matrix of a stack of squares, f32\[count, side, side\].
    fn times_identity(&mut self, factor: f64, count: i64, side: i64) -> Built {
        let mut index = |dimension| {
            let stated = Shape::array(PrimitiveType::S32, &[count, side, side]);
            let attributes = HloInstructionProto { dimensions: vec![dimension], ..Default::default() };
            self.b.emit_with(Opcode::Iota, &[], stated, attributes, Vec::new())
        };
        let (row, column) = (index(1)?, index(2)?);
        let diagonal = self.b.compare(row, column, ComparisonDirection::Eq)?;
        let stated = Shape::array(PrimitiveType::F32, &[count, side, side]);
        let factor = self.b.constant(PrimitiveType::F32, factor)?;
        let [on, off] = [factor, self.zero].map(|x| {
            self.b.emit_with(Opcode::Broadcast, &[x], stated.clone(), HloInstructionProto::default(), Vec::new())
        });
        self.b.select(diagonal, on?, off?)
    }

    /// The products of two stacks matrix by matrix, summed over these dimensions, f32.
    fn dot(&mut self, x: InstructionId, y: InstructionId, over_x: i64, over_y: i64) -> Built {
        let kept = |shape: &Shape, over: i64| shape.dims().get(if over == 1 { 2 } else { 1 }).copied().unwrap_or(0);
        let (first, second) = (self.b.shape(x)?, self.b.shape(y)?);
        let count = first.dims().first().copied().unwrap_or(0);
        let dims = [count, kept(&first, over_x), kept(&second, over_y)];
        // Compilers take a batch of one apart as well, and forget what the product is for when they do.
        let alone = usize::from(count == 1);
        let stated = Shape::array(PrimitiveType::F32, dims.get(alone..).unwrap_or_default());
        let batch = if count == 1 { Vec::new() } else { vec![0] };
        let dimensions = DotDimensionNumbers {
            lhs_contracting_dimensions: vec![over_x - alone as i64],
            rhs_contracting_dimensions: vec![over_y - alone as i64],
            lhs_batch_dimensions: batch.clone(),
            rhs_batch_dimensions: batch,
            ..Default::default()
        };
        let element_type = match self.dtype {
            SpectralDtype::F32 => PrimitiveType::F32,
            SpectralDtype::Bf16 => PrimitiveType::BF16,
        };
        let mut attributes = HloInstructionProto { dot_dimension_numbers: dimensions.into(), ..Default::default() };
        if self.dtype == SpectralDtype::F32 {
            let precision = PrecisionConfig { operand_precision: vec![HIGHEST; 2], ..Default::default() };
            attributes.precision_config = precision.into();
        }
        let x = self.b.convert(x, element_type)?;
        let y = self.b.convert(y, element_type)?;
        if count != 1 {
            return self.b.emit_with(Opcode::Dot, &[x, y], stated, attributes, Vec::new());
        }
        let x = self.b.reshape(x, first.dims().get(1..).unwrap_or_default())?;
        let y = self.b.reshape(y, second.dims().get(1..).unwrap_or_default())?;
        let product = self.b.emit_with(Opcode::Dot, &[x, y], stated, attributes, Vec::new())?;
        self.b.reshape(product, &dims)
    }

    /// [`equalise`](Self::equalise), each of so many replicas doing its share of the matrices and sending it to all others.
    ///
    /// What a replica is sent are the bits that another one made, so that all of them hold the same.
    pub(super) fn equalise_shared(&mut self, unit: InstructionId, replicas: i64) -> Result<Equalised, BuildError> {
        let dims = self.b.shape(unit)?.dims().to_vec();
        let &[count, rows, columns] = dims.as_slice() else {
            return Err(BuildError::NotInferable { opcode: Opcode::Dot });
        };
        let replicas = replicas.max(1);
        let own = (count + replicas - 1) / replicas;
        let padded = if own * replicas == count {
            unit
        } else {
            let stated = Shape::array(PrimitiveType::F32, &[own * replicas - count, rows, columns]);
            let none = HloInstructionProto::default();
            let zeros = self.b.emit_with(Opcode::Broadcast, &[self.zero], stated, none, Vec::new())?;
            self.b.concatenate(&[unit, zeros], 0)?
        };
        let replica = self.b.replica_id()?;
        let each = self.b.constant(PrimitiveType::U32, own as f64)?;
        let start = self.b.multiply(replica, each)?;
        let first = self.b.constant(PrimitiveType::U32, 0.0)?;
        let share = self.b.dynamic_slice(padded, &[start, first, first], &[own, rows, columns])?;
        let made = self.equalise(share)?;
        let all = Equalised {
            matrices: self.gather(made.matrices, replicas)?,
            entropy: self.gather(made.entropy, replicas)?,
        };
        Ok(Equalised {
            matrices: self.b.slice_first(all.matrices, 0, count)?,
            entropy: self.b.slice_first(all.entropy, 0, count)?,
        })
    }

    /// What all replicas have, one after the other along the first dimension.
    fn gather(&mut self, x: InstructionId, replicas: i64) -> Built {
        let shape = self.b.shape(x)?;
        let mut dims = shape.dims().to_vec();
        if let Some(first) = dims.first_mut() {
            *first *= replicas;
        }
        let group = ReplicaGroup { replica_ids: (0..replicas).collect(), ..Default::default() };
        let attributes = HloInstructionProto { dimensions: vec![0], replica_groups: vec![group], ..Default::default() };
        self.b.emit_with(Opcode::AllGather, &[x], Shape::array(shape.element_type(), &dims), attributes, Vec::new())
    }

    /// Several stacks of matrices of one size as one.
    pub(super) fn together(&mut self, stacks: &[InstructionId]) -> Built {
        match stacks {
            [single] => Ok(*single),
            several => self.b.concatenate(several, 0),
        }
    }
}
