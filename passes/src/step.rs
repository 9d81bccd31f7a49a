//! What discovery finds: the train step, described over an entry without calls.
//!
//! A [`TrainStep`] names instructions of one module by id and stays valid while
//! passes append to that module; ids never move. Every conclusion carries the
//! reason for it, since the user sees all of it in `entropic inspect`.

use std::fmt;

use hlo::{ComputationId, Instruction, InstructionId, Module, Shape};
use serde::{Deserialize, Serialize};

use crate::loops::EnclosingLoop;

/// One array inside the value of an instruction: the `leaf`-th, depth first, of a tuple; 0 for an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// The instruction of [`TrainStep::computation`].
    pub instruction: InstructionId,
    /// Which leaf of its shape.
    pub leaf: usize,
}

/// A train step found in a module.
#[derive(Debug, Clone)]
pub struct TrainStep {
    /// Where the step is: the entry, or the body of a loop over steps.
    pub computation: ComputationId,
    /// The `while` whose body the step is, when it is one. Inputs and outputs of the step are numbered as the program's; a
    /// leaf of the loop that is none of them has a number behind all of them.
    pub inside_loop: Option<EnclosingLoop>,
    /// Where gradients are accumulated over several calls: a `pred` that holds in the call that consumes them.
    pub consumes: Option<Value>,
    /// Trainable tensors by input number, those without a gradient included.
    pub parameters: Vec<Parameter>,
    /// Every input that an output succeeds, by input number; parameters included.
    pub states: Vec<State>,
    /// Input numbers of the data: inputs that nothing succeeds.
    pub batch: Vec<usize>,
    /// Output index of the loss, where one is recognised.
    pub loss: Option<usize>,
    /// What the user should know about the step as a whole.
    pub notes: Vec<String>,
}

/// A trainable tensor and everything found about it.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Tree path where the module carries one (`params['h0']['qkv']`), else the HLO name.
    pub name: String,
    /// Input number.
    pub input: usize,
    /// Output index of the new value.
    pub output: usize,
    /// The input itself.
    pub value: Value,
    /// The value returned at `output`.
    pub new_value: Value,
    /// Shape of the tensor.
    pub shape: Shape,
    /// Input number of the wider copy that the optimizer updates, where there is one.
    pub master: Option<usize>,
    /// What the optimizer consumes, or why there is nothing.
    pub gradient: GradientStatus,
    /// How the new value comes about.
    pub update: Update,
    /// States that belong to this parameter alone.
    pub moments: Vec<Moment>,
    /// The coefficients of its first moments, or why there are none to scale.
    pub momentum: MomentumStatus,
    /// Its update taken apart, or why it could not be.
    pub parts: PartsStatus,
    /// Its update as a learning rate times a direction, or why it is none.
    pub direction: DirectionStatus,
    /// How sure discovery is.
    pub confidence: Confidence,
    /// Why, in words.
    pub reasons: Vec<String>,
}

impl Parameter {
    /// The gradient, where one was found.
    #[must_use]
    pub fn found_gradient(&self) -> Option<&Gradient> {
        match &self.gradient {
            GradientStatus::Found(gradient) => Some(gradient),
            GradientStatus::Absent { .. } => None,
        }
    }

    /// Its first moments; none where [`MomentumStatus::Absent`].
    #[must_use]
    pub fn found_momentum(&self) -> &[Momentum] {
        match &self.momentum {
            MomentumStatus::Found(found) => found,
            MomentumStatus::Absent { .. } => &[],
        }
    }
}

/// Whether a parameter has a gradient.
#[derive(Debug, Clone)]
pub enum GradientStatus {
    /// It has one.
    Found(Gradient),
    /// No gradient reaches it: frozen, unused, or updated without data. Not an error.
    Absent {
        /// Why.
        reason: String,
    },
}

