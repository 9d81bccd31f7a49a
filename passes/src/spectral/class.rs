//! What each tensor is for, from what the graph does with it.
//!
//! Names are not looked at. A tensor is followed from the step's input through conversions, transpositions, reshapes, slices,
//! calls and loops, with its axes, up to what computes something of it:
//!
//! * a gather of its rows, or a product with a one-hot encoding, makes it an *embedding*;
//! * a product in which some of its axes are summed over and others are not makes it a *matrix* from the ones to the others;
//!   axes that are neither (that a loop over layers slices away, or that are a batch of the product) number several such
//!   matrices: a *stack*;
//! * a product behind which the loss has no further product with a parameter makes it a *head*;
//! * a convolution makes it a *kernel*; and what enters no product (norms, biases, embeddings of positions that are only
//!   added) is *no matrix*.
//!
//! An embedding that makes the logits as well is an embedding.

use std::collections::HashSet;
use std::fmt;

use hlo::{Computation, ComputationId, Instruction, InstructionId, Module, Opcode};
use serde::{Deserialize, Serialize};

use super::flow::{Flow, Place};
use crate::step::{Parameter, TrainStep};

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TensorClass {
    /// One matrix inside the model.
    Matrix,
    /// Several of them, along leading axes.
    Stack,
    /// Rows that are looked up.
    Embedding,
    /// The matrix that makes the logits.
    Head,
    /// The kernel of a convolution.
    Kernel,
    /// It enters no product: a norm, a bias.
    NoMatrix,
}

impl TensorClass {
    /// As in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Matrix => "matrix",
            Self::Stack => "stack",
            Self::Embedding => "embedding",
            Self::Head => "head",
            Self::Kernel => "kernel",
            Self::NoMatrix => "no matrix",
        }
    }
}

impl fmt::Display for TensorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A tensor as equal matrices that lie one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrices {
    /// How many.
    pub count: u64,
    /// Rows of each.
    pub rows: u64,
    /// Columns of each.
    pub columns: u64,
    /// How many of the tensor's axes number them, the first ones.
    pub leading: usize,
    /// How many axes make up rows; those after them make up columns.
    pub row_axes: usize,
}

impl Matrices {
    /// The shorter side.
    #[must_use]
    pub fn shorter(&self) -> u64 {
        self.rows.min(self.columns)
    }

    /// A tensor whose first `leading` axes number matrices with the next `row_axes` as rows and the rest as columns.
    fn of(dims: &[i64], leading: usize, row_axes: usize) -> Self {
        let extent = |dims: &[i64]| dims.iter().fold(1_u64, |n, &d| n.saturating_mul(u64::try_from(d).unwrap_or(0)));
        let (layers, rest) = dims.split_at_checked(leading).unwrap_or((&[], dims));
        let (rows, columns) = rest.split_at_checked(row_axes).unwrap_or((rest, &[]));
        Self { count: extent(layers), rows: extent(rows), columns: extent(columns), leading, row_axes }
    }

    /// The last two axes as a matrix, those before them as numbers; none of fewer axes.
    pub(super) fn last_axes(dims: &[i64]) -> Option<Self> {
        Some(Self::of(dims, dims.len().checked_sub(2)?, 1))
    }
}

impl fmt::Display for Matrices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "{} x {}", self.rows, self.columns),
            count => write!(f, "{count} of {} x {}", self.rows, self.columns),
        }
    }
}

/// What a tensor is for, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classified {
    /// Its class.
    pub class: TensorClass,
    /// Why, in words.
    pub reason: String,
    /// The matrices that its products are with, where there are such and their axes lie in order.
    pub matrices: Option<Matrices>,
}

/// The class of each parameter of `step`, in the step's order.
#[must_use]
pub fn classify(module: &Module, step: &TrainStep) -> Vec<Classified> {
    let flow = Flow::new(module);
    let used: Vec<Uses> = step.parameters.iter().map(|p| Uses::of(&flow, step.computation, p)).collect();
    let products: HashSet<Place> = used.iter().flat_map(|u| &u.products).map(|product| product.place).collect();
    let last = last_products(&flow, step, &products);
    step.parameters.iter().zip(&used).map(|(parameter, uses)| uses.class(&flow, parameter, &last)).collect()
}

