//! `spectral`: updates of matrices with singular values that are nearly equal.
//!
//! Where discovery took a new value apart as p' = b + η·(w + ι·D), with the base b that the step is added to, a learning rate
//! η, decoupled weight decay w, a further uniform factor ι and what data decides, D, every use of p' sees
//!
//! ```text
//! select(α = 0, p', b + η·(w + ι·D*)),   D* = (1 − α)·D + α·k·‖D‖·O,   O = NS(D) / ‖NS(D)‖
//! ```
//!
//! for each matrix of D by itself, with Frobenius norms and NS some Newton-Schulz iterations
//! ([`COEFFICIENTS`]). So the energy of an update goes evenly to all directions that it has, and its norm
//! becomes k times what it was. Weight decay is as it was. Where the update is computed in a branch or a loop, D = p' − p.
//!
//! The first Gram matrix of NS gives the **spectral entropy** of D for nothing: of the shares σ²/Σσ² of its singular values,
//! the Rényi entropy of order 2 over its greatest value, −ln Σ(σ²/Σσ²)² / ln min(m, n). It is told in the telemetry; a
//! policy with a `target` below 1 moves each matrix as far as it is short of that; and laws act on it in the next step under
//! `laws.signal = "spectral"`.
//!
//! A D that is zero or not finite, and one whose norm leaves f32 when it is multiplied by k, is left alone: the step's own p'
//! is taken with all its bits, and what gates see is what they saw. All in f32, products in the policy's `dtype`.
//!
//! Which tensors are treated: matrices inside the model and stacks of them, as `classify` finds them. It runs after
//! `switch-optimizer`, so that it treats SGD's update where that was switched to, and before `scale-updates`, which scales
//! what was chosen here.

mod class;
mod cost;
mod emit;
mod flow;
mod plan;

use std::collections::{HashMap, HashSet};

use hlo::build::Builder;
use hlo::proto::HloInstructionProto;
use hlo::{InstructionId, Module, Opcode, PrimitiveType, Shape};

pub use class::{Classified, Matrices, TensorClass, classify};
pub use cost::{Cost, newton_schulz_flops, step_flops};
pub use emit::COEFFICIENTS;
use emit::{Emitter, MixedTensor, Numbers};
pub use plan::plan;

use crate::control::{Controlled, SwitchControl};
use crate::layout::{
    ControllerLayout, NONE, SPECTRAL_ALPHA, SPECTRAL_ENTROPY, SPECTRAL_K, SPECTRAL_TARGET, TensorSpectral,
};
use crate::pass::{Changed, Context, Pass, PassError};
use crate::policy::{Policy, SpectralPolicy, SpectralWork};
use crate::step::{DirectionStatus, Parameter, PartsStatus, Update, UpdateForm, UpdateParts, Value};
use crate::values::{materialise, own_copy, product, readers, stepped, summed, times, update_of, wide_type};

/// How products of matrices are emitted; a property of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MatrixStyle {
    /// Each tensor by itself: for CPU, which works through a batch of products one after another anyhow.
    #[default]
    Each,
    /// Matrices of one size together: for GPU and TPU, where small products leave most of the device idle, and each of the
    /// kernels beside them is launched once for all. Those that lie the other way round are not turned for it: XLA's GPU
    /// compiler then keeps their moments turned too, and copies them.
    Together,
}

/// So many elements are put together at most: 256 MiB of f32 for each of the arrays of an iteration.
const MOST_TOGETHER: u64 = 1 << 26;

/// The pass, see the module's documentation.
#[derive(Debug, Clone)]
pub struct Spectral {
    /// The policy: which tensors are treated, and how.
    pub policy: Policy,
    /// How products are emitted.
    pub style: MatrixStyle,
}

/// A tensor on its way.
struct Treated<'s> {
    /// Its number among the controlled tensors.
    number: usize,
    parameter: &'s Parameter,
    short: &'s str,
    planned: &'s TensorSpectral,
    matrices: Matrices,
    /// D as a stack, f32\[c, m, n\].
    stack: InstructionId,
    /// p' as it was, and the values that are it.
    new: InstructionId,
    targets: Vec<InstructionId>,
}

