//! Whether a manifest and its modules agree.
//!
//! A train loop that believed a wrong manifest would feed a moment into a
//! parameter, so everything that both say is compared before anything runs: every input and
//! output, who succeeds whom, the computations for the initial state and the held-out loss, and the batch.

use std::collections::HashMap;
use std::num::NonZeroU32;

use hlo::partitioning::Partitioning;
use hlo::{Module, Shape};
use passes::ControllerLayout;
use passes::layout::{ArrayKind, ControllerInput, LAYOUT_FORMAT_VERSION, length};
use thiserror::Error;

use super::manifest::{Controller, Data, Eval, Init, Input, InputRole, Manifest, Output, OutputRole};

/// A contradiction. `place` is the path in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}: {message}")]
pub struct CheckError {
    /// Path in the manifest, such as `inputs[3].shape`.
    pub place: String,
    /// What is wrong and what was expected.
    pub message: String,
}

fn refuse<T>(place: impl Into<String>, message: impl Into<String>) -> Result<T, CheckError> {
    Err(CheckError { place: place.into(), message: message.into() })
}

/// Compares a manifest with itself and with its step.
///
/// # Errors
///
/// The first contradiction.
pub fn check(manifest: &Manifest, module: &Module) -> Result<(), CheckError> {
    check_launch(manifest)?;
    check_inputs(manifest, module)?;
    check_outputs(manifest, module)?;
    check_successors(manifest)?;
    check_partitions(manifest, module)?;
    for (place, file) in [
        ("module", Some(&manifest.module)),
        ("init.file", manifest.init.as_ref().map(|i| &i.file)),
        ("eval.file", manifest.eval.as_ref().map(|e| &e.file)),
    ] {
        if let Some(file) = file
            && (file.is_empty() || file.contains(['/', '\\']) || file == "." || file == "..")
        {
            return refuse(place, format!("{file:?} must be the name of a file inside the bundle's folder"));
        }
    }
    if let Some(init) = &manifest.init {
        check_init(manifest, init)?;
    }
    if let Some(eval) = &manifest.eval
        && let Some(position) = eval.inputs.iter().position(|&i| i >= manifest.inputs.len())
    {
        return refuse(format!("eval.inputs[{position}]"), beyond_inputs(manifest));
    }
    if let Some(data) = &manifest.data {
        check_data(manifest, data)?;
    }
    check_controller(manifest)
}

/// Whether there is one batch and one report for each step of a launch.
fn check_launch(manifest: &Manifest) -> Result<(), CheckError> {
    let batches = manifest.inputs.iter().enumerate().filter(|(_, i)| i.role == InputRole::Batch);
    let batches = batches.map(|(n, i)| (format!("inputs[{n}] ({})", i.name), array(i), &i.shape));
    let reports = manifest.outputs.iter().enumerate().filter(|(_, o)| o.role.is_report());
    let reports = reports.map(|(n, o)| (format!("outputs[{n}] ({})", o.name), output_array(o), &o.shape));
    for (place, array, shape) in batches.chain(reports) {
        if manifest.launch.one_step(shape).is_none() {
            let steps = manifest.launch.steps;
            return refuse(
                place,
                format!("it is {array}; a launch does {steps} steps, which must be the first dimension"),
            );
        }
    }
    Ok(())
}

fn check_inputs(manifest: &Manifest, module: &Module) -> Result<(), CheckError> {
    let entry = module.entry_computation();
    let parameters = entry.parameters();
    let count = manifest.inputs.len();
    if count != parameters.len() {
        let hint = if count < parameters.len() { "an input is missing" } else { "there is an input too many" };
        return refuse(
            "inputs",
            format!(
                "{count} are listed, but the module takes {}; {hint}, or the module is another one",
                parameters.len()
            ),
        );
    }
    let mut seen = HashMap::new();
    for (index, (input, id)) in manifest.inputs.iter().zip(parameters).enumerate() {
        if let Some(first) = seen.insert(&input.name, index) {
            return refuse(
                format!("inputs[{index}].name"),
                format!("{:?} is also the name of inputs[{first}]; names must be unique", input.name),
            );
        }
        let shape = entry.get(id).map(|i| i.shape.clone()).unwrap_or_default();
        agree(&format!("inputs[{index}] ({})", input.name), &array(input), &shape, "the module's parameter")?;
    }
    Ok(())
}