/// The computation whose result has the loss, and its leaf there; `None` where no loss is recognised.
pub(super) fn loss(module: &Module, step: &TrainStep) -> Option<(ComputationId, usize)> {
    // The outputs of a step that is a loop's body are the loop's leaves, with numbers of their own.
    let (computation, loss) = match &step.inside_loop {
        Some(around) => (around.body.computation, around.body.loss),
        None => (module.entry(), step.loss),
    };
    Some((computation, loss?))
}

/// The products behind which the loss has no further one; none where no loss is recognised.
fn last_products(flow: &Flow<'_>, step: &TrainStep, products: &HashSet<Place>) -> HashSet<Place> {
    let Some((computation, leaf)) = loss(flow.module, step) else { return HashSet::new() };
    let root = flow.module.computation(computation).map(Computation::root);
    let Some(instruction) = root else { return HashSet::new() };
    let behind = flow.behind(Place { computation, instruction, leaf }, step.computation, products);
    behind.intersection(products).copied().collect()
}

/// A product with a tensor: which of its axes are summed over, and which are not.
struct Product {
    place: Place,
    summed: Vec<usize>,
    kept: Vec<usize>,
}

/// What computes something of a tensor.
#[derive(Default)]
struct Uses {
    gather: Option<String>,
    one_hot: Option<String>,
    convolution: Option<String>,
    products: Vec<Product>,
}

/// For each dimension of an array, the axes of the tensor that lie along it.
type Axes = Vec<Vec<usize>>;

impl Uses {
    fn of(flow: &Flow<'_>, top: ComputationId, parameter: &Parameter) -> Self {
        let mut uses = Self::default();
        let start = Place { computation: top, instruction: parameter.value.instruction, leaf: parameter.value.leaf };
        let axes: Axes = (0..parameter.shape.rank()).map(|axis| vec![axis]).collect();
        let mut seen = HashSet::from([start]);
        let mut open = vec![(start, axes)];
        while let Some((place, axes)) = open.pop() {
            let mut next: Vec<(Place, Axes)> =
                flow.returned(place).into_iter().map(|place| (place, axes.clone())).collect();
            for (id, number, user) in flow.readers(place) {
                next.extend(flow.handed_on(place, id, number, user).into_iter().map(|place| (place, axes.clone())));
                let here = Place { instruction: id, leaf: 0, ..place };
                match moved(flow, place, number, user, &axes) {
                    Some(axes) => next.push((here, axes)),
                    None => uses.note(flow, here, number, user, &axes),
                }
            }
            open.extend(next.into_iter().filter(|(place, _)| seen.insert(*place)));
        }
        uses
    }

    /// Notes what an instruction computes of the tensor.
    fn note(&mut self, flow: &Flow<'_>, place: Place, number: usize, user: &Instruction, axes: &Axes) {
        match user.opcode {
            Opcode::Gather if number == 0 => {
                self.gather.get_or_insert_with(|| user.to_string());
            }
            Opcode::Convolution => {
                self.convolution.get_or_insert_with(|| user.to_string());
            }
            Opcode::Dot => {
                let other = user.operands.get(1 - number.min(1)).copied();
                if other.is_some_and(|other| is_one_hot(flow, place, other)) {
                    self.one_hot.get_or_insert_with(|| user.to_string());
                }
                self.products.extend(product(place, number, user, axes));
            }
            _ => {}
        }
    }

