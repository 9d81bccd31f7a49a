//! What all estimators emit with: the gradient in `f32`, sums over it, and terms that are safe to sum.

use std::collections::BTreeMap;

use hlo::build::{BuildError, Builder, Built, ComparisonDirection};
use hlo::proto::HloInstructionProto;
use hlo::{ComputationId, InstructionId, Module, Opcode, PrimitiveType, Shape};

use super::{Measured, ReductionStyle, histogram, shares, softmax};
use crate::mesh;
use crate::policy::{EntropyPolicy, Estimator};
use crate::values::apart;

/// A gradient to measure.
pub(super) struct Gradient {
    /// A floating-point array of the entry.
    pub(super) value: InstructionId,
    /// What it is called inside HLO names.
    pub(super) short: String,
    /// Its tree path.
    pub(super) name: String,
    /// How many elements it has.
    pub(super) elements: u64,
}

/// Gradients that are measured together: one, or several of the same dimensions.
pub(super) struct Stack {
    /// Positions of the gradients.
    pub(super) members: Vec<usize>,
    /// The gradient in `f32`; where there are several, they are its rows.
    pub(super) value: InstructionId,
    /// What it is called inside HLO names.
    pub(super) short: String,
    /// What it is called in the names of operations.
    name: String,
    /// How many elements each gradient has.
    pub(super) elements: u64,
}

/// As many gradients are stacked at most. A kernel's arguments have a limit, and a compiler's patience has one.
const STACK_LIMIT: usize = 32;

/// A fold of all elements of an array.
#[derive(Clone, Copy)]
pub(crate) struct Fold {
    opcode: Opcode,
    operand: InstructionId,
    name: &'static str,
}

/// Σ x, called `name` in the program.
pub(crate) fn sum(operand: InstructionId, name: &'static str) -> Fold {
    Fold { opcode: Opcode::Add, operand, name }
}

/// max x of an x that is nowhere negative, called `name` in the program.
pub(super) fn largest(operand: InstructionId, name: &'static str) -> Fold {
    Fold { opcode: Opcode::Maximum, operand, name }
}

/// Emits statistics at the end of the entry.
pub(crate) struct Emitter<'m> {
    pub(crate) b: Builder<'m>,
    pub(super) reduction: ReductionStyle,
    /// Computations that reduces call, by name.
    reducers: BTreeMap<String, ComputationId>,
    pub(crate) zero: InstructionId,
    smallest: InstructionId,
}

impl<'m> Emitter<'m> {
    pub(crate) fn new(module: &'m mut Module, reduction: ReductionStyle) -> Result<Self, BuildError> {
        // Partitioners gather the parts of a variadic sum instead of adding them up, and arrays of one shape may be split in
        // different ways.
        let split = reduction == ReductionStyle::Variadic && mesh::is_split(module);
        let reduction = if split { ReductionStyle::Separate } else { reduction };
        let mut b = Builder::at_entry(module);
        b.set_scope("entropic.measure", "entropic/measure-entropy");
        let zero = b.named("entropic.zero").constant_f32(0.0)?;
        let smallest = b.named("entropic.smallest_normal").constant_f32(f32::MIN_POSITIVE)?;
        Ok(Self { b, reduction, reducers: BTreeMap::new(), zero, smallest })
    }

    /// Statistics of all gradients; `temperature` is asked for where the estimator has one.
    pub(super) fn measure(
        &mut self,
        gradients: &[Gradient],
        entropy: &EntropyPolicy,
        temperature: &dyn Fn(&mut Self) -> Built,
    ) -> Result<Measured, BuildError> {
        match entropy.estimator {
            Estimator::Energy => shares::emit(self, gradients, shares::Mass::Energy),
            Estimator::Magnitude => shares::emit(self, gradients, shares::Mass::Magnitude),
            Estimator::Softmax => {
                let temperature = temperature(self)?;
                softmax::emit(self, gradients, temperature, entropy.temperature_unit)
            }
            Estimator::Histogram => histogram::emit(self, gradients, entropy),
        }
    }

    /// Names what follows after a gradient.
    fn name_after(&mut self, short: &str, name: &str) {
        self.b.set_scope(&format!("entropic.measure.{short}"), &format!("entropic/measure-entropy/{name}"));
    }

    /// Names what follows after a gradient.
    pub(super) fn of_one(&mut self, gradient: &Gradient) {
        self.name_after(&gradient.short, &gradient.name);
    }

    /// Names what follows after the gradients of a stack.
    pub(super) fn of(&mut self, stack: &Stack) {
        self.name_after(&stack.short, &stack.name);
    }

