//! `fuse-steps`: K steps in one launch.
//!
//! The step stays as it is, as a computation of its own; the new entry is a loop that calls it K times:
//!
//! ```text
//! entry(states, same, batches [K, ..]):
//!     (_, states', same, _, _, reports, stacks) =
//!         while i < K, from (0, states, same, batches, batches[0], zeros, zeros [K, ..])
//!     -> states', stacks with reports at K - 1
//! body(i, states, same, batches, batch, reports, stacks):
//!     states', reports' = step(states, same, batch)
//!     -> (i + 1, states', same, batches, batches[i + 1], reports', stacks with reports at i - 1)
//! ```
//!
//! What the step reads is carried into the body as a whole array, and what it makes is carried out as one: the batch is cut
//! out one step ahead, a report is put away one step late. Compilers then see the step as they see it in a program of its
//! own, where these arrays are parameters and results; a slice beside it would be fused into its first operations and move
//! roundings there. (A slice beyond the last batch gives the last batch; a report before the first step is overwritten.)
//!
//! Parameters and outputs keep their order. An input that is a batch gains a first dimension K, and so does an output that
//! is no state: what step i takes and makes is at i. A state comes out once, as it is after K steps. Aliases stay where both
//! sides still have one shape, so that state is updated in place over all steps.
//!
//! The trip count is known: the counter goes from 0, by 1, to a constant, from which XLA's compilers derive it and note it as
//! `known_trip_count`; so none asks the host whether to go on. The note is theirs to make: a `backend_config` is of another
//! format on every platform, and the TPU's compiler refuses a module that carries another's. Refused are steps partitioned over devices, steps that do more than compute their outputs
//! (host transfers, callbacks, random state of the device), and arrays that cannot be stacked.

use std::num::NonZeroU32;

use hlo::build::{Builder, Built};
use hlo::partitioning::Partitioning;
use hlo::proto::HloInstructionProto;
use hlo::{ComputationId, InstructionId, Module, Opcode, PrimitiveType, Shape, build::ComparisonDirection};
use thiserror::Error;

use crate::pass::{Changed, Context, Pass, PassError};

/// What the loop's own operations carry as metadata.
const OP_NAME: &str = "entropic/fuse-steps";

/// The pass, see the module's documentation.
#[derive(Debug, Clone)]
pub struct FuseSteps {
    /// K, the steps of one launch. With 1 the module stays as it is.
    pub steps: NonZeroU32,
    /// What each input of the step is, by parameter number.
    pub inputs: Vec<StepInput>,
    /// What each output is, by index.
    pub outputs: Vec<StepOutput>,
}

/// What an input of a step is, to a loop over steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepInput {
    /// Carried from step to step: an output is its next value.
    State,
    /// The same in every step.
    Same,
    /// Another one for every step: gains a first dimension K.
    Batch,
}

/// What an output of a step is, to a loop over steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutput {
    /// The next value of that input.
    Next(usize),
    /// What each step reports: gains a first dimension K.
    Report,
    /// Of the last step alone.
    Last,
}

/// Why steps do not go into one launch.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FuseError {
    /// What is said of inputs and outputs does not fit the module.
    #[error("the description of the step is not that of the module: {what}")]
    Description {
        /// What does not fit.
        what: String,
    },
    /// The step is split over devices.
    #[error(
        "the module is partitioned over devices: it carries a sharding over {partitions} of them, and several steps of such a \
         one cannot be put into one launch; launch single steps"
    )]
    Partitioned {
        /// Over how many.
        partitions: usize,
    },
    /// The step does something besides computing its outputs.
    #[error(
        "{instruction} ({opcode}, in {computation}) does more than compute a value, and several steps in one launch would do \
         it in an order of their own; launch single steps, or export the step without it"
    )]
    Effect {
        /// The instruction.
        instruction: String,
        /// What it is.
        opcode: String,
        /// The computation that it is in.
        computation: String,
    },
    /// An array of K of them does not exist.
    #[error("{what} is {shape}, and {steps} of them cannot be stacked: {reason}; launch single steps")]
    Stack {
        /// Input or output.
        what: String,
        /// Its shape in one step.
        shape: String,
        /// K.
        steps: NonZeroU32,
        /// Why not.
        reason: &'static str,
    },
}

