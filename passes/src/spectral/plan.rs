//! Which tensors are treated, as what matrices, and why others are not.

use hlo::{Module, PrimitiveType};

use super::class::{Classified, Matrices, TensorClass, classify, loss};
use crate::layout::TensorSpectral;
use crate::mesh;
use crate::policy::{Policy, PolicyError, SpectralTensor};
use crate::step::{Parameter, PartsStatus, TrainStep};

/// What becomes of each controlled tensor under a policy, in order: of a step as it is discovered, before anything is
/// injected.
///
/// # Errors
///
/// Where a pattern of the policy names no tensor, or asks for one that cannot be treated.
pub fn plan(module: &Module, step: &TrainStep, policy: &Policy) -> Result<Vec<TensorSpectral>, PolicyError> {
    let classes = classify(module, step);
    let controlled: Vec<(&Parameter, Classified)> =
        step.parameters.iter().zip(classes).filter(|(p, _)| p.found_gradient().is_some()).collect();
    let said = policy.spectral_tensors(controlled.iter().map(|(p, _)| p.name.as_str()))?;
    let planned: Vec<TensorSpectral> = controlled
        .into_iter()
        .zip(said)
        .map(|((parameter, classified), said)| {
            let decided = decide(module, step, parameter, &classified, said, policy.spectral.min_side);
            let (matrices, reason) = match decided {
                Ok(matrices) => (Some(matrices), None),
                Err(reason) => (None, Some(reason)),
            };
            let Classified { class, reason: why, .. } = classified;
            let difference = match &parameter.parts {
                PartsStatus::Absent { reason, .. } if matrices.is_some() => Some(reason.clone()),
                _ => None,
            };
            TensorSpectral { class, why, said: said.structure(), matrices, reason, difference }
        })
        .collect();
    refuse_demanded(step, &planned, policy)?;
    Ok(planned)
}

/// Refuses a policy that asks for tensors that cannot be treated, or in whose step none is.
fn refuse_demanded(step: &TrainStep, planned: &[TensorSpectral], policy: &Policy) -> Result<(), PolicyError> {
    let names = step.controlled().map(|(p, _)| &p.name);
    let without: Vec<(&String, &String)> =
        names.zip(planned).filter_map(|(name, tensor)| Some((name, tensor.reason.as_ref()?))).collect();
    let demanded: Vec<_> = without
        .iter()
        .filter_map(|&(name, reason)| Some((name.clone(), policy.demands_spectral(name)?, reason.clone())))
        .collect();
    if !demanded.is_empty() {
        return Err(PolicyError::NotSpectral { tensors: demanded });
    }
    if without.len() == planned.len() {
        let tensors = without.into_iter().map(|(name, reason)| (name.clone(), reason.clone())).collect();
        return Err(PolicyError::NothingSpectral { tensors });
    }
    Ok(())
}

/// The matrices of a tensor that are treated, or why none is.
fn decide(
    module: &Module,
    step: &TrainStep,
    parameter: &Parameter,
    classified: &Classified,
    said: SpectralTensor,
    min_side: u32,
) -> Result<Matrices, String> {
    if said.enabled == Some(false) {
        return Err("the policy says so".to_owned());
    }
    let asked = said.enabled == Some(true);
    let dims = parameter.shape.dims();
    let hidden = matches!(classified.class, TensorClass::Matrix | TensorClass::Stack);
    if !hidden && !asked {
        return Err(format!("{}: {}", classified.class, classified.reason));
    }
    if loss(module, step).is_none() && !asked {
        return Err("no loss is recognised among the outputs, so that a head cannot be told from it".to_owned());
    }
    let matrices = classified.matrices.or_else(|| Matrices::last_axes(dims));
    let matrices = matrices.ok_or_else(|| format!("{} is no matrix", parameter.shape))?;
    let matrices = split(dims, matrices, said)?;
    let least = if asked { 2 } else { u64::from(min_side) };
    if matrices.shorter() < least {
        return Err(format!("{matrices} has a side shorter than {least} (`spectral.min_side`)"));
    }
    let element_type = parameter.shape.element_type();
    if !matches!(element_type, PrimitiveType::F32 | PrimitiveType::BF16 | PrimitiveType::F16 | PrimitiveType::F64) {
        return Err(format!("{element_type} is no type that updates of matrices are computed in"));
    }
    if let PartsStatus::Absent { reason, computed_apart: false } = &parameter.parts
        && !asked
    {
        return Err(format!("{reason}; the difference of new and old value may hold more than the update"));
    }
    refuse_split(module, step, parameter)?;
    Ok(matrices)
}

/// The matrices where several lie side by side in each.
pub(super) fn split(dims: &[i64], whole: Matrices, said: SpectralTensor) -> Result<Matrices, String> {
    let Some(parts) = said.split.filter(|&parts| parts > 1).map(u64::from) else { return Ok(whole) };
    let axis = axis(dims, said);
    let extent = dims.get(axis).copied().and_then(|d| u64::try_from(d).ok()).unwrap_or(0);
    if axis < whole.leading || extent % parts != 0 || extent == 0 {
        return Err(format!("axis {axis} of {dims:?} cannot be split into {parts} (`spectral.tensors`)"));
    }
    let of_rows = axis < whole.leading + whole.row_axes;
    let (rows, columns) =
        if of_rows { (whole.rows / parts, whole.columns) } else { (whole.rows, whole.columns / parts) };
    Ok(Matrices { count: whole.count.saturating_mul(parts), rows, columns, ..whole })
}

/// The axis along which a tensor is split.
pub(super) fn axis(dims: &[i64], said: SpectralTensor) -> usize {
    said.axis.map_or(dims.len().saturating_sub(1), |axis| axis as usize)
}

/// Refuses tensors of which devices of a mesh have parts: a product of them would be gathered from all devices.
fn refuse_split(module: &Module, step: &TrainStep, parameter: &Parameter) -> Result<(), String> {
    let own = [parameter.input].into_iter().chain(parameter.master);
    for input in own.chain(parameter.moments.iter().map(|m| m.input)) {
        if let Some(sharding) = mesh::split_of(module, input) {
            let name = step.state(input).map_or("it", |state| &state.name);
            return Err(format!(
                "{name} is split over devices ({sharding}), and each product of its update would have to be gathered"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_divides_the_side_that_its_axis_is_of() {
        let check = |dims: &[i64], leading, row_axes, said: (u32, Option<u32>), expected: Result<&str, &str>| {
            let extent = |dims: &[i64]| dims.iter().map(|&d| d as u64).product();
            let rest = &dims[leading..];
            let whole = Matrices {
                count: extent(&dims[..leading]),
                rows: extent(&rest[..row_axes]),
                columns: extent(&rest[row_axes..]),
                leading,
                row_axes,
            };
            let said = SpectralTensor { split: Some(said.0), axis: said.1, ..Default::default() };
            match (split(dims, whole, said), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, expected) => panic!("{found:?}, not {expected:?}"),
            }
        };
        check(&[8, 24], 0, 1, (3, None), Ok("3 of 8 x 8"));
        check(&[24, 8], 0, 1, (3, Some(0)), Ok("3 of 8 x 8"));
        check(&[4, 8, 24], 1, 1, (3, None), Ok("12 of 8 x 8"));
        check(&[8, 3, 8], 0, 1, (3, Some(1)), Ok("3 of 8 x 8"));
        check(&[8, 24], 0, 1, (5, None), Err("cannot be split into 5"));
        check(&[8, 24], 0, 1, (3, Some(2)), Err("axis 2"));
        check(&[3, 8, 24], 1, 1, (3, Some(0)), Err("axis 0"));
    }
}
