//! `measure-entropy`: sufficient statistics of every controlled gradient.
//!
//! For a gradient g of n elements with a = g², S = Σ a and p = a/S, the *energy
//! entropy* in nats is
//!
//! ```text
//! h = −Σ p ln p = ln S − (Σ a ln a)/S
//! ```
//!
//! and S is the squared norm. What is measured is the gradient before clipping:
//! h does not change under a common factor, but a clipped norm is constant and
//! would tell nothing. Where a loss scale is divided out before that, the value
//! after the division is taken, so that a change of the loss scale is no change
//! of the norm. Accumulation is in `f32` whatever the gradient's type.
//!
//! There are two ways to this number:
//!
//! * *shares*: S first, then −Σ p ln p. Exact to 1e-6 at any scale, but the second sum waits for the first.
//! * *offset*: S and B = Σ a·(c − ln a)/2⁷ in one reading, h = ln S − c + 2⁷·B/S with c = 41. For every
//!   normal `f32` a, B does not overflow where S does not, nor do its terms underflow: (c − ln a)/2⁷ is
//!   below 1 for large a and above 1 for the smallest. The rounding of both sums counts |c − ln a| times, and
//!   h / ln n keeps a part that falls with n: up to 1e-5 for gradients at the ends of the range.
//!
//! Which one is emitted is the [`ReductionStyle`], a property of the target.
//!
//! Terms with a below the smallest normal number count as zero. Infinite and NaN
//! gradients make S infinite or NaN; h is then meaningless, and `control` looks at S first.

use hlo::build::{BuildError, Builder, Built, ComparisonDirection};
use hlo::proto::op_sharding::Type;
use hlo::proto::{HloInstructionProto, OpSharding};
use hlo::{ComputationId, InstructionId, Module, Opcode, PrimitiveType, Shape};

use crate::layout::ControlledTensor;
use crate::names;
use crate::pass::{Changed, Context, Pass, PassError};
use crate::step::{GradientStatus, TrainStep};
use crate::values::materialise;

/// Up to this many elements [`ReductionStyle::Separate`] takes shares: so small a tensor is read twice from cache.
pub const SHARES_LIMIT: u64 = 1 << 14;

/// The offset c of the one-pass sum: from 40.7 on no term of a normal number underflows.
const OFFSET: f32 = 41.0;
/// The divisor 2⁷ of the one-pass sum: at least 48 for no term to overflow; a power of two, so that it costs no accuracy.
const DIVISOR: f32 = 128.0;

/// How the sums over a gradient are emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReductionStyle {
    /// Two `reduce`s, the second over shares: for CPU, where every `reduce` reads its operand anyhow. A variadic one
    /// accumulates naively there. The gradient passes through a `reduce-precision` to its own precision, which keeps our
    /// sums apart from equal ones of the step, such as those of clipping: merged with ours they would be compiled as part
    /// of other fusions, there with another order of additions.
    #[default]
    Shares,
    /// Two independent `reduce`s by offset, so that a compiler can fuse them into one reading, as TPU's does. Shares
    /// up to [`SHARES_LIMIT`] elements.
    Separate,
    /// One variadic `reduce` by offset: for GPU, where every `reduce` is a kernel. Below 2¹⁴ elements and for
    /// gradients far from 1 the entropy's error can reach 3e-5.
    Variadic,
}

/// The pass, see the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct MeasureEntropy {
    /// How sums are emitted.
    pub reduction: ReductionStyle,
}

/// What was measured, as vectors with one element per controlled tensor.
#[derive(Debug, Clone)]
pub(crate) struct Statistics {
    /// The tensors, in order.
    pub(crate) tensors: Vec<ControlledTensor>,
    /// Their names inside HLO names.
    pub(crate) short_names: Vec<String>,
    /// S of each, f32\[n\].
    pub(crate) energy: InstructionId,
    /// h of each in nats, f32\[n\]; meaningless where S is not a positive normal number.
    pub(crate) nats: InstructionId,
}

