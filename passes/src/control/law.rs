//! The whole of control, part by part; formulas are in the parent's documentation.

use hlo::build::ComparisonDirection as Is;
use hlo::{InstructionId, Module, Opcode};

use super::decision::{Decision, decide, pause};
use super::emit::{Array, Emitter};
use super::history::{follow_entropy, follow_norm, target};
use super::rollback::rollback;
use super::scales::{laws, scale, scale_momentum};
use super::switch::switch;
use super::{Controlled, Inputs};
use crate::layout::{ControllerLayout, NONE, SPECTRAL_ENTROPY};
use crate::pass::PassError;
use crate::policy::Signal;

pub(super) type Made<T> = Result<T, PassError>;

pub(super) fn emit(module: &mut Module, layout: &ControllerLayout, inputs: &Inputs) -> Made<Controlled> {
    let e = &mut Emitter::new(module, layout, inputs)?;
    let measured = measure(e, layout, inputs)?;
    let target = target(e)?;
    let decision = decide(e, layout, inputs.consumes, &measured, &target)?;
    let paused = pause(e, &measured, &decision)?;
    let followed = followed(e, layout, &measured)?;
    let ratio = follow_entropy(e, layout, &followed, &decision, &target, &paused)?;
    follow_norm(e, &measured, &decision, &paused)?;
    let rollback = if layout.rollback { Some(rollback(e, &measured, &decision)?) } else { None };
    let switch = match (layout.switch, inputs.projections) {
        (Some(structure), Some(steps)) => Some(switch(e, layout, structure, steps, &measured, &decision)?),
        (Some(_), None) => return Err(PassError::Needs { pass: "project-steps" }),
        (None, _) => None,
    };
    let laws = laws(e, layout, &decision, ratio)?;
    let scales = scale(e, &laws, rollback.as_ref().map(|r| r.backoff))?;
    let momentum = if layout.scaled_momentum { Some(scale_momentum(e, &laws)?) } else { None };
    e.part("state");
    let state = e.assemble(Array::State, "entropic.new_state")?;
    let counters = e.assemble(Array::Counters, "entropic.new_counters")?;
    let telemetry = tell(e, layout, &measured, &decision, scales)?;
    let rollback = rollback.map(|r| r.control);
    Ok(Controlled { applied: decision.applied, scales, momentum, switch, rollback, state, counters, telemetry })
}

/// What this step's gradient is like; vectors have n + 1 elements.
pub(super) struct Measured {
    /// S of each tensor and of all.
    pub(super) energy: InstructionId,
    /// E where active, else −1.
    pub(super) entropy: InstructionId,
    /// Where there is an entropy, pred.
    pub(super) active: InstructionId,
    /// √ΣS, which may be infinite or NaN.
    pub(super) norm: InstructionId,
    /// Whether ΣS is finite.
    pub(super) finite: InstructionId,
}

/// The entropies that targets and ratios are of; vectors have n + 1 elements.
pub(super) struct Followed {
    /// E where active, else −1.
    pub(super) entropy: InstructionId,
    /// Where there is an entropy, pred.
    pub(super) active: InstructionId,
    /// Whether it is that of this step's gradient, as gates see it.
    pub(super) of_gradient: bool,
}

/// Those of this step's gradient, or the spectral ones that the last applied step left in the state.
fn followed(e: &mut Emitter<'_>, layout: &ControllerLayout, m: &Measured) -> Made<Followed> {
    if layout.laws.signal == Signal::Gradient {
        return Ok(Followed { entropy: m.entropy, active: m.active, of_gradient: true });
    }
    e.part("signal");
    let entropy = e.vector(Array::State, SPECTRAL_ENTROPY)?;
    let active = e.is(entropy, Is::Ge, 0.0)?;
    // `spectral` puts those of this step in their place.
    e.set(Array::State, SPECTRAL_ENTROPY, entropy);
    Ok(Followed { entropy, active, of_gradient: false })
}

fn measure(e: &mut Emitter<'_>, layout: &ControllerLayout, inputs: &Inputs) -> Made<Measured> {
    e.part("entropy");
    let total = e.total(inputs.energy)?;
    let norm = e.b.named("entropic.norm").sqrt(total)?;
    let finite = e.b.named("entropic.finite").is_finite(total)?;
    let energy = e.b.append(inputs.energy, total)?;

    let counts: Vec<u64> = layout.tensors.iter().map(|t| t.elements).collect();
    let all = counts.iter().fold(0_u64, |sum, &n| sum.saturating_add(n));
    let most = counts.iter().chain([&all]).map(|&n| layout.entropy.most_nats(n));
    #[allow(clippy::cast_possible_truncation, reason = "f32 is the device's precision")]
    let per_most: Vec<f32> = most.map(|most| if most > 0.0 { (1.0 / most) as f32 } else { 0.0 }).collect();
    let per_most = e.b.constant_f32_vector(&per_most)?;
    let value = e.mul(inputs.nats, per_most)?;
    let zero = e.f32(0.0)?;
    let one = e.f32(1.0)?;
    let value = e.binary(Opcode::Maximum, value, zero)?;
    let value = e.binary(Opcode::Minimum, value, one)?;

    let normal = e.is(energy, Is::Ge, f32::MIN_POSITIVE)?;
    let bounded = e.is(energy, Is::Le, f32::MAX)?;
    let several = e.is(per_most, Is::Gt, 0.0)?;
    let number = e.b.is_finite(inputs.nats)?;
    let active = e.and(normal, bounded)?;
    let active = e.and(active, several)?;
    let active = e.and(active, number)?;
    let none = e.f32(NONE)?;
    let entropy = e.select(active, value, none)?;
    Ok(Measured { energy, entropy, active, norm, finite })
}

fn tell(
    e: &mut Emitter<'_>,
    layout: &ControllerLayout,
    m: &Measured,
    d: &Decision,
    scales: InstructionId,
) -> Made<InstructionId> {
    e.part("telemetry");
    for (name, flag) in [("applied", d.applied), ("finite", m.finite), ("stop", d.stop)] {
        e.show(name, flag)?;
    }
    let norms = e.b.sqrt(m.energy)?;
    e.set(Array::Telemetry, "norm", norms);
    e.set(Array::Telemetry, "entropy", m.entropy);
    e.set(Array::Telemetry, "norm_threshold", d.threshold);
    e.set(Array::Telemetry, "scale", scales);
    if layout.spectral.is_some() {
        // What `spectral` puts its measurements in the place of.
        let none = e.f32(NONE)?;
        let nothing = e.b.broadcast_scalar_like(none, m.entropy)?;
        e.set(Array::Telemetry, SPECTRAL_ENTROPY, nothing);
    }
    e.assemble(Array::Telemetry, "entropic.telemetry")
}
