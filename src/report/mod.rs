//! What `inspect` says about a model, as data: everything that discovery found, with names instead of ids.

mod text;

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use hlo::Module;
use hlo::partitioning::Partitioning;
use passes::TrainStep;
use passes::spectral::{Classified, Matrices, TensorClass, classify};
use passes::step::{
    CoefficientPlace, Confidence, DirectionStatus, Gradient, GradientStatus, LinkKind, MomentForm, MomentOf,
    MomentumForm, MomentumStatus, Pairing, Parameter, PartsStatus, StateClass, StateRole, UpdateForm, Value,
};
use serde::Serialize;

use crate::model::Found;

/// The version of the report's JSON.
pub const FORMAT_VERSION: u32 = 1;

/// Everything found in a model. Instructions are named as in HLO text, after calls were inlined.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Name of the model.
    pub model: String,
    /// Name of the `while` whose body the step is, when it is one.
    pub inside_loop: Option<String>,
    /// How many steps that loop does in one launch, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_per_launch: Option<NonZeroU32>,
    /// Number and name of the batch inputs.
    pub batch: Vec<Named>,
    /// Number and name of the loss among the outputs.
    pub loss: Option<Named>,
    /// Trainable tensors.
    pub parameters: Vec<ParameterReport>,
    /// Everything that is carried from step to step, parameters included.
    pub states: Vec<StateReport>,
    /// What the controller can do with this step.
    pub actuators: Vec<Actuator>,
    /// What there is to know about the step as a whole.
    pub notes: Vec<String>,
}

/// An input or output.
#[derive(Debug, Clone, Serialize)]
pub struct Named {
    /// Its number.
    pub index: usize,
    /// Its name.
    pub name: String,
}

/// A trainable tensor.
#[derive(Debug, Clone, Serialize)]
pub struct ParameterReport {
    /// Tree path, or HLO name where there is none.
    pub name: String,
    /// Input number.
    pub input: usize,
    /// Output index of the new value.
    pub output: usize,
    /// Shape as HLO writes it.
    pub shape: String,
    /// Number of elements.
    pub elements: u64,
    /// Name of the wider copy that the optimizer updates.
    pub master: Option<String>,
    /// The gradient; `null` where there is none.
    pub gradient: Option<GradientReport>,
    /// Why there is no gradient.
    pub no_gradient: Option<String>,
    /// How the new value comes about.
    pub update: UpdateReport,
    /// States that belong to this parameter.
    pub moments: Vec<MomentReport>,
    /// Its first moments, whose coefficients can be scaled; empty where there are none.
    pub momentum: Vec<MomentumReport>,
    /// Why there are none.
    pub no_momentum: Option<String>,
    /// What the tensor is for, from what the graph does with it.
    pub class: TensorClass,
    /// Why.
    pub class_reason: String,
    /// The matrices that it is, where it enters products as such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matrices: Option<Matrices>,
    /// What data decides of the update, without learning rate and weight decay; `null` where it cannot be taken apart.
    pub data_driven: Option<String>,
    /// Why it cannot.
    pub not_apart: Option<String>,
    /// The direction of the update, without learning rate and weight decay; `null` where the optimizer cannot be switched.
    pub direction: Option<String>,
    /// Why it cannot.
    pub no_switch: Option<String>,
    /// How sure discovery is.
    pub confidence: Confidence,
    /// Why.
    pub reasons: Vec<String>,
}

/// Views of one gradient; they are equal where nothing lies between.
#[derive(Debug, Clone, Serialize)]
pub struct GradientReport {
    /// What the optimizer consumes.
    pub eff: String,
    /// Before clipping, unscaling and skipping.
    pub preclip: String,
    /// Before additions that do not depend on data too.
    pub raw: String,
    /// What the controller measures.
    pub measured: String,
    /// A constant factor that cannot be told from the gradient's own, and where it was seen.
    pub constant_scale: Option<ConstantScaleReport>,
    /// What lies between `raw` and `eff`, in order of evaluation.
    pub links: Vec<LinkReport>,
}

/// A constant factor at the gradient.
#[derive(Debug, Clone, Serialize)]
pub struct ConstantScaleReport {
    /// The factor.
    pub factor: f64,
    /// The instruction that multiplies by it.
    pub instruction: String,
}