impl Pass for MeasureEntropy {
    fn name(&self) -> &'static str {
        "measure-entropy"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let step = context.step()?;
        refuse_unsupported(module, step)?;
        let found: Vec<_> = step.controlled().map(|(p, g)| (p.name.clone(), p.input, g.measured)).collect();
        if found.is_empty() {
            return Err(PassError::NothingToControl { reasons: reasons(step) });
        }
        let short_names = names::short(&found.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>());
        let mut emitter = Emitter::new(module, self.reduction)?;
        let mut tensors = Vec::with_capacity(found.len());
        let mut sums = Vec::with_capacity(found.len());
        for ((name, input, value), short) in found.into_iter().zip(&short_names) {
            emitter.b.set_scope(&format!("entropic.measure.{short}"), &format!("entropic/measure-entropy/{name}"));
            let gradient = materialise(&mut emitter.b, value)?;
            let shape = emitter.b.shape(gradient)?;
            if !shape.element_type().is_floating() || shape.num_elements() == 0 {
                return Err(PassError::UnsupportedGradient { tensor: name, shape: shape.to_string() });
            }
            sums.push(emitter.tensor(gradient, short)?);
            let measured = emitter.b.module().entry_computation().get(gradient).map(ToString::to_string);
            let measured = measured.unwrap_or_default();
            let (elements, rank) = (shape.num_elements(), shape.rank() as u32);
            tensors.push(ControlledTensor { name, input, elements, rank, measured, scaling: None });
        }
        let (energy, nats) = emitter.pack(&sums)?;
        context.statistics = Some(Statistics { tensors, short_names, energy, nats });
        Ok(Changed::Yes)
    }
}

/// Emits the statistics of some gradients at the end of the entry: S of each and h of each, both f32\[n\].
///
/// # Errors
///
/// Where a gradient is no floating-point array of the entry.
pub fn statistics_of(
    module: &mut Module,
    gradients: &[InstructionId],
    reduction: ReductionStyle,
) -> Result<(InstructionId, InstructionId), BuildError> {
    let mut emitter = Emitter::new(module, reduction)?;
    let sums = gradients.iter().enumerate().map(|(i, &g)| emitter.tensor(g, &i.to_string()));
    let sums = sums.collect::<Result<Vec<_>, _>>()?;
    emitter.pack(&sums)
}

fn refuse_unsupported(module: &Module, step: &TrainStep) -> Result<(), PassError> {
    if let Some(loop_name) = &step.inside_loop {
        return Err(PassError::InsideLoop { loop_name: loop_name.clone() });
    }
    if step.computation != module.entry() {
        let name = module.computation(step.computation).map_or("another computation", |c| c.name.as_str());
        return Err(PassError::Partitioned { evidence: format!("the step is in {name}") });
    }
    let sharded = module.entry_computation().instructions().map(|(_, i)| i);
    let sharded = sharded.into_iter().find(|i| i.attributes.sharding.as_option().is_some_and(splits));
    match sharded {
        Some(i) => Err(PassError::Partitioned { evidence: format!("{i} carries a sharding") }),
        None => Ok(()),
    }
}

/// Whether a sharding splits anything over devices.
fn splits(sharding: &OpSharding) -> bool {
    let whole = matches!(sharding.r#type.as_known(), Some(Type::REPLICATED | Type::MAXIMAL | Type::TUPLE));
    !whole || sharding.tuple_shardings.iter().any(splits)
}

fn reasons(step: &TrainStep) -> String {
    let absent = step.parameters.iter().filter_map(|p| match &p.gradient {
        GradientStatus::Absent { reason } => Some(format!("  {}: {reason}", p.name)),
        GradientStatus::Found(_) => None,
    });
    let lines: Vec<_> = absent.collect();
    if lines.is_empty() { "  the step has no parameters".to_owned() } else { lines.join("\n") }
}

struct TensorSums {
    /// S.
    energy: InstructionId,
    /// h itself where shares were taken, else B.
    weighted: InstructionId,
    shares: bool,
}

/// Emits statistics at the end of the entry.
struct Emitter<'m> {
    b: Builder<'m>,
    reduction: ReductionStyle,
    sum: ComputationId,
    pair_sum: Option<ComputationId>,
    zero: InstructionId,
    smallest: InstructionId,
}