/// Three views of one gradient; they coincide where nothing lies between.
#[derive(Debug, Clone)]
pub struct Gradient {
    /// What the optimizer consumes.
    pub eff: Value,
    /// Before clipping, unscaling and skipping.
    pub preclip: Value,
    /// What statistics are taken of: before clipping and skipping like `preclip`, but after unscaling, so that a
    /// loss scale does not show in its norm.
    pub measured: Value,
    /// Before additions that do not depend on data too (weight decay, noise).
    pub raw: Value,
    /// Set where `eff` is the gradient times a constant only: by how much, and where it was seen.
    pub constant_scale: Option<ConstantScale>,
    /// The links between `raw` and `eff`, in order of evaluation.
    pub links: Vec<Link>,
}

/// A constant factor at the gradient that discovery cannot tell from the gradient's own.
#[derive(Debug, Clone)]
pub struct ConstantScale {
    /// The factor.
    pub factor: f64,
    /// Name of the instruction that multiplies by it.
    pub instruction: String,
}

/// What happens to the gradient between two values.
#[derive(Debug, Clone)]
pub struct Link {
    /// The earlier value.
    pub from: Value,
    /// The later value.
    pub to: Value,
    /// Everything that lies between.
    pub kinds: Vec<LinkKind>,
}

/// Kinds of processing between two values of a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// Multiplied by a factor computed from data, as global-norm clipping does.
    ScaleByData,
    /// Multiplied or divided by a factor that the forward pass shares (a loss scale).
    Unscale,
    /// Multiplied or divided by a constant or a schedule.
    Scale,
    /// Multiplied or divided by a scalar that the optimizer keeps as state.
    StepSize,
    /// Something that does not depend on data added (weight decay, noise).
    AddUntainted,
    /// Multiplied by something of the tensor's size that does not depend on data.
    MultiplyUntainted,
    /// Chosen against another value by a predicate.
    Select,
    /// Clipped element by element.
    ElementwiseClip,
    /// Scaled by a norm of itself (adaptive clipping, trust ratio).
    SelfNorm,
    /// Element type converted.
    Convert,
    /// Put through a function that is not linear.
    Nonlinear,
    /// Combined with another value that depends on data.
    CombineData,
}

/// How the new value of a parameter comes about; for one with a master, that of the master.
#[derive(Debug, Clone)]
pub struct Update {
    /// The form.
    pub form: UpdateForm,
    /// The old value that the update starts from: the parameter or its master.
    pub old: Value,
    /// The new value before guards (`select(finite, new, old)`) are applied.
    pub new: Value,
    /// Guards between `new` and the output, outermost first.
    pub guards: Vec<Value>,
}

/// Forms of an update.
#[derive(Debug, Clone)]
pub enum UpdateForm {
    /// `new = old + u`.
    Add {
        /// The update.
        u: Value,
    },
    /// `new = old - u`.
    Subtract {
        /// The update.
        u: Value,
    },
    /// No usable `u`: it is taken as `new - old`.
    Difference {
        /// Why there is no `u`.
        reason: String,
    },
}

/// A state that belongs to one parameter.
#[derive(Debug, Clone)]
pub struct Moment {
    /// Input number of the state.
    pub input: usize,
    /// Form of its recurrence.
    pub form: MomentForm,
    /// What it accumulates.
    pub of: MomentOf,
    /// Decay, the coefficient of the old value, where it is a constant.
    pub decay: Option<f64>,
}

/// Forms of `s' = a·s + b·x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MomentForm {
    /// `a + b = 1`.
    Ema,
    /// `b = 1`.
    HeavyBall,
    /// Neither.
    Scaled,
    /// Linear in more than one other term, or in none.
    OtherLinear,
    /// Not linear in `s`.
    Nonlinear,
}

/// What a moment accumulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MomentOf {
    /// The gradient.
    Gradient,
    /// Its square.
    GradientSquared,
    /// Something else.
    Other,
}

/// Whether a parameter has a first moment whose coefficient can be scaled.
#[derive(Debug, Clone)]
pub enum MomentumStatus {
    /// It has; most optimizers keep one.
    Found(Vec<Momentum>),
    /// It has none. Not an error, unless a policy demands it.
    Absent {
        /// Why, state by state.
        reason: String,
    },
}