    /// The gradients as they are measured: each by itself, or, where one variadic `reduce` is the style, those of the same
    /// dimensions together. A compiler for GPU reads the parts of such a stack where they are, so that however many
    /// layers there are, their gradients of one shape take one kernel, or two where they are large.
    pub(super) fn stacks(&mut self, gradients: &[Gradient]) -> Result<Vec<Stack>, BuildError> {
        let mut alike: Vec<(Vec<i64>, Vec<usize>)> = Vec::new();
        for (index, gradient) in gradients.iter().enumerate() {
            let dims = self.b.shape(gradient.value)?.dims().to_vec();
            let fits = |(known, members): &&mut (Vec<i64>, Vec<usize>)| {
                self.reduction == ReductionStyle::Variadic && *known == dims && members.len() < STACK_LIMIT
            };
            match alike.iter_mut().find(fits) {
                Some((_, members)) => members.push(index),
                None => alike.push((dims, vec![index])),
            }
        }
        alike.into_iter().map(|(dims, members)| self.stack(gradients, &dims, members)).collect()
    }

    fn stack(&mut self, gradients: &[Gradient], dims: &[i64], members: Vec<usize>) -> Result<Stack, BuildError> {
        let chosen: Vec<&Gradient> = members.iter().filter_map(|&index| gradients.get(index)).collect();
        let elements = chosen.first().map_or(0, |g| g.elements);
        let mut rows = Vec::with_capacity(chosen.len());
        for &gradient in &chosen {
            self.of_one(gradient);
            let wide = self.wide(gradient)?;
            rows.push(if chosen.len() == 1 { wide } else { self.b.reshape(wide, &[&[1], dims].concat())? });
        }
        let (first, others) = (chosen.first(), chosen.len().saturating_sub(1));
        let mut short = first.map_or(String::new(), |g| g.short.clone());
        let mut name = first.map_or(String::new(), |g| g.name.clone());
        if others > 0 {
            short += &format!(".and_{others}");
            name += &format!(" and {others} more");
        }
        self.name_after(&short, &name);
        let value = match rows.as_slice() {
            [single] => *single,
            several => self.b.named(&format!("entropic.stack.{short}")).concatenate(several, 0)?,
        };
        Ok(Stack { members, value, short, name, elements })
    }

    /// Names what follows after all gradients together.
    pub(super) fn of_all(&mut self) {
        self.b.set_scope("entropic.measure", "entropic/measure-entropy");
    }

    /// The gradient in `f32`, where our sums over it are to stay apart from the step's own.
    pub(super) fn wide(&mut self, gradient: &Gradient) -> Built {
        let g = self.b.convert(gradient.value, PrimitiveType::F32)?;
        self.own(g)
    }

    /// An `f32` array over which our sums are to stay apart from the step's own.
    pub(crate) fn own(&mut self, x: InstructionId) -> Built {
        if self.reduction == ReductionStyle::Shares { apart(&mut self.b, x) } else { Ok(x) }
    }

    /// Folds over arrays of equal dimensions that do not wait for each other, each called `entropic.NAME.SHORT`: in one
    /// variadic reduce where that is the style. The first `kept` dimensions are left.
    pub(crate) fn fold<const N: usize>(
        &mut self,
        folds: [Fold; N],
        kept: usize,
        short: &str,
    ) -> Result<[InstructionId; N], BuildError> {
        let mut made = folds.map(|f| f.operand);
        let rank = folds.first().map_or(Ok(0), |f| self.b.shape(f.operand).map(|shape| shape.rank()))?;
        let dimensions: Vec<i64> = (kept as i64..rank as i64).collect();
        if N > 1 && self.reduction == ReductionStyle::Variadic {
            let opcodes = folds.map(|f| f.opcode);
            let together = self.together(&opcodes, &made, self.zero, dimensions)?;
            for (index, (slot, fold)) in made.iter_mut().zip(&folds).enumerate() {
                *slot = self.b.named(&format!("entropic.{}.{short}", fold.name)).get_tuple_element(together, index)?;
            }
            return Ok(made);
        }
        for (slot, fold) in made.iter_mut().zip(&folds) {
            let reducer = self.reducer(fold.opcode, PrimitiveType::F32)?;
            let attributes = HloInstructionProto { dimensions: dimensions.clone(), ..Default::default() };
            let named = self.b.named(&format!("entropic.{}.{short}", fold.name));
            let operands = [fold.operand, self.zero];
            *slot = named.emit_with(Opcode::Reduce, &operands, Shape::default(), attributes, vec![reducer])?;
        }
        Ok(made)
    }

