//! `inline-calls`: one flat entry for all analyses after it.
//!
//! Calls whose callee is a manual computation of Shardy (`xla.sdy` in its name) stay: their bodies are written for
//! one device, and the compiler looks for them by name.

use hlo::Module;

use crate::pass::{Changed, Context, Pass, PassError};

/// The pass, see the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub struct InlineCalls;

impl Pass for InlineCalls {
    fn name(&self) -> &'static str {
        "inline-calls"
    }

    fn run(&self, module: &mut Module, _: &mut Context) -> Result<Changed, PassError> {
        let inlined = module.inline_calls(|callee| callee.contains("xla.sdy"))?;
        Ok(if inlined > 0 { Changed::Yes } else { Changed::No })
    }
}