/// What lies between two values of a gradient.
#[derive(Debug, Clone, Serialize)]
pub struct LinkReport {
    /// The earlier value.
    pub from: String,
    /// The later value.
    pub to: String,
    /// What happens between.
    pub kinds: Vec<LinkKind>,
}

/// How a new value comes about.
#[derive(Debug, Clone, Serialize)]
pub struct UpdateReport {
    /// `add`: p + u; `subtract`: p - u; `difference`: the graph holds no usable u.
    pub form: &'static str,
    /// The update, where there is one.
    pub u: Option<String>,
    /// Why there is none.
    pub reason: Option<String>,
    /// The new value before guards.
    pub new: String,
    /// Guards between the new value and the output, outermost first.
    pub guards: Vec<String>,
}

/// A state that belongs to one parameter.
#[derive(Debug, Clone, Serialize)]
pub struct MomentReport {
    /// Name.
    pub name: String,
    /// Input number.
    pub input: usize,
    /// Form of its recurrence.
    pub form: MomentForm,
    /// What it accumulates.
    pub of: MomentOf,
    /// Coefficient of the old value, where it is a constant.
    pub decay: Option<f64>,
}

/// A first moment and its coefficients.
#[derive(Debug, Clone, Serialize)]
pub struct MomentumReport {
    /// Name of the moment.
    pub name: String,
    /// Its input number.
    pub input: usize,
    /// Whether 1 - b belongs to the coefficient.
    pub form: MomentumForm,
    /// Every place where a coefficient stands, the moment's new value first.
    pub coefficients: Vec<CoefficientReport>,
}

/// A momentum coefficient.
#[derive(Debug, Clone, Serialize)]
pub struct CoefficientReport {
    /// Where it stands.
    pub place: CoefficientPlace,
    /// b, where it is a constant.
    pub constant: Option<f64>,
    /// The instruction that is b, where there is one.
    pub decay: Option<String>,
    /// The instruction that is 1 - b, where there is one.
    pub complement: Option<String>,
}

/// Something that is carried from step to step.
#[derive(Debug, Clone, Serialize)]
pub struct StateReport {
    /// Name.
    pub name: String,
    /// Input number.
    pub input: usize,
    /// Output index.
    pub output: usize,
    /// Shape as HLO writes it.
    pub shape: String,
    /// What it is.
    pub role: StateRole,
    /// What a gate does with it.
    pub class: StateClass,
    /// Why it is of that class.
    pub reason: String,
    /// How input and output were paired.
    pub pairing: Pairing,
}

/// Something that the controller can do.
#[derive(Debug, Clone, Serialize)]
pub struct Actuator {
    /// Its name.
    pub name: &'static str,
    /// Whether it can be used on this step.
    pub available: bool,
    /// On what, or why not.
    pub detail: String,
}

impl Report {
    /// Describes what was found in the model called `model`.
    #[must_use]
    pub fn new(model: &str, found: &Found) -> Self {
        let Found { module, manifest, step } = found;
        let input = |index: usize| Named {
            index,
            name: manifest.inputs.get(index).map(|i| i.name.clone()).unwrap_or_default(),
        };
        let output = |index: usize| Named {
            index,
            name: manifest.outputs.get(index).map(|o| o.name.clone()).unwrap_or_default(),
        };
        let classes = classify(module, step);
        Self {
            format_version: FORMAT_VERSION,
            model: model.to_owned(),
            inside_loop: step.inside_loop.as_ref().map(|around| around.name.clone()),
            steps_per_launch: step.inside_loop.as_ref().and_then(|around| Some(around.trips.as_ref().ok()?.steps)),
            batch: step.batch.iter().map(|&i| input(i)).collect(),
            loss: step.loss.map(output),
            parameters: step
                .parameters
                .iter()
                .zip(&classes)
                .map(|(p, class)| parameter_report(module, step, p, class, &|i| input(i).name))
                .collect(),
            states: step
                .states
                .iter()
                .map(|s| StateReport {
                    name: s.name.clone(),
                    input: s.input,
                    output: s.output,
                    shape: s.shape.to_string(),
                    role: s.role,
                    class: s.class,
                    reason: s.reason.clone(),
                    pairing: s.pairing,
                })
                .collect(),
            actuators: actuators(step, &classes),
            notes: split_note(module).into_iter().chain(step.notes.iter().cloned()).collect(),
        }
    }
}