/// A first moment m of a parameter: m' = b·m + c·x, where x follows the sign of the gradient, the update follows that
/// of m, and b is one number below 1.
#[derive(Debug, Clone)]
pub struct Momentum {
    /// Input number of m.
    pub input: usize,
    /// What c is.
    pub form: MomentumForm,
    /// b (and c, where it is 1 - b) in m' first, then in look-aheads.
    pub coefficients: Vec<Coefficient>,
}

/// Forms of a first moment's recurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MomentumForm {
    /// m' = b·m + (1 - b)·x, however written: `m + (1 - b)·(x - m)` is one, too.
    Ema,
    /// m' = b·m + c·x, where c does not follow b: a trace, a velocity.
    HeavyBall,
}

/// A momentum coefficient b at one place, and all that multiplies by it there.
#[derive(Debug, Clone)]
pub struct Coefficient {
    /// Where it is.
    pub place: CoefficientPlace,
    /// b, where it is a constant.
    pub constant: Option<f64>,
    /// b in the graph: a scalar, or an array that holds nothing else. Absent where only 1 - b is there.
    pub decay: Option<Value>,
    /// 1 - b in the graph, likewise.
    pub complement: Option<Value>,
    /// The operands that are b or 1 - b.
    pub uses: Vec<CoefficientUse>,
}

/// Where a momentum coefficient stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CoefficientPlace {
    /// In the moment's new value.
    Moment,
    /// In what the update looks at beyond it: x + b·m' (Nesterov), or b·m + (1 - b)·x with a b of its own (Lion).
    LookAhead,
}

/// An operand that is a momentum coefficient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoefficientUse {
    /// The multiplication.
    pub instruction: InstructionId,
    /// Which of its operands.
    pub operand: usize,
    /// Whether it is b or 1 - b.
    pub part: CoefficientPart,
    /// What reads the product as a part of this moment; whatever else reads it keeps the original.
    pub readers: Vec<InstructionId>,
}

/// Whether an operand is b or 1 - b.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CoefficientPart {
    /// b.
    Decay,
    /// 1 - b.
    Complement,
}

/// Whether an update is a learning rate times a direction that a first moment could take the place of.
#[derive(Debug, Clone)]
pub enum DirectionStatus {
    /// It is.
    Found(Direction),
    /// It is not. Not an error, unless a policy demands it.
    Absent {
        /// Why.
        reason: String,
    },
}

/// Whether an update could be taken apart.
#[derive(Debug, Clone)]
pub enum PartsStatus {
    /// It could.
    Found(UpdateParts),
    /// It could not. Not an error, unless a policy demands it.
    Absent {
        /// Why.
        reason: String,
        /// Whether that is only since it is computed elsewhere, in a branch or a loop: the difference of new and old value
        /// is the update nevertheless.
        computed_apart: bool,
    },
}

/// A new value p' = `base` + `outer`·(`decay` + `inner`·`value`).
#[derive(Debug, Clone)]
pub struct UpdateParts {
    /// What the optimizer makes of the gradient, without learning rate and decoupled weight decay.
    pub value: Value,
    /// What the step is added to: the old value, or what is left of it after weight decay.
    pub base: Vec<Term>,
    /// Factors of the whole step: learning rate, schedule.
    pub outer: Factors,
    /// Decoupled weight decay, where it is inside those factors; often empty.
    pub decay: Vec<Term>,
    /// Further factors of the value alone.
    pub inner: Factors,
}

/// The parts of an update, and the first moment that could take the place of its value.
#[derive(Debug, Clone)]
pub struct Direction {
    /// The parts; their value is the direction.
    pub parts: UpdateParts,
    /// Factors that are inside the direction, where they cannot be left out: those of the numerator of a quotient.
    pub buried: Factors,
    /// The new value of its first moment.
    pub moment: Value,
}

/// A product of numbers that no data decides.
#[derive(Debug, Clone)]
pub struct Factors {
    /// Whether the product is negated.
    pub negative: bool,
    /// Whether each divides instead, and its value: a scalar, or an array that holds nothing else.
    pub factors: Vec<(bool, Value)>,
}