impl Pass for FuseSteps {
    fn name(&self) -> &'static str {
        "fuse-steps"
    }

    fn run(&self, module: &mut Module, _: &mut Context) -> Result<Changed, PassError> {
        if self.steps == NonZeroU32::MIN {
            return Ok(Changed::No);
        }
        refuse_partitioned(module)?;
        refuse_effects(module)?;
        let step = Step::of(module)?;
        self.refuse_description(&step)?;
        let inputs = self.input_shapes(&step)?;
        let stacks = self.stack_shapes(&step)?;

        let callee = module.outline_entry("step", &inputs)?;
        let carried = Carried::new(self, &step, &inputs, &stacks);
        let condition = self.emit_condition(module, &carried)?;
        let body = self.emit_body(module, callee, &step, &carried)?;
        self.emit_entry(module, [body, condition], &step, &carried)?;
        let same_size = |output: usize, input: usize| {
            let made = stacks.get(output).and_then(Option::as_ref).or(step.outputs.get(output));
            made.zip(inputs.get(input)).is_some_and(|(output, input)| output.byte_size() == input.byte_size())
        };
        module.retain_aliases(same_size);
        Ok(Changed::Yes)
    }
}

/// The shapes of a step, before its entry is outlined.
struct Step {
    inputs: Vec<Shape>,
    outputs: Vec<Shape>,
    /// Of the root; no tuple where the step returns a bare array.
    result: Shape,
}

impl Step {
    fn of(module: &Module) -> Result<Self, PassError> {
        let entry = module.entry_computation();
        let shape = |id: InstructionId| entry.get(id).map(|i| i.shape.clone());
        let inputs = entry.parameters().into_iter().filter_map(shape).collect();
        let result = shape(entry.root()).ok_or_else(|| PassError::Stale { what: "a result".to_owned() })?;
        let outputs = if result.is_tuple() { result.tuple_elements().collect() } else { vec![result.clone()] };
        Ok(Self { inputs, outputs, result })
    }
}

/// Element numbers of the tuple that the loop carries: the counter, all inputs, then what is made for or by single steps.
struct Carried {
    /// For each input, the element that holds the batch of the step to come.
    batches: Vec<Option<usize>>,
    /// For each output that is no state, the elements that hold it.
    reports: Vec<Option<Kept>>,
    elements: Vec<Shape>,
}

/// Where an output that is no state is kept.
#[derive(Clone, Copy)]
struct Kept {
    /// What the last step made.
    last: usize,
    /// What the steps before it made.
    stack: Option<usize>,
}

impl Carried {
    const COUNTER: usize = 0;

    fn input(number: usize) -> usize {
        number + 1
    }

    fn new(fuse: &FuseSteps, step: &Step, inputs: &[Shape], stacks: &[Option<Shape>]) -> Self {
        let mut elements = vec![Shape::scalar(PrimitiveType::S32)];
        elements.extend(inputs.iter().map(row_major));
        let mut add = |shape: Shape| {
            elements.push(shape);
            elements.len() - 1
        };
        let batches = fuse.inputs.iter().zip(&step.inputs);
        let batches =
            batches.map(|(input, shape)| (*input == StepInput::Batch).then(|| add(row_major(shape)))).collect();
        let reports = fuse.outputs.iter().zip(&step.outputs).zip(stacks).map(|((output, shape), stack)| match output {
            StepOutput::Next(_) => None,
            StepOutput::Last | StepOutput::Report => {
                Some(Kept { last: add(row_major(shape)), stack: stack.clone().map(&mut add) })
            }
        });
        let reports = reports.collect();
        Self { batches, reports, elements }
    }

    fn shape(&self) -> Shape {
        Shape::tuple(self.elements.clone())
    }
}

impl FuseSteps {
    fn refuse_description(&self, step: &Step) -> Result<(), FuseError> {
        let refuse = |what: String| Err(FuseError::Description { what });
        if (self.inputs.len(), self.outputs.len()) != (step.inputs.len(), step.outputs.len()) {
            return refuse(format!(
                "it has {} inputs and {} outputs, the module {} and {}",
                self.inputs.len(),
                self.outputs.len(),
                step.inputs.len(),
                step.outputs.len()
            ));
        }
        for (number, input) in self.inputs.iter().enumerate() {
            let successors = self.outputs.iter().filter(|o| **o == StepOutput::Next(number)).count();
            let expected = usize::from(*input == StepInput::State);
            if successors != expected {
                return refuse(format!("input {number} is {input:?}, and {successors} outputs are its next value"));
            }
        }
        for (index, (output, made)) in self.outputs.iter().zip(&step.outputs).enumerate() {
            let StepOutput::Next(number) = output else { continue };
            match step.inputs.get(*number) {
                Some(input) if input.same_array(made) => {}
                Some(input) => return refuse(format!("output {index} is {made}, the input that it succeeds {input}")),
                None => return refuse(format!("output {index} succeeds input {number}, which does not exist")),
            }
        }
        Ok(())
    }

    /// The shapes of the new entry's parameters.
    fn input_shapes(&self, step: &Step) -> Result<Vec<Shape>, FuseError> {
        let shapes = self.inputs.iter().zip(&step.inputs).enumerate();
        shapes
            .map(|(number, (input, shape))| match input {
                StepInput::Batch => self.stacked(shape, &format!("input {number}")),
                StepInput::State | StepInput::Same => {
                    self.plain(shape, &format!("input {number}"))?;
                    Ok(shape.clone())
                }
            })
            .collect()
    }