impl<'m> Emitter<'m> {
    fn new(module: &'m mut Module, reduction: ReductionStyle) -> Result<Self, BuildError> {
        let sum = Builder::reducer(module, "entropic.sum", Opcode::Add, PrimitiveType::F32)?;
        let pair_sum = match reduction {
            ReductionStyle::Shares | ReductionStyle::Separate => None,
            ReductionStyle::Variadic => Some(pair_sum(module)?),
        };
        let mut b = Builder::at_entry(module);
        b.set_scope("entropic.measure", "entropic/measure-entropy");
        let zero = b.named("entropic.zero").constant_f32(0.0)?;
        let smallest = b.named("entropic.smallest_normal").constant_f32(f32::MIN_POSITIVE)?;
        Ok(Self { b, reduction, sum, pair_sum, zero, smallest })
    }

    fn tensor(&mut self, gradient: InstructionId, short: &str) -> Result<TensorSums, BuildError> {
        let g = self.b.convert(gradient, PrimitiveType::F32)?;
        let g = if self.reduction == ReductionStyle::Shares { self.apart(g)? } else { g };
        let a = self.b.multiply(g, g)?;
        let elements = self.b.shape(a)?.num_elements();
        match self.pair_sum {
            Some(pair_sum) => {
                let terms = self.offset_terms(a)?;
                let rank = self.b.shape(a)?.rank() as i64;
                let attributes = HloInstructionProto { dimensions: (0..rank).collect(), ..Default::default() };
                let operands = [a, terms, self.zero, self.zero];
                let sums = self.b.emit_with(Opcode::Reduce, &operands, Shape::default(), attributes, vec![pair_sum])?;
                let energy = self.b.named(&format!("entropic.energy.{short}")).get_tuple_element(sums, 0)?;
                let weighted = self.b.named(&format!("entropic.entropy.{short}")).get_tuple_element(sums, 1)?;
                Ok(TensorSums { energy, weighted, shares: false })
            }
            None => {
                let energy = self.total(a, &format!("entropic.energy.{short}"))?;
                let shares = self.reduction == ReductionStyle::Shares || elements <= SHARES_LIMIT;
                let terms = if shares { self.share_terms(a, energy)? } else { self.offset_terms(a)? };
                let weighted = self.total(terms, &format!("entropic.entropy.{short}"))?;
                Ok(TensorSums { energy, weighted, shares })
            }
        }
    }

    /// S and h of all tensors as vectors.
    fn pack(&mut self, sums: &[TensorSums]) -> Result<(InstructionId, InstructionId), BuildError> {
        self.b.set_scope("entropic.measure", "entropic/measure-entropy");
        let energies: Vec<_> = sums.iter().map(|s| s.energy).collect();
        let weighted: Vec<_> = sums.iter().map(|s| s.weighted).collect();
        let shares: Vec<_> = sums.iter().map(|s| s.shares).collect();
        let energy = self.b.pack(&energies)?;
        let weighted = self.b.pack(&weighted)?;
        Ok((energy, self.nats(energy, weighted, &shares)?))
    }

    fn total(&mut self, x: InstructionId, name: &str) -> Built {
        self.b.named(name).reduce_all(x, self.zero, self.sum)
    }