/// How the module is split over devices, where it is.
fn split_note(module: &Module) -> Option<String> {
    match Partitioning::of(module) {
        Ok(found) => found.map(|found| format!("the step is split over {found}")),
        Err(error) => Some(format!("how the step is split over devices cannot be told: {error}")),
    }
}

fn parameter_report(
    module: &Module,
    step: &TrainStep,
    parameter: &Parameter,
    classified: &Classified,
    input_name: &dyn Fn(usize) -> String,
) -> ParameterReport {
    let name = |value: Value| value.display(module, step.computation);
    let gradient = |g: &Gradient| GradientReport {
        eff: name(g.eff),
        preclip: name(g.preclip),
        raw: name(g.raw),
        measured: name(g.measured),
        constant_scale: g
            .constant_scale
            .as_ref()
            .map(|c| ConstantScaleReport { factor: c.factor, instruction: c.instruction.clone() }),
        links: g
            .links
            .iter()
            .map(|l| LinkReport { from: name(l.from), to: name(l.to), kinds: l.kinds.clone() })
            .collect(),
    };
    let (form, u, reason) = match &parameter.update.form {
        UpdateForm::Add { u } => ("add", Some(name(*u)), None),
        UpdateForm::Subtract { u } => ("subtract", Some(name(*u)), None),
        UpdateForm::Difference { reason } => ("difference", None, Some(reason.clone())),
    };
    let no_gradient = match &parameter.gradient {
        GradientStatus::Found(_) => None,
        GradientStatus::Absent { reason } => Some(reason.clone()),
    };
    ParameterReport {
        name: parameter.name.clone(),
        input: parameter.input,
        output: parameter.output,
        shape: parameter.shape.to_string(),
        elements: parameter.shape.num_elements(),
        master: parameter.master.map(input_name),
        gradient: parameter.found_gradient().map(gradient),
        no_gradient,
        update: UpdateReport {
            form,
            u,
            reason,
            new: name(parameter.update.new),
            guards: parameter.update.guards.iter().map(|&g| name(g)).collect(),
        },
        moments: parameter
            .moments
            .iter()
            .map(|m| MomentReport { name: input_name(m.input), input: m.input, form: m.form, of: m.of, decay: m.decay })
            .collect(),
        momentum: parameter
            .found_momentum()
            .iter()
            .map(|m| MomentumReport {
                name: input_name(m.input),
                input: m.input,
                form: m.form,
                coefficients: m
                    .coefficients
                    .iter()
                    .map(|c| CoefficientReport {
                        place: c.place,
                        constant: c.constant,
                        decay: c.decay.map(name),
                        complement: c.complement.map(name),
                    })
                    .collect(),
            })
            .collect(),
        no_momentum: match &parameter.momentum {
            MomentumStatus::Found(_) => None,
            MomentumStatus::Absent { reason } => Some(reason.clone()),
        },
        class: classified.class,
        class_reason: classified.reason.clone(),
        matrices: classified.matrices,
        data_driven: match &parameter.parts {
            PartsStatus::Found(parts) => Some(name(parts.value)),
            PartsStatus::Absent { .. } => None,
        },
        not_apart: match &parameter.parts {
            PartsStatus::Found(_) => None,
            PartsStatus::Absent { reason, .. } => Some(reason.clone()),
        },
        direction: match &parameter.direction {
            DirectionStatus::Found(direction) => Some(name(direction.parts.value)),
            DirectionStatus::Absent { .. } => None,
        },
        no_switch: match &parameter.direction {
            DirectionStatus::Found(_) => None,
            DirectionStatus::Absent { reason } => Some(reason.clone()),
        },
        confidence: parameter.confidence,
        reasons: parameter.reasons.clone(),
    }
}

/// On what momentum can be scaled, or why nowhere.
fn momentum(step: &TrainStep) -> Result<String, String> {
    let all = step.controlled().count();
    let mut with = 0;
    let mut numbers: BTreeSet<String> = BTreeSet::new();
    let mut reason = None;
    for (parameter, _) in step.controlled() {
        match &parameter.momentum {
            MomentumStatus::Found(found) => {
                with += 1;
                // Written as in the training code, not as rounded to the module's type.
                let number = |b: f64| format!("{}", (b * 1e6).round() / 1e6);
                let coefficients = found.iter().flat_map(|m| &m.coefficients);
                numbers.extend(coefficients.map(|c| c.constant.map_or("computed".to_owned(), number)));
            }
            MomentumStatus::Absent { reason: this } => reason = reason.or(Some(this)),
        }
    }
    if with > 0 {
        let numbers: Vec<String> = numbers.into_iter().collect();
        return Ok(format!("{with} of {all} parameters have a momentum coefficient: {}", numbers.join(", ")));
    }
    Err(none_of(all, reason.cloned()))
}