fn check_outputs(manifest: &Manifest, module: &Module) -> Result<(), CheckError> {
    let shapes = output_shapes(module);
    if shapes.len() != manifest.outputs.len() {
        return refuse(
            "outputs",
            format!("{} are listed, but the module returns {}", manifest.outputs.len(), shapes.len()),
        );
    }
    for (index, (output, shape)) in manifest.outputs.iter().zip(&shapes).enumerate() {
        agree(&format!("outputs[{index}] ({})", output.name), &output_array(output), shape, "the module's output")?;
    }
    let mut losses = manifest.outputs.iter().enumerate().filter(|(_, o)| o.role == OutputRole::Loss);
    if let Some((index, loss)) = losses.next() {
        let scalar = manifest.launch.one_step(&loss.shape).is_some_and(<[i64]>::is_empty);
        if !scalar || !loss.dtype.primitive().is_floating() {
            return refuse(format!("outputs[{index}]"), "the loss must be a floating scalar");
        }
        if let Some((second, _)) = losses.next() {
            return refuse(format!("outputs[{second}].role"), format!("outputs[{index}] is the loss already"));
        }
    }
    Ok(())
}

fn check_successors(manifest: &Manifest) -> Result<(), CheckError> {
    let mut successor = HashMap::new();
    for (index, output) in manifest.outputs.iter().enumerate() {
        let place = format!("outputs[{index}]");
        let Some(number) = output.input else { continue };
        let Some(input) = manifest.inputs.get(number) else {
            return refuse(format!("{place}.input"), beyond_inputs(manifest));
        };
        let Some(role) = input.role.successor() else {
            return refuse(
                format!("{place}.input"),
                format!("inputs[{number}] ({}) is no state, nothing can be its next value", input.name),
            );
        };
        if role != output.role {
            return refuse(
                format!("{place}.role"),
                format!("it is the next value of inputs[{number}] ({}), and must have that input's role", input.name),
            );
        }
        if !array(input).same_array(&output_array(output)) {
            return refuse(
                place,
                format!("{} cannot be the next value of {} ({})", output_array(output), array(input), input.name),
            );
        }
        if let Some(first) = successor.insert(number, index) {
            return refuse(
                format!("{place}.input"),
                format!("outputs[{first}] is already the next value of inputs[{number}] ({})", input.name),
            );
        }
    }
    for (index, input) in manifest.inputs.iter().enumerate() {
        if input.role.is_state() && !successor.contains_key(&index) {
            return refuse(
                format!("inputs[{index}] ({})", input.name),
                "no output is its next value; an input without one is batch",
            );
        }
    }
    Ok(())
}

/// Whether the manifest says over how many devices the module is split.
fn check_partitions(manifest: &Manifest, module: &Module) -> Result<(), CheckError> {
    let (said, found) = (manifest.launch.partitions, partitions(module)?);
    if said == found {
        return Ok(());
    }
    refuse(
        "launch.partitions",
        format!(
            "it is {said}, and the module is split over {found} devices; write `\"launch\": {{\"partitions\": {found}}}`"
        ),
    )
}

/// Over how many devices a module is split.
pub(crate) fn partitions(module: &Module) -> Result<NonZeroU32, CheckError> {
    let found = match Partitioning::of(module) {
        Ok(found) => found.map_or(1, |p| p.partitions),
        Err(error) => return refuse("module", error.to_string()),
    };
    Ok(u32::try_from(found).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN))
}

fn check_init(manifest: &Manifest, init: &Init) -> Result<(), CheckError> {
    let carried = |i: &&(usize, &Input)| i.1.role.is_state() && i.1.role != InputRole::Control;
    let expected: Vec<usize> = manifest.inputs.iter().enumerate().filter(|i| carried(&i)).map(|(i, _)| i).collect();
    if let Some(&missing) = expected.iter().find(|i| !init.outputs.contains(i)) {
        let name = manifest.inputs.get(missing).map_or("", |i| &i.name);
        return refuse("init.outputs", format!("input {missing} ({name}) is missing, it would have no initial value"));
    }
    if init.outputs != expected {
        return refuse(
            "init.outputs",
            "every input that is carried from step to step must be listed once, in ascending order",
        );
    }
    Ok(())
}