    /// The stack of each output that has one.
    fn stack_shapes(&self, step: &Step) -> Result<Vec<Option<Shape>>, FuseError> {
        let shapes = self.outputs.iter().zip(&step.outputs).enumerate();
        shapes
            .map(|(index, (output, shape))| match output {
                StepOutput::Next(_) => Ok(None),
                StepOutput::Report => self.stacked(shape, &format!("output {index}")).map(Some),
                StepOutput::Last => {
                    self.plain(shape, &format!("output {index}"))?;
                    Ok(None)
                }
            })
            .collect()
    }

    /// K arrays one after another.
    fn stacked(&self, shape: &Shape, what: &str) -> Result<Shape, FuseError> {
        self.plain(shape, what)?;
        let stacked = Shape::array(shape.element_type(), &[&[i64::from(self.steps.get())], shape.dims()].concat());
        // A compiler's sizes are signed.
        if i64::try_from(stacked.num_elements()).is_err() || i32::try_from(self.steps.get()).is_err() {
            return Err(self.cannot_stack(shape, what, "that is more than can be counted"));
        }
        Ok(stacked)
    }

    /// Refuses what is no array of fixed dimensions.
    fn plain(&self, shape: &Shape, what: &str) -> Result<(), FuseError> {
        let token = matches!(shape.element_type(), PrimitiveType::TOKEN | PrimitiveType::OPAQUE_TYPE);
        if !shape.is_array() || token {
            return Err(self.cannot_stack(shape, what, "it is no array"));
        }
        if shape.to_proto().is_dynamic_dimension.contains(&true) {
            return Err(self.cannot_stack(shape, what, "its dimensions are not fixed"));
        }
        Ok(())
    }

    fn cannot_stack(&self, shape: &Shape, what: &str, reason: &'static str) -> FuseError {
        FuseError::Stack { what: what.to_owned(), shape: shape.to_string(), steps: self.steps, reason }
    }

    fn emit_condition(&self, module: &mut Module, carried: &Carried) -> Result<ComputationId, PassError> {
        let id = module.add_computation("steps.condition");
        let mut b = builder(module, id);
        let argument = b.parameter("steps.condition.carried", carried.shape())?;
        let counter = b.get_tuple_element(argument, Carried::COUNTER)?;
        let steps = b.constant(PrimitiveType::S32, f64::from(self.steps.get()))?;
        let more = b.compare(counter, steps, ComparisonDirection::Lt)?;
        b.set_root(more)?;
        Ok(id)
    }

    fn emit_body(
        &self,
        module: &mut Module,
        callee: ComputationId,
        step: &Step,
        carried: &Carried,
    ) -> Result<ComputationId, PassError> {
        let id = module.add_computation("steps.body");
        let mut b = builder(module, id);
        let argument = b.parameter("steps.body.carried", carried.shape())?;
        let elements = 0..carried.elements.len();
        let now = elements.map(|element| b.get_tuple_element(argument, element)).collect::<Result<Vec<_>, _>>()?;
        let mut next = now.clone();
        let get = |element: usize| now.get(element).copied().ok_or_else(no_element);
        let mut set = |element: usize, value| next.get_mut(element).map(|slot| *slot = value).ok_or_else(no_element);

        let zero = b.constant(PrimitiveType::S32, 0.0)?;
        let one = b.constant(PrimitiveType::S32, 1.0)?;
        let counter = get(Carried::COUNTER)?;
        let following = b.add(counter, one)?;
        let previous = b.subtract(counter, one)?;
        set(Carried::COUNTER, following)?;
        let arguments = carried.batches.iter().enumerate();
        let arguments = arguments.map(|(number, batch)| get(batch.unwrap_or(Carried::input(number))));
        let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
        let none = HloInstructionProto::default();
        // Inlined, the step's operations are named after the call: without an `op_name` they keep their own.
        b.set_scope("steps", "");
        let made =
            b.named("steps.step").emit_with(Opcode::Call, &arguments, step.result.clone(), none, vec![callee])?;
        b.set_scope("steps", OP_NAME);
        for ((number, batch), shape) in carried.batches.iter().enumerate().zip(&step.inputs) {
            let Some(batch) = *batch else { continue };
            set(batch, take(&mut b, get(Carried::input(number))?, following, zero, shape)?)?;
        }
        for (index, (output, kept)) in self.outputs.iter().zip(&carried.reports).enumerate() {
            let value = if step.result.is_tuple() { b.get_tuple_element(made, index)? } else { made };
            if let StepOutput::Next(number) = output {
                set(Carried::input(*number), value)?;
            }
            let Some(Kept { last, stack }) = *kept else { continue };
            set(last, value)?;
            if let Some(stack) = stack {
                set(stack, put(&mut b, get(stack)?, get(last)?, previous, zero)?)?;
            }
        }
        let root = b.emit(Opcode::Tuple, &next)?;
        b.set_root(root)?;
        Ok(id)
    }

