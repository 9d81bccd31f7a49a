//! `rollback`: a copy of every held state on the device, and the return to it.
//!
//! Behind the gate, with `returns` and `takes` as `control` decides, each held state s with its copy c becomes
//!
//! ```text
//! s' = select(returns, c, gated),   c' = select(takes, s', c)
//! ```
//!
//! so that the host need not know when either happens. The copies are inputs of the program, donated to their
//! successors; zero at first, since nothing returns to them before one was taken. They cost as many bytes as the held
//! states, and as many are read and written in every step: [`ControllerLayout::snapshot_bytes`] says how many.
//!
//! It needs the classes that `gate` settled and the decision of `control`.
//!
//! [`ControllerLayout::snapshot_bytes`]: crate::layout::ControllerLayout::snapshot_bytes

use std::collections::HashMap;

use hlo::build::{Builder, sanitize};
use hlo::{InstructionId, Module};

use crate::append_state::append_snapshot;
use crate::mesh;
use crate::pass::{Changed, Context, Pass, PassError};
use crate::values::{Spread, materialise, replace_outputs};

/// The pass, see the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rollback;

/// A copy of a held state, for the pass that returns it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot {
    /// Input number of the state.
    pub(crate) input: usize,
    /// The copy's next value.
    pub(crate) successor: InstructionId,
}

impl Pass for Rollback {
    fn name(&self) -> &'static str {
        "rollback"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let control = context.control()?.rollback.ok_or(PassError::Needs { pass: "control" })?;
        let step = context.step()?;
        let mut layout = context.layout()?.clone();
        let outputs = mesh::results(module.entry_computation());
        let split = mesh::is_split(module);
        let mut replacements = HashMap::new();
        let mut snapshots = Vec::new();
        let [mut returns, mut takes] = [control.returns, control.takes].map(|p| Spread::new(p).one_each(split));
        let held: Vec<_> =
            layout.states.iter().filter(|s| s.held).filter_map(|s| step.state(s.input)).cloned().collect();
        for state in held {
            let missing = || PassError::Stale { what: format!("output {}", state.output) };
            let gated = *outputs.get(state.output).ok_or_else(missing)?;
            let name = sanitize(&state.name);
            let mut b = Builder::at_entry(module);
            let old = materialise(&mut b, state.value)?;
            // What never changes needs no copy.
            if old == gated || state.stays() {
                continue;
            }
            let shape = b.shape(old)?;
            layout.snapshot_bytes += shape.byte_size();
            let copy = append_snapshot(module, &mut layout, &format!("entropic.snapshot.{name}"), shape, state.input)?;
            let mut b = Builder::at_entry(module);
            b.set_scope("entropic.rollback", "entropic/rollback");
            let (returns, takes) = (returns.over(&mut b, gated)?, takes.over(&mut b, gated)?);
            let restored = b.named(&format!("entropic.restored.{name}")).select(returns, copy, gated)?;
            let successor = b.named(&format!("entropic.new_snapshot.{name}")).select(takes, restored, copy)?;
            replacements.insert(state.output, restored);
            snapshots.push(Snapshot { input: state.input, successor });
        }
        let changed = if replacements.is_empty() { Changed::No } else { Changed::Yes };
        replace_outputs(module, &replacements)?;
        let entry = module.entry();
        module.sort(entry)?;
        context.snapshots = snapshots;
        context.layout = Some(layout);
        Ok(changed)
    }
}