impl Pass for Spectral {
    fn name(&self) -> &'static str {
        "spectral"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let planned = plan(module, context.step()?, &self.policy)?;
        let (replacements, keep, updates, [telemetry, state]) = self.emit(module, context, &planned)?;
        let entry = module.entry();
        module.replace_uses(entry, &replacements, &keep)?;
        module.sort(entry)?;
        context.updates = Some(updates);
        if let Some(control) = &mut context.control {
            (control.telemetry, control.state) = (telemetry, state);
        }
        if let Some(layout) = &mut context.layout {
            layout.matrices = planned;
        }
        Ok(Changed::Yes)
    }
}

/// What takes the place of what, what keeps the old, the updates, and telemetry and state with spectral entropies.
type Emitted = (HashMap<InstructionId, InstructionId>, HashSet<InstructionId>, Vec<Update>, [InstructionId; 2]);

impl Spectral {
    fn emit(&self, module: &mut Module, context: &Context, planned: &[TensorSpectral]) -> Result<Emitted, PassError> {
        let (step, control, statistics) = (context.step()?, context.control()?, context.statistics()?);
        let layout = context.layout()?;
        let users = module.entry_computation().users();
        let before = module.entry_computation().arena_len();
        let spectral = &self.policy.spectral;
        let mut e = Emitter::new(module, spectral.iterations, spectral.dtype)?;
        let mut updates: Vec<Update> = Vec::new();
        let mut treated = Vec::new();
        for (number, (parameter, _)) in step.controlled().enumerate() {
            let update = context.update(number).unwrap_or(&parameter.update);
            updates.push(update.clone());
            let short = statistics.short_names.get(number).map_or("", String::as_str);
            let Some((planned, matrices)) = planned.get(number).and_then(|p| Some((p, p.matrices?))) else { continue };
            scope(&mut e.b, parameter, short);
            let d = match &parameter.parts {
                PartsStatus::Found(parts) => parts.value,
                PartsStatus::Absent { .. } => update.new,
            };
            // Its entropy is told once for all devices.
            context.refuse_own(e.b.module(), &parameter.name, d)?;
            let targets = readers(e.b.module().entry_computation(), &users, update.new, &parameter.name)?;
            let new = materialise(&mut e.b, update.new)?;
            let d = data_driven(&mut e.b, parameter, update, control.switch, number)?;
            let narrow = e.b.convert(d, PrimitiveType::F32)?;
            let stack = stacked(&mut e.b, narrow, planned, matrices)?;
            treated.push(Treated { number, parameter, short, planned, matrices, stack, new, targets });
        }
        let sharing = context.replicas.filter(|_| spectral.replicas == SpectralWork::Share);
        let sharing = sharing.map(|replicas| i64::from(replicas.count.get()));
        let numbers = PolicyNumbers { layout, vector: statistics.policy };
        let mut made: Vec<Option<MixedTensor>> = vec![None; treated.len()];
        for group in self.groups(&treated, sharing.is_some()) {
            for (index, mixed) in treat(&mut e, &treated, &group, numbers, sharing)? {
                if let Some(slot) = made.get_mut(index) {
                    *slot = Some(mixed);
                }
            }
        }
        let mut told: Vec<Option<(MixedTensor, f32)>> = vec![None; updates.len()];
        let mut replacements = HashMap::new();
        for (tensor, mixed) in treated.iter().zip(made) {
            let Some(mixed) = mixed else { continue };
            scope(&mut e.b, tensor.parameter, tensor.short);
            #[allow(clippy::cast_precision_loss, reason = "a weight in a mean")]
            let elements = (tensor.matrices.rows * tensor.matrices.columns) as f32;
            if let Some(slot) = told.get_mut(tensor.number) {
                *slot = Some((mixed, elements));
            }
            let Some(update) = updates.get_mut(tensor.number) else { continue };
            let chosen = choose(&mut e.b, tensor, mixed, update, self.policy.scales())?;
            replacements.extend(tensor.targets.iter().copied().chain([tensor.new]).map(|target| (target, chosen)));
        }
        e.b.set_scope("entropic.spectral", "entropic/spectral");
        let entropies = e.tell(&told, NONE)?;
        let told = [
            retold(&mut e.b, layout, control.telemetry, entropies)?,
            remembered(&mut e.b, layout, control, entropies)?,
        ];
        let entry = e.b.module().entry_computation();
        let keep = entry.order().iter().copied().filter(|id| id.index() >= before).collect();
        Ok((replacements, keep, updates, told))
    }