/// A summand that no data decides.
#[derive(Debug, Clone, Copy)]
pub struct Term {
    /// The summand.
    pub value: Value,
    /// Whether it is subtracted.
    pub negative: bool,
}

/// How sure discovery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// Some tie was broken by the alias table, or the gradient is known up to a constant only.
    Weak,
    /// Structure alone decided.
    Strong,
}

/// An input that an output succeeds.
#[derive(Debug, Clone)]
pub struct State {
    /// Tree path or HLO name.
    pub name: String,
    /// Input number.
    pub input: usize,
    /// Output index of the new value.
    pub output: usize,
    /// The input itself.
    pub value: Value,
    /// The value returned at `output`.
    pub new_value: Value,
    /// Shape.
    pub shape: Shape,
    /// What it is.
    pub role: StateRole,
    /// What a gate does with it.
    pub class: StateClass,
    /// Why it is of that class, in words.
    pub reason: String,
    /// How output and input were paired.
    pub pairing: Pairing,
}

impl State {
    /// Whether it is returned as it came.
    #[must_use]
    pub fn stays(&self) -> bool {
        self.value == self.new_value
    }
}

/// What a state is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateRole {
    /// A trainable tensor.
    Parameter,
    /// The wide copy of a parameter that the optimizer updates.
    Master,
    /// The narrow copy of a parameter that the model computes with.
    LowPrecisionCopy,
    /// A moment or another state of one parameter.
    Moment,
    /// Optimizer state that several parameters share.
    SharedMoment,
    /// An average of parameters.
    Average,
    /// Statistics of the data, as BatchNorm keeps.
    BatchStatistic,
    /// A counter that moments are corrected with.
    BiasCorrectionCounter,
    /// A counter that a schedule reads.
    ScheduleCounter,
    /// A counter that does both.
    SharedCounter,
    /// A counter of gradient accumulation.
    AccumulationCounter,
    /// A hyperparameter carried as state.
    Hyperparameter,
    /// A random key.
    RngKey,
    /// A loss scale.
    LossScale,
    /// A counter or flag that follows whether gradients were finite.
    FiniteCheck,
    /// Something the training only records.
    Metric,
    /// Returned as it came.
    Constant,
    /// Not recognised.
    Unknown,
}

/// What a gate does with a state when it rejects a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateClass {
    /// Keeps its bits.
    Held,
    /// Goes on regardless.
    Advancing,
    /// Both would be right for a part of its users; the policy decides, `held` by default.
    Both,
    /// Cannot be told; a policy that gates is refused until the user assigns it.
    Unclassified,
}

/// What paired an output with an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairing {
    /// The output is computed from the input along the cheapest path, without an alternative.
    Carry,
    /// There was an equally cheap alternative; the alias table chose.
    AliasTie,
    /// There was an equally cheap alternative and no alias entry; the order of inputs chose.
    OrderTie,
    /// A random key that is derived from the only key among the inputs.
    DerivedKey,
    /// The alias table alone says so.
    AliasOnly,
    /// Leaf of a loop's state.
    LoopCarried,
}