    /// The same values, but for no compiler pass the same value: a `reduce-precision` to the precision that x has.
    fn apart(&mut self, x: InstructionId) -> Built {
        let shape = self.b.shape(x)?.clone();
        let attributes = HloInstructionProto { exponent_bits: 8, mantissa_bits: 23, ..Default::default() };
        self.b.emit_with(Opcode::ReducePrecision, &[x], shape, attributes, Vec::new())
    }

    /// −p ln p, elementwise, with p = a/S.
    fn share_terms(&mut self, a: InstructionId, energy: InstructionId) -> Built {
        let total = self.b.broadcast_scalar_like(energy, a)?;
        let p = self.b.divide(a, total)?;
        let log = self.b.log(p)?;
        let term = self.b.multiply(p, log)?;
        let term = self.b.negate(term)?;
        self.where_normal(p, term)
    }

    /// a·(c − ln a)/2⁷, elementwise.
    fn offset_terms(&mut self, a: InstructionId) -> Built {
        let log = self.b.log(a)?;
        let offset = self.like(OFFSET, a)?;
        let weight = self.b.subtract(offset, log)?;
        let divisor = self.like(1.0 / DIVISOR, a)?;
        let weight = self.b.multiply(weight, divisor)?;
        let term = self.b.multiply(a, weight)?;
        self.where_normal(a, term)
    }

    /// `term` where x is a normal number or more, else 0. NaN compares false.
    fn where_normal(&mut self, x: InstructionId, term: InstructionId) -> Built {
        let smallest = self.b.broadcast_scalar_like(self.smallest, x)?;
        let normal = self.b.compare(x, smallest, ComparisonDirection::Ge)?;
        let zero = self.b.broadcast_scalar_like(self.zero, x)?;
        self.b.select(normal, term, zero)
    }

    fn like(&mut self, value: f32, x: InstructionId) -> Built {
        let constant = self.b.constant_f32(value)?;
        self.b.broadcast_scalar_like(constant, x)
    }

    /// h of all tensors from S and the weighted sums.
    fn nats(&mut self, energy: InstructionId, sums: InstructionId, shares: &[bool]) -> Built {
        if shares.iter().all(|&t| t) {
            return Ok(sums);
        }
        let log = self.b.log(energy)?;
        let offset = self.like(OFFSET, energy)?;
        let base = self.b.subtract(log, offset)?;
        let mean = self.b.divide(sums, energy)?;
        let divisor = self.like(DIVISOR, energy)?;
        let mean = self.b.multiply(mean, divisor)?;
        let by_offset = self.b.add(base, mean)?;
        let by_offset = self.where_normal(energy, by_offset)?;
        if shares.iter().all(|&t| !t) {
            return Ok(by_offset);
        }
        let marks: Vec<f32> = shares.iter().map(|&t| f32::from(u8::from(t))).collect();
        let marks = self.b.constant_f32_vector(&marks)?;
        let zero = self.like(0.0, energy)?;
        let direct = self.b.compare(marks, zero, ComparisonDirection::Ne)?;
        self.b.select(direct, sums, by_offset)
    }
}

/// `((x0, x1), (y0, y1)) -> (x0 + y0, x1 + y1)`.
fn pair_sum(module: &mut Module) -> Result<ComputationId, BuildError> {
    let id = module.add_computation("entropic.pair_sum");
    let mut b = Builder::new(module, id);
    b.set_scope("entropic.pair_sum", "");
    let scalar = || Shape::scalar(PrimitiveType::F32);
    let names = ["x0", "x1", "y0", "y1"];
    let parameters = names
        .iter()
        .map(|name| b.parameter(&format!("entropic.pair_sum.{name}"), scalar()))
        .collect::<Result<Vec<_>, _>>()?;
    if let [x0, x1, y0, y1] = parameters.as_slice() {
        let first = b.add(*x0, *y0)?;
        let second = b.add(*x1, *y1)?;
        let root = b.emit(Opcode::Tuple, &[first, second])?;
        b.set_root(root)?;
    }
    Ok(id)
}