    fn emit_entry(
        &self,
        module: &mut Module,
        called: [ComputationId; 2],
        step: &Step,
        carried: &Carried,
    ) -> Result<(), PassError> {
        let entry = module.entry();
        let parameters = module.entry_computation().parameters();
        let mut b = builder(module, entry);
        let zero = b.constant(PrimitiveType::S32, 0.0)?;
        let mut first = vec![zero];
        first.extend(&parameters);
        for ((batch, parameter), shape) in carried.batches.iter().zip(parameters).zip(&step.inputs) {
            if batch.is_some() {
                first.push(take(&mut b, parameter, zero, zero, shape)?);
            }
        }
        for shape in carried.elements.iter().skip(first.len()) {
            first.push(zeros(&mut b, zero, shape)?);
        }
        let first = b.emit(Opcode::Tuple, &first)?;
        let none = HloInstructionProto::default();
        let end = b.named("steps").emit_with(Opcode::While, &[first], carried.shape(), none, called.into())?;

        let last_step = b.constant(PrimitiveType::S32, f64::from(self.steps.get()) - 1.0)?;
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for (output, kept) in self.outputs.iter().zip(&carried.reports) {
            let element = match (output, kept) {
                (StepOutput::Next(number), _) => Carried::input(*number),
                (_, Some(kept)) => kept.last,
                (_, None) => return Err(no_element()),
            };
            let mut value = b.get_tuple_element(end, element)?;
            if let Some(stack) = kept.and_then(|kept| kept.stack) {
                let stack = b.get_tuple_element(end, stack)?;
                value = put(&mut b, stack, value, last_step, zero)?;
            }
            outputs.push(value);
        }
        module.set_outputs(&outputs)?;
        Ok(())
    }
}

fn no_element() -> PassError {
    PassError::Stale { what: "an array that the loop does not carry".to_owned() }
}

fn builder(module: &mut Module, computation: ComputationId) -> Builder<'_> {
    let mut b = Builder::new(module, computation);
    b.set_scope("steps", OP_NAME);
    b
}

/// Element `counter` of a stack of arrays of that shape.
fn take(
    b: &mut Builder<'_>,
    stack: InstructionId,
    counter: InstructionId,
    zero: InstructionId,
    shape: &Shape,
) -> Built {
    let sizes = [&[1], shape.dims()].concat();
    let one = b.dynamic_slice(stack, &starts(counter, zero, shape.rank()), &sizes)?;
    b.reshape(one, shape.dims())
}

/// The stack with `value` as its element `counter`.
fn put(
    b: &mut Builder<'_>,
    stack: InstructionId,
    value: InstructionId,
    counter: InstructionId,
    zero: InstructionId,
) -> Built {
    let shape = b.shape(value)?;
    let one = b.reshape(value, &[&[1], shape.dims()].concat())?;
    b.dynamic_update_slice(stack, one, &starts(counter, zero, shape.rank()))
}

fn starts(counter: InstructionId, zero: InstructionId, rank: usize) -> Vec<InstructionId> {
    std::iter::once(counter).chain(std::iter::repeat_n(zero, rank)).collect()
}

/// What a stack is before the first step.
fn zeros(b: &mut Builder<'_>, zero: InstructionId, stack: &Shape) -> Built {
    let zero = b.convert(zero, stack.element_type())?;
    let none = HloInstructionProto::default();
    if stack.rank() == 0 { Ok(zero) } else { b.emit_with(Opcode::Broadcast, &[zero], stack.clone(), none, Vec::new()) }
}

/// The same array in the layout that entry parameters have.
fn row_major(shape: &Shape) -> Shape {
    Shape::array(shape.element_type(), shape.dims())
}

fn refuse_partitioned(module: &Module) -> Result<(), PassError> {
    match Partitioning::of(module)?.filter(|split| split.partitions > 1) {
        Some(split) => Err(FuseError::Partitioned { partitions: split.partitions }.into()),
        None => Ok(()),
    }
}

/// Whatever has an effect besides its value, collectives aside: these may be in a loop as well as in its body.
fn refuse_effects(module: &Module) -> Result<(), FuseError> {
    for (_, computation) in module.computations() {
        if let Some((_, found)) = computation.instructions().find(|(_, i)| i.has_effect() && !i.is_collective()) {
            return Err(FuseError::Effect {
                instruction: found.to_string(),
                opcode: found.opcode_name().to_owned(),
                computation: computation.name.clone(),
            });
        }
    }
    Ok(())
}