impl TrainStep {
    /// Trainable tensors that have a gradient: those that are measured and controlled, in order.
    pub fn controlled(&self) -> impl Iterator<Item = (&Parameter, &Gradient)> + '_ {
        self.parameters.iter().filter_map(|p| Some((p, p.found_gradient()?)))
    }

    /// Follows a pass that put another value in the place of one.
    pub(crate) fn replace(&mut self, old: Value, new: Value) {
        let follow = |value: &mut Value| {
            if *value == old {
                *value = new;
            }
        };
        for parameter in &mut self.parameters {
            parameter.for_each_value(&follow);
        }
        for state in &mut self.states {
            follow(&mut state.value);
            follow(&mut state.new_value);
        }
    }

    /// Gives inputs and outputs other numbers: what the functions return for those that they have.
    pub fn renumber(&mut self, input: &dyn Fn(usize) -> usize, output: &dyn Fn(usize) -> usize) {
        for parameter in &mut self.parameters {
            (parameter.input, parameter.output) = (input(parameter.input), output(parameter.output));
            parameter.master = parameter.master.map(input);
            for moment in &mut parameter.moments {
                moment.input = input(moment.input);
            }
            if let MomentumStatus::Found(found) = &mut parameter.momentum {
                for momentum in found {
                    momentum.input = input(momentum.input);
                }
            }
        }
        for state in &mut self.states {
            (state.input, state.output) = (input(state.input), output(state.output));
        }
        for number in &mut self.batch {
            *number = input(*number);
        }
        self.loss = self.loss.map(output);
        self.parameters.sort_by_key(|p| p.input);
        self.states.sort_by_key(|s| s.input);
        self.batch.sort_unstable();
    }

    /// The state that input `input` is, where it is one.
    #[must_use]
    pub fn state(&self, input: usize) -> Option<&State> {
        self.states.iter().find(|s| s.input == input)
    }
}

impl Parameter {
    fn for_each_value(&mut self, visit: &dyn Fn(&mut Value)) {
        for value in [&mut self.value, &mut self.new_value, &mut self.update.old, &mut self.update.new] {
            visit(value);
        }
        if let GradientStatus::Found(gradient) = &mut self.gradient {
            for value in [&mut gradient.eff, &mut gradient.preclip, &mut gradient.measured, &mut gradient.raw] {
                visit(value);
            }
            gradient.links.iter_mut().flat_map(|link| [&mut link.from, &mut link.to]).for_each(visit);
        }
        self.update.guards.iter_mut().for_each(visit);
        if let UpdateForm::Add { u } | UpdateForm::Subtract { u } = &mut self.update.form {
            visit(u);
        }
        if let MomentumStatus::Found(found) = &mut self.momentum {
            let coefficients = found.iter_mut().flat_map(|m| &mut m.coefficients);
            coefficients.flat_map(|c| [&mut c.decay, &mut c.complement]).flatten().for_each(visit);
        }
        if let PartsStatus::Found(parts) = &mut self.parts {
            parts.for_each_value(visit);
        }
        if let DirectionStatus::Found(direction) = &mut self.direction {
            direction.parts.for_each_value(visit);
            visit(&mut direction.moment);
            direction.buried.factors.iter_mut().for_each(|(_, value)| visit(value));
        }
    }
}

impl UpdateParts {
    fn for_each_value(&mut self, visit: &dyn Fn(&mut Value)) {
        visit(&mut self.value);
        self.base.iter_mut().chain(&mut self.decay).for_each(|term| visit(&mut term.value));
        let factors = [&mut self.outer, &mut self.inner];
        factors.into_iter().flat_map(|f| &mut f.factors).for_each(|(_, value)| visit(value));
    }
}

impl Value {
    /// The value of an array instruction.
    #[must_use]
    pub fn array(instruction: InstructionId) -> Self {
        Self { instruction, leaf: 0 }
    }

    /// The instruction, where the module has it.
    #[must_use]
    pub fn resolve(self, module: &Module, computation: ComputationId) -> Option<&Instruction> {
        module.computation(computation)?.get(self.instruction)
    }

    /// Shape of the array.
    #[must_use]
    pub fn shape(self, module: &Module, computation: ComputationId) -> Option<Shape> {
        self.resolve(module, computation)?.shape.leaves().nth(self.leaf)
    }

    /// The instruction's name, with the leaf where it is a tuple (`%while.3{5}`).
    #[must_use]
    pub fn display(self, module: &Module, computation: ComputationId) -> String {
        match self.resolve(module, computation) {
            Some(i) if i.shape.is_tuple() => format!("{i}{{{}}}", self.leaf),
            Some(i) => i.to_string(),
            None => format!("%?{}", self.instruction.index()),
        }
    }
}

impl fmt::Display for StateClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held => "held",
            Self::Advancing => "advancing",
            Self::Both => "both",
            Self::Unclassified => "unclassified",
        })
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weak => "weak",
            Self::Strong => "strong",
        })
    }
}