/// What can be switched to SGD with its own first moment, or why nothing.
fn switch(step: &TrainStep) -> Result<String, String> {
    let all = step.controlled().count();
    let with = step.controlled().filter(|(p, _)| matches!(p.direction, DirectionStatus::Found(_))).count();
    let reason = step.controlled().find_map(|(p, _)| match &p.direction {
        DirectionStatus::Found(_) => None,
        DirectionStatus::Absent { reason } => Some(reason.clone()),
    });
    match (with, reason) {
        (0, reason) => Err(none_of(all, reason)),
        (n, _) => Ok(format!("{n} of {all} parameters can go on by SGD with their first moment")),
    }
}

/// Which updates can be made to have equal singular values, or why none.
fn spectral(step: &TrainStep, classes: &[Classified]) -> Result<String, String> {
    let count = |chosen: &dyn Fn(&Classified) -> bool| classes.iter().filter(|found| chosen(found)).count();
    let hidden = count(&|found| matches!(found.class, TensorClass::Matrix | TensorClass::Stack));
    if hidden == 0 {
        return Err("no parameter is a matrix inside the model".to_owned());
    }
    let others = [TensorClass::Embedding, TensorClass::Head, TensorClass::Kernel, TensorClass::NoMatrix];
    let others = others.map(|class| (class, count(&|found| found.class == class)));
    let others: Vec<String> =
        others.iter().filter(|(_, n)| *n > 0).map(|(class, n)| format!("{n} x {class}")).collect();
    let all = step.parameters.len();
    Ok(format!("{hidden} of {all} parameters are matrices inside the model; {}", others.join(", ")))
}

/// Why none of `all` parameters has something; the reason is that of the first.
fn none_of(all: usize, reason: Option<String>) -> String {
    match (all, reason) {
        (0, _) | (_, None) => "no parameter has a gradient".to_owned(),
        (1, Some(reason)) => reason,
        // States differ by name alone; the others' reasons are in the JSON.
        (_, Some(reason)) => format!("{all} parameters have none; the first: {reason}"),
    }
}

/// What the controller can do with this step, and where it cannot, why.
fn actuators(step: &TrainStep, classes: &[Classified]) -> Vec<Actuator> {
    let unknown = step.inside_loop.as_ref().and_then(|around| {
        let reason = around.trips.as_ref().err()?;
        Some(format!(
            "the step is inside the loop {}, and {reason}; fix the number, or export a single step",
            around.name
        ))
    });
    let actuator = |name, detail: Result<String, String>| match unknown.clone().map_or(detail, Err) {
        Ok(detail) => Actuator { name, available: true, detail },
        Err(detail) => Actuator { name, available: false, detail },
    };
    let all = step.parameters.len();
    let measured = step.controlled().count();
    let difference = step.controlled().filter(|(p, _)| matches!(p.update.form, UpdateForm::Difference { .. })).count();
    let unclassified: Vec<_> =
        step.states.iter().filter(|s| s.class == StateClass::Unclassified).map(|s| s.name.as_str()).collect();
    let some = |detail: String| if measured > 0 { Ok(detail) } else { Err("no parameter has a gradient".to_owned()) };
    vec![
        actuator("measure-entropy", some(format!("{measured} of {all} parameters have a gradient"))),
        actuator(
            "scale-updates",
            some(match difference {
                0 => format!("{measured} parameters by their update"),
                n => format!("{} parameters by their update, {n} by the difference of new and old value", measured - n),
            }),
        ),
        actuator("scale-momentum", momentum(step)),
        actuator("switch-optimizer", switch(step)),
        actuator("spectral", spectral(step, classes)),
        actuator(
            "gate",
            if unclassified.is_empty() {
                some("every state is classified".to_owned())
            } else {
                Err(format!(
                    "what a refused step does with {} cannot be told; assign it under [states] in the policy",
                    unclassified.join(", ")
                ))
            },
        ),
    ]
}