    /// One variadic reduce of arrays that agree in dimensions and element type; its result is a tuple.
    pub(super) fn together(
        &mut self,
        opcodes: &[Opcode],
        arrays: &[InstructionId],
        init: InstructionId,
        dimensions: Vec<i64>,
    ) -> Built {
        let element_type = self.b.shape(init)?.element_type();
        let parts: Vec<_> = opcodes.iter().map(|o| o.name()).collect();
        let name = format!("entropic.{}_{}", parts.join("_"), element_type.name());
        let reducer = match self.reducers.get(&name) {
            Some(&made) => made,
            None => variadic_reducer(self.b.module_mut(), &name, opcodes, element_type)?,
        };
        self.reducers.insert(name, reducer);
        let mut operands = arrays.to_vec();
        operands.resize(2 * arrays.len(), init);
        let attributes = HloInstructionProto { dimensions, ..Default::default() };
        self.b.emit_with(Opcode::Reduce, &operands, Shape::default(), attributes, vec![reducer])
    }

    /// A computation of two scalars; each is made once.
    pub(super) fn reducer(&mut self, opcode: Opcode, element_type: PrimitiveType) -> Result<ComputationId, BuildError> {
        let name = match (opcode, element_type) {
            (Opcode::Add, PrimitiveType::F32) => "entropic.sum".to_owned(),
            (Opcode::Maximum, PrimitiveType::F32) => "entropic.max".to_owned(),
            _ => format!("entropic.{}_{}", opcode.name(), element_type.name()),
        };
        if let Some(&made) = self.reducers.get(&name) {
            return Ok(made);
        }
        let made = Builder::reducer(self.b.module_mut(), &name, opcode, element_type)?;
        self.reducers.insert(name, made);
        Ok(made)
    }

    /// Σ x of a vector.
    pub(super) fn total(&mut self, x: InstructionId) -> Built {
        let reducer = self.reducer(Opcode::Add, PrimitiveType::F32)?;
        self.b.reduce_all(x, self.zero, reducer)
    }

    /// max x of a vector that is nowhere negative.
    pub(super) fn top(&mut self, x: InstructionId) -> Built {
        let reducer = self.reducer(Opcode::Maximum, PrimitiveType::F32)?;
        self.b.reduce_all(x, self.zero, reducer)
    }

    /// −p ln p, elementwise, 0 where p is no normal number.
    pub(super) fn surprise(&mut self, p: InstructionId) -> Built {
        let log = self.b.log(p)?;
        let term = self.b.multiply(p, log)?;
        let term = self.b.negate(term)?;
        self.where_normal(p, term)
    }

    /// `term` where x is a normal number or more, else 0. NaN compares false.
    pub(super) fn where_normal(&mut self, x: InstructionId, term: InstructionId) -> Built {
        let smallest = self.spread(self.smallest, x)?;
        let normal = self.b.compare(x, smallest, ComparisonDirection::Ge)?;
        let zero = self.spread(self.zero, x)?;
        self.b.select(normal, term, zero)
    }

    /// x, at least the smallest normal number, for dividing by.
    pub(super) fn at_least_smallest(&mut self, x: InstructionId) -> Built {
        let smallest = self.spread(self.smallest, x)?;
        self.b.maximum(x, smallest)
    }

    /// A scalar over the dimensions of `like`.
    pub(super) fn spread(&mut self, scalar: InstructionId, like: InstructionId) -> Built {
        self.b.broadcast_scalar_like(scalar, like)
    }

    /// A constant over the dimensions of `like`.
    pub(super) fn like(&mut self, value: f32, like: InstructionId) -> Built {
        let constant = self.b.constant_f32(value)?;
        self.spread(constant, like)
    }
}

/// `((x0, x1, …), (y0, y1, …)) -> (x0 op y0, x1 op y1, …)`.
fn variadic_reducer(
    module: &mut Module,
    name: &str,
    opcodes: &[Opcode],
    element_type: PrimitiveType,
) -> Result<ComputationId, BuildError> {
    let id = module.add_computation(name);
    let mut b = Builder::new(module, id);
    b.set_scope(name, "");
    let mut side = |letter: char| {
        let parameters =
            (0..opcodes.len()).map(|i| b.parameter(&format!("{name}.{letter}{i}"), Shape::scalar(element_type)));
        parameters.collect::<Result<Vec<_>, _>>()
    };
    let (left, right) = (side('x')?, side('y')?);
    let parts = opcodes.iter().zip(left.into_iter().zip(right)).map(|(&opcode, (x, y))| b.emit(opcode, &[x, y]));
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    let root = b.emit(Opcode::Tuple, &parts)?;
    b.set_root(root)?;
    Ok(id)
}