    fn class(&self, flow: &Flow<'_>, parameter: &Parameter, last: &HashSet<Place>) -> Classified {
        let dims = parameter.shape.dims();
        let matrices = self.products.iter().find_map(|product| in_order(dims, product));
        let named = |place: Place| flow.instruction(place).map(ToString::to_string).unwrap_or_default();
        let found = |class, reason| Classified { class, reason, matrices };
        if let Some(gather) = &self.gather {
            return found(TensorClass::Embedding, format!("{gather} looks its rows up"));
        }
        if let Some(product) = &self.one_hot {
            return found(TensorClass::Embedding, format!("{product} is its product with a one-hot encoding"));
        }
        if let Some(convolution) = &self.convolution {
            return found(TensorClass::Kernel, format!("{convolution} convolves with it"));
        }
        let Some(first) = self.products.first() else {
            return Classified {
                class: TensorClass::NoMatrix,
                reason: "it enters no product".to_owned(),
                matrices: None,
            };
        };
        if let Some(head) = self.products.iter().find(|product| last.contains(&product.place)) {
            let reason = format!("the loss has no product with a parameter behind {}", named(head.place));
            return found(TensorClass::Head, reason);
        }
        let product = named(first.place);
        match matrices {
            Some(several) if several.count > 1 => {
                found(TensorClass::Stack, format!("{product} multiplies by one of them"))
            }
            Some(_) => found(TensorClass::Matrix, format!("{product} multiplies by it")),
            None => {
                let reason = format!("{product} multiplies by it, but its axes are not those of matrices in order");
                found(TensorClass::NoMatrix, reason)
            }
        }
    }
}

/// The axes of what `user` makes of an array by moving its elements only; `None` where it computes something.
fn moved(flow: &Flow<'_>, place: Place, number: usize, user: &Instruction, axes: &Axes) -> Option<Axes> {
    let dimensions = &user.attributes.dimensions;
    let at = |d: i64| usize::try_from(d).ok();
    match user.opcode {
        Opcode::Convert | Opcode::Copy | Opcode::ReducePrecision | Opcode::Slice => Some(axes.clone()),
        Opcode::Concatenate => Some(axes.clone()),
        Opcode::DynamicSlice if number == 0 => Some(axes.clone()),
        Opcode::Transpose => dimensions.iter().map(|&d| axes.get(at(d)?).cloned()).collect(),
        Opcode::Broadcast => {
            let mut made = vec![Vec::new(); user.shape.rank()];
            for (axes, &d) in axes.iter().zip(dimensions) {
                made.get_mut(at(d)?)?.clone_from(axes);
            }
            Some(made)
        }
        Opcode::Reshape | Opcode::Bitcast => {
            let before = flow.instruction(place)?.shape.leaves().nth(place.leaf)?;
            Some(regrouped(before.dims(), user.shape.dims(), axes))
        }
        _ => None,
    }
}

/// The axes along each dimension after a reshape: of dimensions that come to the same number of elements together.
/// Dimensions of one element carry no axis.
fn regrouped(before: &[i64], after: &[i64], axes: &Axes) -> Axes {
    let mut made = Vec::with_capacity(after.len());
    let (mut old, mut new) = (before.iter().zip(axes).peekable(), after.iter().peekable());
    while new.peek().is_some() {
        let (mut left, mut right) = (1_i64, 1_i64);
        let mut along = Vec::new();
        let mut dims = Vec::new();
        loop {
            if left <= right
                && let Some((&d, axes)) = old.next()
            {
                left = left.saturating_mul(d);
                along.extend(axes.iter().copied().filter(|_| d != 1));
            } else if let Some(&d) = new.next() {
                right = right.saturating_mul(d);
                dims.push(d);
            } else {
                break;
            }
            if left == right && !dims.is_empty() {
                break;
            }
        }
        made.extend(dims.into_iter().map(|d| if d == 1 { Vec::new() } else { along.clone() }));
    }
    made
}