    /// Indices of the tensors that are treated together, in order: each alone; or matrices of one size, where that is the style
    /// or replicas share the work.
    fn groups(&self, treated: &[Treated<'_>], sharing: bool) -> Vec<Vec<usize>> {
        let together = self.style == MatrixStyle::Together || sharing;
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let of = |index: &usize| treated.get(*index).map(|t| t.matrices);
        let size = |m: Matrices| (m.rows, m.columns);
        let elements = |m: Matrices| m.count.saturating_mul(m.rows).saturating_mul(m.columns);
        for (index, tensor) in treated.iter().enumerate() {
            let fits = |group: &&mut Vec<usize>| {
                let members = group.iter().filter_map(of);
                let alike = members.clone().all(|m| size(m) == size(tensor.matrices));
                let sum = members.map(elements).fold(elements(tensor.matrices), u64::saturating_add);
                together && alike && sum <= MOST_TOGETHER
            };
            match groups.iter_mut().find(fits) {
                Some(group) => group.push(index),
                None => groups.push(vec![index]),
            }
        }
        groups
    }
}

/// What becomes of the tensors of a group, with their indices.
fn treat(
    e: &mut Emitter<'_>,
    treated: &[Treated<'_>],
    group: &[usize],
    numbers: PolicyNumbers<'_>,
    sharing: Option<i64>,
) -> Result<Vec<(usize, MixedTensor)>, PassError> {
    let members: Vec<(usize, &Treated<'_>)> = group.iter().filter_map(|&i| Some((i, treated.get(i)?))).collect();
    let Some((_, first)) = members.first() else { return Ok(Vec::new()) };
    let and = if members.len() > 1 { format!(".and_{}", members.len() - 1) } else { String::new() };
    scope(&mut e.b, first.parameter, &format!("{}{and}", first.short));
    let (mut stacks, mut factors) = (Vec::new(), Vec::new());
    for (_, tensor) in &members {
        stacks.push(tensor.stack);
        let k = numbers.element(&mut e.b, SPECTRAL_K, tensor.number)?;
        factors.push(e.b.broadcast_to_vector(k, tensor.matrices.count as i64)?);
    }
    let stack = e.together(&stacks)?;
    let numbers = Numbers {
        alpha: numbers.element(&mut e.b, SPECTRAL_ALPHA, 0)?,
        target: numbers.element(&mut e.b, SPECTRAL_TARGET, 0)?,
        k: e.together(&factors)?,
    };
    let unit = e.unit(stack)?;
    let made = match sharing {
        Some(replicas) => e.equalise_shared(unit.matrices, replicas)?,
        None => e.equalise(unit.matrices)?,
    };
    let mixed = e.mix(stack, &unit, made, numbers)?;
    let mut start = 0;
    let mut of_each = Vec::with_capacity(members.len());
    for &(index, tensor) in &members {
        let end = start + tensor.matrices.count as i64;
        scope(&mut e.b, tensor.parameter, tensor.short);
        of_each.push((index, e.tensor(&mixed, start, end)?));
        start = end;
    }
    Ok(of_each)
}

/// Names what follows after a tensor.
fn scope(b: &mut Builder<'_>, parameter: &Parameter, short: &str) {
    b.set_scope(&format!("entropic.spectral.{short}"), &format!("entropic/spectral/{}", parameter.name));
}

/// D: what data decides of an update, without learning rate and weight decay; SGD's where that was switched to.
fn data_driven(
    b: &mut Builder<'_>,
    parameter: &Parameter,
    update: &Update,
    switch: Option<SwitchControl>,
    number: usize,
) -> Result<InstructionId, PassError> {
    let PartsStatus::Found(parts) = &parameter.parts else {
        let (old, new) = (materialise(b, update.old)?, materialise(b, update.new)?);
        let wide = wide_type(b, &[old, new])?;
        let (old, new) = (b.convert(old, wide)?, b.convert(new, wide)?);
        return Ok(b.subtract(new, old)?);
    };
    let value = materialise(b, parts.value)?;
    let value = own_copy(b, value)?;
    let wide = wide_type(b, &[value])?;
    let value = b.convert(value, wide)?;
    let (Some(switch), DirectionStatus::Found(direction)) = (switch, &parameter.direction) else { return Ok(value) };
    let by_sgd = b.element(switch.by_sgd, number as i64)?;
    let rate = b.element(switch.rates, number as i64)?;
    let rate = b.convert(rate, wide)?;
    let rate = product(b, Some(rate), &direction.buried, wide)?;
    let moment = materialise(b, direction.moment)?;
    let moment = b.convert(moment, wide)?;
    let sgd = times(b, rate, moment)?;
    Ok(b.select(by_sgd, sgd, value)?)
}

/// A tensor as a stack of the matrices that are treated, f32\[c, m, n\].
fn stacked(
    b: &mut Builder<'_>,
    x: InstructionId,
    planned: &TensorSpectral,
    matrices: Matrices,
) -> Result<InstructionId, PassError> {
    let dims = b.shape(x)?.dims().to_vec();
    let x = match side_by_side(&dims, planned, matrices) {
        Some((apart, order)) => {
            let x = b.reshape(x, &apart)?;
            transposed(b, x, &order)?
        }
        None => x,
    };
    Ok(b.reshape(x, &[matrices.count as i64, matrices.rows as i64, matrices.columns as i64])?)
}

/// The tensor that a stack was made of, again.
fn unstacked(
    b: &mut Builder<'_>,
    stack: InstructionId,
    dims: &[i64],
    planned: &TensorSpectral,
    matrices: Matrices,
) -> Result<InstructionId, PassError> {
    let Some((apart, order)) = side_by_side(dims, planned, matrices) else { return Ok(b.reshape(stack, dims)?) };
    let moved: Vec<i64> = order.iter().filter_map(|&d| apart.get(d).copied()).collect();
    let mut back = vec![0; order.len()];
    for (position, &d) in order.iter().enumerate() {
        if let Some(slot) = back.get_mut(d) {
            *slot = position;
        }
    }
    let stack = b.reshape(stack, &moved)?;
    let x = transposed(b, stack, &back)?;
    Ok(b.reshape(x, dims)?)
}

/// Where matrices lie side by side in a tensor: its dimensions with the parts as one of its own, and the order of these in
/// which parts come before rows and columns.
fn side_by_side(dims: &[i64], planned: &TensorSpectral, matrices: Matrices) -> Option<(Vec<i64>, Vec<usize>)> {
    let parts = planned.said.split.filter(|&parts| parts > 1).map(i64::from)?;
    let axis = plan::axis(dims, planned.said);
    let mut apart = dims.to_vec();
    let extent = apart.get_mut(axis)?;
    *extent /= parts;
    apart.insert(axis, parts);
    let mut order: Vec<usize> = (0..apart.len()).filter(|&d| d != axis).collect();
    order.insert(matrices.leading, axis);
    Some((apart, order))
}

fn transposed(b: &mut Builder<'_>, x: InstructionId, order: &[usize]) -> Result<InstructionId, PassError> {
    let shape = b.shape(x)?;
    let dims: Vec<i64> = order.iter().filter_map(|&d| shape.dims().get(d).copied()).collect();
    let dimensions = order.iter().map(|&d| d as i64).collect();
    let stated = Shape::array(shape.element_type(), &dims);
    let attributes = HloInstructionProto { dimensions, ..Default::default() };
    Ok(b.emit_with(Opcode::Transpose, &[x], stated, attributes, Vec::new())?)
}

/// The policy's numbers, as the step is given them.
#[derive(Clone, Copy)]
struct PolicyNumbers<'l> {
    layout: &'l ControllerLayout,
    vector: InstructionId,
}

impl PolicyNumbers<'_> {
    /// One of a field's numbers, f32\[\].
    fn element(self, b: &mut Builder<'_>, name: &str, index: usize) -> Result<InstructionId, PassError> {
        let field = ControllerLayout::field(&self.layout.policy, name);
        let field = field.ok_or_else(|| PassError::Stale { what: format!("the policy's {name}") })?;
        Ok(b.element(self.vector, (field.offset + index) as i64)?)
    }
}

/// The new value with the mixed update, where anything of it is mixed, else that of the step; notes it as the update.
fn choose(
    b: &mut Builder<'_>,
    tensor: &Treated<'_>,
    mixed: MixedTensor,
    update: &mut Update,
    scaled: bool,
) -> Result<InstructionId, PassError> {
    let new = tensor.new;
    let old = materialise(b, update.old)?;
    let wide = wide_type(b, &[old, new])?;
    let narrow = b.shape(new)?.element_type();
    let dims = b.shape(new)?.dims().to_vec();
    let d = unstacked(b, mixed.matrices, &dims, tensor.planned, tensor.matrices)?;
    let d = b.convert(d, wide)?;
    let wide_old = b.convert(old, wide)?;
    let moved = match &tensor.parameter.parts {
        PartsStatus::Found(parts) => put_together(b, parts, d, wide)?,
        PartsStatus::Absent { .. } => b.add(wide_old, d)?,
    };
    let narrowed = b.convert(moved, narrow)?;
    let chosen = b.named(&format!("entropic.equalised.{}", tensor.short)).select(mixed.differs, narrowed, new)?;
    let mut form = update.form.clone();
    if scaled {
        // What `scale-updates` scales.
        let plain = update_of(b, update, wide)?;
        let u = b.subtract(moved, wide_old)?;
        let u = b.named(&format!("entropic.spectral_update.{}", tensor.short)).select(mixed.differs, u, plain)?;
        form = UpdateForm::Add { u: Value::array(u) };
    }
    *update = Update { form, new: Value::array(chosen), ..update.clone() };
    Ok(chosen)
}

/// b + η·(w + ι·D) in a wide type.
fn put_together(
    b: &mut Builder<'_>,
    parts: &UpdateParts,
    d: InstructionId,
    wide: PrimitiveType,
) -> Result<InstructionId, PassError> {
    let inner = product(b, None, &parts.inner, wide)?;
    let step = stepped(b, parts, inner, d, wide)?;
    summed(b, step, &parts.base, wide)
}

/// The telemetry with spectral entropies in the place of those that control left out.
fn retold(
    b: &mut Builder<'_>,
    layout: &ControllerLayout,
    telemetry: InstructionId,
    entropies: InstructionId,
) -> Result<InstructionId, PassError> {
    let field = ControllerLayout::field(&layout.telemetry, SPECTRAL_ENTROPY);
    let field = field.ok_or_else(|| PassError::Stale { what: format!("the controller's field {SPECTRAL_ENTROPY}") })?;
    let before = b.slice_vector(telemetry, 0, field.offset as i64)?;
    Ok(b.named("entropic.telemetry").concatenate(&[before, entropies], 0)?)
}

/// The state with the spectral entropies of a step that is applied, where laws act on them.
fn remembered(
    b: &mut Builder<'_>,
    layout: &ControllerLayout,
    control: &Controlled,
    entropies: InstructionId,
) -> Result<InstructionId, PassError> {
    let Some(field) = ControllerLayout::field(&layout.state, SPECTRAL_ENTROPY) else { return Ok(control.state) };
    let (first, end) = (field.offset as i64, (field.offset + field.len) as i64);
    let before = b.slice_vector(control.state, 0, first)?;
    let old = b.slice_vector(control.state, first, end)?;
    let new = b.select(control.applied, entropies, old)?;
    Ok(b.named("entropic.new_state").concatenate(&[before, new], 0)?)
}

/// A module that makes singular values equal and nothing else: from a stack of matrices f32\[c, m, n\], α, target and k, f32\[\]
/// each, to the mixed stack, the spectral entropy of each matrix f32\[c\], and whether anything is different, pred\[\].
///
/// For trying settings on recorded updates, and for tests.
///
/// # Errors
///
/// Where a side has no element.
pub fn standalone(dims: [i64; 3], spectral: &SpectralPolicy) -> Result<Module, PassError> {
    let mut module = Module::new("spectral");
    let mut b = Builder::at_entry(&mut module);
    let d = b.parameter("d", Shape::array(PrimitiveType::F32, &dims))?;
    let mut number = |name| b.parameter(name, Shape::scalar(PrimitiveType::F32));
    let [alpha, target, k] = [number("alpha")?, number("target")?, number("k")?];
    let count = dims[0];
    let mut e = Emitter::new(&mut module, spectral.iterations, spectral.dtype)?;
    let unit = e.unit(d)?;
    let made = e.equalise(unit.matrices)?;
    let k = e.b.broadcast_to_vector(k, count)?;
    let mixed = e.mix(d, &unit, made, Numbers { alpha, target, k })?;
    let mixed = e.tensor(&mixed, 0, count)?;
    module.set_outputs(&[mixed.matrices, made.entropy, mixed.differs])?;
    Ok(module)
}
