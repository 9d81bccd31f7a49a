//! Why a module is not controlled, in words that say what to do.

use std::fmt;

use thiserror::Error;

use crate::listed::listed;

/// Why no train step was found.
#[derive(Debug, Error)]
pub enum DiscoverError {
    /// The module breaks a rule of HLO.
    #[error("{instruction} in {computation:?} is malformed: {what}; verify the module first")]
    Malformed {
        /// The computation.
        computation: String,
        /// The instruction.
        instruction: String,
        /// What is wrong.
        what: String,
    },
    /// A called computation does not exist.
    #[error("computation {computation} does not exist; verify the module first")]
    NoSuchComputation {
        /// Its index.
        computation: String,
    },
    /// Calls are nested too deeply.
    #[error("{computation:?} is nested more than {limit} calls deep; such modules are not supported")]
    TooDeep {
        /// The computation.
        computation: String,
        /// The limit.
        limit: usize,
    },
    /// The module has no inputs or no outputs.
    #[error(
        "the module {module:?} has {inputs} input(s) and {outputs} output(s): a train step takes parameters and \
         returns their new values"
    )]
    NoStep {
        /// The module's name.
        module: String,
        /// Number of input arrays.
        inputs: usize,
        /// Number of output arrays.
        outputs: usize,
    },
    /// No input comes back as an output.
    #[error(
        "none of the {inputs} inputs comes back changed as one of the {outputs} outputs, so this computes something \
         without training it (a forward pass or an evaluation step?); export the function that returns the new \
         parameters{hint}"
    )]
    NoState {
        /// Number of input arrays.
        inputs: usize,
        /// Number of output arrays.
        outputs: usize,
        /// What else was noticed, or nothing.
        hint: String,
    },
    /// States exist, but none of them is trained by data.
    #[error(
        "{states} inputs come back as outputs, but none of them is a parameter that data trains: {reason}; export \
         the function that computes the gradient and applies it"
    )]
    NoParameters {
        /// Number of states.
        states: usize,
        /// Why none qualifies.
        reason: String,
    },
    /// Parameters were found, but not all of their gradients.
    #[error("{}", list(.0))]
    Refused(Vec<Refusal>),
}

/// Why the gradient of one tensor is not decided.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Tree path or name of the tensor.
    pub tensor: String,
    /// Its shape.
    pub shape: String,
    /// Why.
    pub kind: RefusalKind,
    /// Instructions that came into question.
    pub candidates: Vec<String>,
}

/// Reasons for a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefusalKind {
    /// One state tensor serves several parameters, as in a flattened optimizer.
    Coupled {
        /// The state.
        state: String,
        /// How many parameters it serves.
        parameters: usize,
    },
    /// The gradient is computed inside a branch of a `conditional`.
    InBranch,
    /// Parameter and moment cannot be told apart.
    Ambiguous {
        /// What is ambiguous.
        what: String,
    },
    /// No array of the parameter's shape stands between the data and its new value.
    NotFound,
    /// An opaque custom call computes the new value.
    Swallowed {
        /// The call and its target.
        call: String,
    },
}

impl Refusal {
    fn named(&self) -> String {
        format!("{} ({})", self.tensor, self.shape)
    }

    fn why(&self) -> String {
        match self.candidates.as_slice() {
            [] => self.kind.to_string(),
            candidates => format!("{} [candidates: {}]", self.kind, candidates.join(", ")),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.named(), self.why())
    }
}

impl fmt::Display for RefusalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coupled { state, parameters } => write!(
                f,
                "coupled: the state {state} serves {parameters} parameters at once (a flattened optimizer?), so no \
                 gradient can be told from the others; drop `optax.flatten` or its like"
            ),
            Self::InBranch => f.write_str(
                "its gradient is computed inside a branch of a conditional and does not exist when the branch does \
                 not run; compute it outside and choose with `jnp.where`",
            ),
            Self::Ambiguous { what } => write!(f, "ambiguous: {what}"),
            Self::NotFound => f.write_str(
                "no single array of its shape lies on every path from the data to its new value; is its update \
                 computed from several gradients, or on reshaped parameters?",
            ),
            Self::Swallowed { call } => write!(
                f,
                "its new value comes out of the opaque custom call {call}, which hides the update; use an optimizer \
                 that JAX can see"
            ),
        }
    }
}

fn list(refusals: &[Refusal]) -> String {
    let each = refusals.iter().map(|refusal| (refusal.named(), refusal.why()));
    format!("{} parameter(s) cannot be controlled, so nothing was injected: {}", refusals.len(), listed(each))
}
