//! `count-zeros`: how much of every gradient is nothing.
//!
//! Of each gradient g, before clipping, the pass counts
//!
//! ```text
//! z = Σ [|g| ≤ tolerance]
//! ```
//!
//! It needs the step that `discover` found and appends one output to the program, z as s32\[n\], with one element per
//! tensor in the order of [`TrainStep::controlled`](passes::TrainStep::controlled). z is exact below 2³¹ elements.
//! It changes nothing else. Of a step inside a loop it needs the body: between `enter-loop` and `leave-loop` z becomes s32\[K, n\].

use hlo::build::{Builder, ComparisonDirection};
use hlo::{Module, Opcode, PrimitiveType};
use passes::values::materialise;
use passes::{Changed, Context, Pass, PassError};

/// The pass, see the module's documentation.
#[derive(Debug, Clone, Copy)]
pub struct CountZeros {
    /// The largest magnitude that counts as nothing; 0 counts exact zeros.
    pub tolerance: f32,
}

impl Pass for CountZeros {
    fn name(&self) -> &'static str {
        "count-zeros"
    }

    fn run(&self, module: &mut Module, context: &mut Context) -> Result<Changed, PassError> {
        let step = context.step()?;
        if step.inside_loop.is_some() {
            return Err(PassError::Needs { pass: "enter-loop" });
        }
        let gradients: Vec<_> = step.controlled().map(|(p, g)| (p.name.clone(), g.measured)).collect();
        if gradients.is_empty() {
            return Err(PassError::NothingToControl { reasons: "  no gradient was found".to_owned() });
        }

        let sum = Builder::reducer(module, "entropic.zeros.sum", Opcode::Add, PrimitiveType::S32)?;
        let mut b = Builder::at_entry(module);
        let mut counts = Vec::with_capacity(gradients.len());
        for (name, gradient) in gradients {
            b.set_scope("entropic.zeros", &format!("entropic/count-zeros/{name}"));
            let gradient = materialise(&mut b, gradient)?;
            let size = b.abs(gradient)?;
            let tolerance = b.constant(b.shape(size)?.element_type(), f64::from(self.tolerance))?;
            let tolerance = b.broadcast_scalar_like(tolerance, size)?;
            let nothing = b.compare(size, tolerance, ComparisonDirection::Le)?;
            let ones = b.convert(nothing, PrimitiveType::S32)?;
            let zero = b.constant(PrimitiveType::S32, 0.0)?;
            counts.push(b.reduce_all(ones, zero, sum)?);
        }
        let counts = b.named("entropic.zeros").pack(&counts)?;
        module.append_output(counts)?;
        let entry = module.entry();
        module.sort(entry)?;
        Ok(Changed::Yes)
    }
}

/// What the pass emits, in plain Rust: the reference that its output is held to.
pub fn zeros(gradient: &[f32], tolerance: f32) -> i32 {
    gradient.iter().map(|g| i32::from(g.abs() <= tolerance)).sum()
}