fn check_data(manifest: &Manifest, data: &Data) -> Result<(), CheckError> {
    let Some(input) = manifest.inputs.get(data.input) else {
        return refuse("data.input", beyond_inputs(manifest));
    };
    if input.role != InputRole::Batch {
        return refuse("data.input", format!("input {} ({}) is not of role batch", data.input, input.name));
    }
    if let Some((other, _)) =
        manifest.inputs.iter().enumerate().find(|&(i, n)| n.role == InputRole::Batch && i != data.input)
    {
        return refuse("data.input", format!("inputs[{other}] is a batch input too, and nothing says how to make it"));
    }
    if !input.dtype.primitive().is_integral() {
        return refuse("data.input", format!("{} is {}; token ids are integers", input.name, array(input)));
    }
    let dims = [data.batch, data.window].map(|d| i64::try_from(d).unwrap_or(i64::MAX));
    if manifest.launch.one_step(&input.shape) != Some(&dims) || dims.contains(&0) {
        return refuse(
            "data",
            format!(
                "batch {} and window {} do not agree with {} {}",
                data.batch,
                data.window,
                input.name,
                array(input)
            ),
        );
    }
    let largest = match input.dtype.primitive().bits() {
        bits @ 1..64 => 1u64 << (bits - u64::from(input.dtype.name().starts_with("int"))),
        _ => u64::MAX,
    };
    if data.vocab < 256 || data.vocab > largest {
        return refuse(
            "data.vocab",
            format!(
                "{} token ids; at least the 256 byte values are needed, and {} holds {largest}",
                data.vocab,
                input.dtype.name()
            ),
        );
    }
    Ok(())
}

/// Whether the controller's arrays are where its layout says.
fn check_controller(manifest: &Manifest) -> Result<(), CheckError> {
    let expected_inputs: Vec<_> =
        (0..).zip(&manifest.inputs).filter(|(_, i)| matches!(i.role, InputRole::Control | InputRole::Policy)).collect();
    let expected_outputs: Vec<_> = (0..)
        .zip(&manifest.outputs)
        .filter(|(_, o)| matches!(o.role, OutputRole::Control | OutputRole::Telemetry))
        .collect();
    let Some(Controller { layout, .. }) = &manifest.controller else {
        return match (expected_inputs.first(), expected_outputs.first()) {
            (Some((index, _)), _) => {
                refuse(format!("inputs[{index}].role"), "there is no `controller` that it belongs to")
            }
            (_, Some((index, _))) => {
                refuse(format!("outputs[{index}].role"), "there is no `controller` that it belongs to")
            }
            (None, None) => Ok(()),
        };
    };
    if layout.format_version != LAYOUT_FORMAT_VERSION {
        return refuse(
            "controller.layout.format_version",
            format!("{}, and this program reads {LAYOUT_FORMAT_VERSION}; inject again", layout.format_version),
        );
    }
    let input_role = |kind| if kind == ArrayKind::Policy { InputRole::Policy } else { InputRole::Control };
    let output_role = |kind| if kind == ArrayKind::Telemetry { OutputRole::Telemetry } else { OutputRole::Control };
    let inputs_agree = layout.inputs.len() == expected_inputs.len()
        && layout.inputs.iter().zip(&expected_inputs).all(|(said, (index, input))| {
            let array = Shape::array(input.dtype.primitive(), &said.dims);
            said.parameter == *index
                && input_role(said.kind) == input.role
                && self::array(input).same_array(&array)
                && elements(manifest, layout, said) == Some(array.num_elements())
        });
    if !inputs_agree {
        return refuse("controller.layout.inputs", "they are not the inputs of role control and policy");
    }
    let outputs_agree = layout.outputs.len() == expected_outputs.len()
        && layout.outputs.iter().zip(&expected_outputs).all(|(said, (index, output))| {
            let report = output.role.is_report();
            let shape = if report { manifest.launch.one_step(&output.shape) } else { Some(output.shape.as_slice()) };
            said.output == *index && output_role(said.kind) == output.role && shape == Some(&said.dims)
        });
    if !outputs_agree {
        return refuse("controller.layout.outputs", "they are not the outputs of role control and telemetry");
    }
    Ok(())
}