/// Which axes of the tensor a product sums over, where it sums over some and keeps others.
fn product(place: Place, number: usize, dot: &Instruction, axes: &Axes) -> Option<Product> {
    let dimensions = dot.attributes.dot_dimension_numbers.as_option()?;
    let (summed, batch) = match number {
        0 => (&dimensions.lhs_contracting_dimensions, &dimensions.lhs_batch_dimensions),
        _ => (&dimensions.rhs_contracting_dimensions, &dimensions.rhs_batch_dimensions),
    };
    let along = |chosen: &dyn Fn(i64) -> bool| -> Vec<usize> {
        let mut found: Vec<usize> = axes
            .iter()
            .enumerate()
            .filter(|(d, _)| chosen(*d as i64))
            .flat_map(|(_, axes)| axes.iter().copied())
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let over = along(&|d| summed.contains(&d));
    let kept = along(&|d| !summed.contains(&d) && !batch.contains(&d));
    let apart = !over.iter().any(|axis| kept.contains(axis));
    (apart && !over.is_empty() && !kept.is_empty()).then_some(Product { place, summed: over, kept })
}

/// The tensor as matrices, where axes that number them come first, and those of rows and columns each lie together.
fn in_order(dims: &[i64], product: &Product) -> Option<Matrices> {
    let sides = [&product.summed, &product.kept];
    let first = *sides.iter().flat_map(|axes| axes.iter()).min()?;
    let row_side = sides.iter().find(|axes| axes.contains(&first))?;
    let row_axes = row_side.len();
    let rest = dims.len().checked_sub(first)?;
    let together = row_side.iter().enumerate().all(|(k, &axis)| axis == first + k);
    let whole = product.summed.len() + product.kept.len() == rest;
    (together && whole).then(|| Matrices::of(dims, first, row_axes))
}

/// Whether an operand of a product compares numbers with an index: one where they are equal, else zero.
fn is_one_hot(flow: &Flow<'_>, product: Place, operand: InstructionId) -> bool {
    let mut at = Place { instruction: operand, leaf: 0, ..product };
    loop {
        let Some(instruction) = flow.instruction(at) else { return false };
        match (instruction.opcode, instruction.operands.as_slice()) {
            (Opcode::Convert | Opcode::Reshape | Opcode::Copy | Opcode::Transpose, &[x]) => at.instruction = x,
            (Opcode::Compare, operands) => {
                let integral = |&x: &InstructionId| {
                    let compared = flow.instruction(Place { instruction: x, leaf: 0, ..at });
                    compared.is_some_and(|i| i.shape.is_array() && i.shape.element_type().is_integral())
                };
                return instruction.attributes.comparison_direction == "EQ" && operands.iter().all(integral);
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reshape_keeps_axes_that_stay_together() {
        let axes = |n: usize| (0..n).map(|axis| vec![axis]).collect::<Axes>();
        assert_eq!(regrouped(&[1, 4, 6], &[4, 6], &axes(3)), [vec![1], vec![2]]);
        assert_eq!(regrouped(&[4, 2, 3], &[4, 6], &axes(3)), [vec![0], vec![1, 2]]);
        assert_eq!(regrouped(&[4, 6], &[4, 2, 3], &axes(2)), [vec![0], vec![1], vec![1]]);
        assert_eq!(regrouped(&[4, 6], &[1, 4, 1, 6], &axes(2)), [vec![], vec![0], vec![], vec![1]]);
        assert_eq!(regrouped(&[4, 6], &[24], &axes(2)), [vec![0, 1]]);
    }

    #[test]
    fn matrices_lie_one_after_the_other() {
        let place = || {
            let module = Module::new("m");
            Place { computation: module.entry(), instruction: module.entry_computation().root(), leaf: 0 }
        };
        let check = |dims: &[i64], summed: &[usize], kept: &[usize], expected: Option<&str>| {
            let product = Product { place: place(), summed: summed.to_vec(), kept: kept.to_vec() };
            assert_eq!(in_order(dims, &product).map(|m| m.to_string()).as_deref(), expected, "{dims:?}");
        };
        check(&[8, 24], &[0], &[1], Some("8 x 24"));
        check(&[8, 24], &[1], &[0], Some("8 x 24"));
        check(&[3, 8, 24], &[1], &[2], Some("3 of 8 x 24"));
        check(&[8, 2, 12], &[0], &[1, 2], Some("8 x 24"));
        check(&[2, 12, 8], &[0, 1], &[2], Some("24 x 8"));
        check(&[5, 2, 12, 8], &[1, 2], &[3], Some("5 of 24 x 8"));
        // Layers that lie between rows and columns, or behind them.
        check(&[8, 5, 24], &[0], &[2], None);
        check(&[8, 24, 5], &[0], &[1], None);
    }
}
