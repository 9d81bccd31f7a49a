//! Trains a bundle under control through xla-rs instead of this crate's own PJRT client:
//! `cargo run --features xla-rs --example xla_rs -- models/mlp 20`.

use std::path::Path;

use anyhow::{Context, Result};
use entropic::bundle::manifest::{InputRole, OutputRole};
use entropic::model::Model;
use entropic::target::Platform;
use entropic::train::controller_arrays;
use entropic::xla_rs::{computation, element_type};
use passes::Policy;
use xla::{Literal, PjRtBuffer, PjRtClient, PjRtLoadedExecutable};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("give a bundle's folder, such as models/mlp")?;
    let steps: usize = arguments.next().map_or(Ok(20), |n| n.parse()).context("the number of steps")?;
    let policy = Policy::default();
    let bundle = Model::open(Path::new(&folder))?.inject(&policy, Platform::Cpu)?;
    let manifest = &bundle.manifest;
    let client = PjRtClient::cpu()?;

    // The initial state comes from a seed, the controller's from its layout, the batch is the same in every step.
    let (init, module) =
        (manifest.init.as_ref().context("no init")?, bundle.init_module()?.context("no initial state")?);
    let program = client.compile(&computation(&module)?)?;
    let seed = Literal::create_from_shape_and_untyped_data(element_type(init.seed_dtype)?, &[], &[0; 4])?;
    let mut values: Vec<Option<Literal>> = manifest.inputs.iter().map(|_| None).collect();
    for (&input, value) in init.outputs.iter().zip(execute(&program, &[&seed], init.outputs.len())?) {
        *values.get_mut(input).context("an input that is not there")? = Some(value);
    }
    let controller = manifest.controller.as_ref().context("no controller")?;
    for array in controller_arrays(&controller.layout, &policy)? {
        *values.get_mut(array.input).context("an input that is not there")? =
            Some(literal(array.dtype, &array.shape, &array.bytes)?);
    }
    for (value, input) in values.iter_mut().zip(&manifest.inputs) {
        if input.role == InputRole::Batch {
            let bytes = input.shape.iter().product::<i64>() * i64::try_from(input.dtype.primitive().bits() / 8)?;
            *value = Some(literal(input.dtype, &input.shape, &vec![0; usize::try_from(bytes)?])?);
        }
    }
    let mut values = values.into_iter().collect::<Option<Vec<Literal>>>().context("an input without a value")?;

    let program = client.compile(&computation(&bundle.module)?)?;
    for step in 0..steps {
        let outputs = execute(&program, &values.iter().collect::<Vec<_>>(), manifest.outputs.len())?;
        for (output, value) in manifest.outputs.iter().zip(outputs) {
            if output.role == OutputRole::Loss {
                println!("step {step}: loss {}", value.get_first_element::<f32>()?);
            }
            if let Some(slot) = output.input.and_then(|input| values.get_mut(input)) {
                *slot = value;
            }
        }
    }
    Ok(())
}

fn literal(dtype: entropic::bundle::Dtype, shape: &[i64], bytes: &[u8]) -> Result<Literal> {
    let dims = shape.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>()?;
    Ok(Literal::create_from_shape_and_untyped_data(element_type(dtype)?, &dims, bytes)?)
}

/// Runs a program; a result of several arrays is one tuple, or comes apart, by the version of the C++ library.
fn execute(program: &PjRtLoadedExecutable, inputs: &[&Literal], outputs: usize) -> Result<Vec<Literal>> {
    let owned: Vec<&Literal> = inputs.to_vec();
    let results: Vec<PjRtBuffer> = program.execute(&owned)?.into_iter().next().context("no result")?;
    match results.as_slice() {
        [tuple] if outputs > 1 => Ok(tuple.to_literal_sync()?.to_tuple()?),
        arrays => arrays.iter().map(|a| Ok(a.to_literal_sync()?)).collect(),
    }
}