/// Compares `init` with its module.
///
/// # Errors
///
/// The first contradiction.
pub fn check_init_module(manifest: &Manifest, init: &Init, module: &Module) -> Result<(), CheckError> {
    let entry = module.entry_computation();
    let seed = Shape::scalar(init.seed_dtype.primitive());
    let parameters = entry.parameters();
    let [parameter] = parameters.as_slice() else {
        return refuse("init.file", format!("{} takes {} inputs, not one seed", init.file, parameters.len()));
    };
    let found = entry.get(*parameter).map(|i| i.shape.clone()).unwrap_or_default();
    agree("init.seed_dtype", &seed, &found, &format!("the seed of {}", init.file))?;
    if !init.seed_dtype.primitive().is_integral() {
        return refuse("init.seed_dtype", "a seed is an integer");
    }
    let shapes = output_shapes(module);
    if shapes.len() != init.outputs.len() {
        return refuse(
            "init.outputs",
            format!("{} are listed, but {} returns {}", init.outputs.len(), init.file, shapes.len()),
        );
    }
    for (index, (&number, shape)) in init.outputs.iter().zip(&shapes).enumerate() {
        if let Some(input) = manifest.inputs.get(number) {
            let place = format!("init.outputs[{index}] ({})", input.name);
            agree(&place, &array(input), shape, &format!("the output of {}", init.file))?;
        }
    }
    Ok(())
}

/// Compares `eval` with its module.
///
/// # Errors
///
/// The first contradiction.
pub fn check_eval_module(manifest: &Manifest, eval: &Eval, module: &Module) -> Result<(), CheckError> {
    let entry = module.entry_computation();
    let parameters = entry.parameters();
    if parameters.len() != eval.inputs.len() {
        return refuse(
            "eval.inputs",
            format!("{} are listed, but {} takes {}", eval.inputs.len(), eval.file, parameters.len()),
        );
    }
    for (index, (&number, id)) in eval.inputs.iter().zip(parameters).enumerate() {
        let shape = entry.get(id).map(|i| i.shape.clone()).unwrap_or_default();
        if let Some(input) = manifest.inputs.get(number) {
            let place = format!("eval.inputs[{index}] ({})", input.name);
            // One evaluation takes one batch, whatever a launch of the step takes.
            let batch = (input.role == InputRole::Batch).then(|| manifest.launch.one_step(&input.shape)).flatten();
            let said = Shape::array(input.dtype.primitive(), batch.unwrap_or(&input.shape));
            agree(&place, &said, &shape, &format!("the parameter of {}", eval.file))?;
        }
    }
    match output_shapes(module).as_slice() {
        [loss] if loss.is_scalar() && loss.element_type().is_floating() => Ok(()),
        other => refuse(
            "eval.file",
            format!("{} must return one floating scalar, it returns {} values", eval.file, other.len()),
        ),
    }
}

/// Number of elements that one of the controller's inputs must have.
fn elements(manifest: &Manifest, layout: &ControllerLayout, input: &ControllerInput) -> Option<u64> {
    let fields = match input.kind {
        ArrayKind::Policy => &layout.policy,
        ArrayKind::State => &layout.state,
        ArrayKind::Counters => &layout.counters,
        ArrayKind::Telemetry => &layout.telemetry,
        ArrayKind::Snapshot => return manifest.inputs.get(input.copy_of?).map(|of| array(of).num_elements()),
    };
    Some(length(fields) as u64)
}

/// The shapes of what a module returns.
pub(crate) fn output_shapes(module: &Module) -> Vec<Shape> {
    match module.entry_computation().root_instruction() {
        Some(root) if root.shape.is_tuple() => root.shape.tuple_elements().collect(),
        Some(root) => vec![root.shape.clone()],
        None => Vec::new(),
    }
}

fn array(input: &Input) -> Shape {
    Shape::array(input.dtype.primitive(), &input.shape)
}

fn output_array(output: &Output) -> Shape {
    Shape::array(output.dtype.primitive(), &output.shape)
}

fn agree(place: &str, said: &Shape, found: &Shape, what: &str) -> Result<(), CheckError> {
    if said.same_array(found) { Ok(()) } else { refuse(place, format!("the manifest says {said}, {what} is {found}")) }
}

fn beyond_inputs(manifest: &Manifest) -> String {
    format!("there is no such input, there are {}", manifest.inputs.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies an edit to mlp's manifest and expects a refusal that contains all of `parts`.
    fn check_edit(edit: impl FnOnce(&mut Manifest), parts: &[&str]) {
        let mut manifest = Manifest::from_json(include_str!("../../models/mlp/manifest.json")).unwrap();
        let module = Module::import(include_bytes!("../../models/mlp/module.hlo.pb")).unwrap();
        check(&manifest, &module).unwrap();
        edit(&mut manifest);
        let error = check(&manifest, &module).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }

    #[test]
    fn inputs_must_be_those_of_the_module() {
        check_edit(|m| _ = m.inputs.pop(), &["inputs: 16", "takes 17", "missing"]);
        check_edit(|m| m.inputs.push(m.inputs[0].clone()), &["inputs: 18", "too many"]);
        check_edit(|m| m.inputs[1].name = m.inputs[0].name.clone(), &["inputs[1].name", "inputs[0]"]);
        check_edit(|m| m.inputs[2].shape = vec![63], &["inputs[2] (params['hidden_bias'])", "f32[63]", "f32[64]"]);
        check_edit(|m| m.inputs[5].dtype = m.inputs[0].dtype, &["inputs[5]", "f32[]", "s32[]"]);
        check_edit(|m| m.inputs.swap(0, 1), &["inputs[0]", "the module's parameter is f32[256,32]"]);
    }

    #[test]
    fn outputs_must_be_those_of_the_module() {
        check_edit(|m| _ = m.outputs.pop(), &["outputs: 16", "returns 17"]);
        check_edit(|m| m.outputs[0].shape = vec![1], &["outputs[0]", "f32[1]"]);
        check_edit(|m| m.outputs[0].role = OutputRole::Loss, &["outputs[0]", "floating scalar"]);
    }

    #[test]
    fn every_state_has_exactly_one_successor() {
        check_edit(|m| m.outputs[0].input = Some(99), &["outputs[0].input", "there are 17"]);
        check_edit(|m| m.outputs[0].input = Some(16), &["outputs[0].input", "tokens", "no state"]);
        check_edit(|m| m.outputs[0].input = Some(6), &["outputs[0].role"]);
        check_edit(|m| m.outputs[0].input = Some(1), &["outputs[0]", "params['hidden']"]);
        check_edit(|m| m.outputs[11].input = Some(6), &["outputs[11].input", "outputs[6]"]);
        check_edit(|m| m.outputs[5].input = None, &["inputs[5] (opt_state[0].count)", "no output"]);
        check_edit(|m| m.inputs[16].role = InputRole::State, &["inputs[16] (tokens)"]);
    }

    #[test]
    fn the_number_of_partitions_is_that_of_the_module() {
        let eight = NonZeroU32::new(8).unwrap();
        check_edit(|m| m.launch.partitions = eight, &["launch.partitions", "it is 8", "over 1 devices"]);
    }

    #[test]
    fn init_eval_and_data_must_fit() {
        check_edit(|m| _ = m.init.as_mut().unwrap().outputs.remove(3), &["init.outputs", "params['out']"]);
        check_edit(|m| m.init.as_mut().unwrap().outputs.swap(0, 1), &["init.outputs", "ascending"]);
        check_edit(|m| m.init.as_mut().unwrap().file = "../x".into(), &["init.file", "inside"]);
        check_edit(|m| m.eval.as_mut().unwrap().inputs[2] = 77, &["eval.inputs[2]"]);
        check_edit(|m| m.data.as_mut().unwrap().input = 0, &["data.input", "not of role batch"]);
        check_edit(|m| m.data.as_mut().unwrap().window = 8, &["data: batch 64 and window 8", "s32[64,9]"]);
        check_edit(|m| m.data.as_mut().unwrap().vocab = 10, &["data.vocab"]);
    }

    #[test]
    fn init_and_eval_modules_must_be_what_the_manifest_says() {
        let manifest = Manifest::from_json(include_str!("../../models/mlp/manifest.json")).unwrap();
        let [init, eval, step] = [
            &include_bytes!("../../models/mlp/init.hlo.pb")[..],
            include_bytes!("../../models/mlp/eval.hlo.pb"),
            include_bytes!("../../models/mlp/module.hlo.pb"),
        ]
        .map(|b| Module::import(b).unwrap());
        let (said_init, said_eval) = (manifest.init.as_ref().unwrap(), manifest.eval.as_ref().unwrap());
        check_init_module(&manifest, said_init, &init).unwrap();
        check_eval_module(&manifest, said_eval, &eval).unwrap();
        assert!(check_init_module(&manifest, said_init, &step).unwrap_err().to_string().contains("not one seed"));
        assert!(check_eval_module(&manifest, said_eval, &step).unwrap_err().to_string().contains("eval.inputs"));
        let mut short = said_init.clone();
        short.outputs.swap(0, 1);
        assert!(check_init_module(&manifest, &short, &init).unwrap_err().to_string().contains("init.outputs[0]"));
    }
}
