//! The rules that a module must obey before a compiler sees it.
//!
//! [`verify`] reports *every* violation in one run: the rule, the place, the
//! printed instruction and what is wrong with it. A module that passes is
//! exported to something that XLA's importer accepts; later stages may still
//! return errors on it, but do not panic. Linear in the size of the module.
//!
//! Each rule has an id and exactly one refusing test. What a rule means is
//! written at its variant of [`Rule`]; in order of their ids they concern:
//!
//! - V001 to V015: computations, names, ids and evaluation order;
//! - V016 to V026: the signature, aliases and donors;
//! - V027 to V032: shapes and layouts;
//! - V033 to V040: called computations, attributes and what XLA asks besides.

use std::fmt;

use thiserror::Error;

use crate::ir::{Computation, Instruction, Module};
use crate::text;

mod instruction;
mod order;
mod signature;

#[cfg(test)]
mod tests;

/// How many violations [`VerifyErrors`] prints before it only counts.
const PRINTED: usize = 10;

/// Longest excerpt of an instruction's text in a violation, in characters.
const EXCERPT: usize = 240;

macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident $id:literal;)*) => {
        /// What a module must obey; the id is stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Rule { $($(#[$doc])* $variant,)* }

        impl Rule {
            /// Every rule, in order of their ids.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// `V001` and so on.
            #[must_use]
            pub fn id(self) -> &'static str {
                match self { $(Self::$variant => $id,)* }
            }
        }
    };
}

rules! {
    /// A computation holds at least one instruction.
    EmptyComputation "V001";
    /// No two computations share a wire id.
    DuplicateComputationId "V002";
    /// No two computations share a name.
    DuplicateComputationName "V003";
    /// No two instructions of the module share a name.
    DuplicateInstructionName "V004";
    /// No two instructions of a computation share a wire id.
    DuplicateInstructionId "V005";
    /// The local half of a wire id lies in 0 to 0x7ffffffe: XLA aborts on the number behind it.
    LocalId "V006";
    /// Operands are instructions of the computation's order.
    MissingOperand "V007";
    /// Operands come before their users.
    UseBeforeDefinition "V008";
    /// Control predecessors exist and come before.
    ControlPredecessor "V009";
    /// No instruction stands twice in the order.
    RepeatedInstruction "V010";
    /// The root is an instruction of the order.
    MissingRoot "V011";
    /// The computations that an instruction calls, and the entry, are computations of the module's order.
    MissingComputation "V012";
    /// Callees come before their callers.
    CalleeAfterCaller "V013";
    /// No computation calls itself, directly or through others.
    Recursion "V014";
    /// An instruction of a known opcode takes as many operands as the table says.
    Arity "V015";
    /// Parameter numbers count from 0 without gaps or repetitions.
    ParameterNumbers "V016";
    /// A computation's `program_shape` states its parameters' and its root's shapes.
    ProgramShape "V017";
    /// The module's `host_program_shape` states the entry's parameters' and root's shapes.
    HostProgramShape "V018";
    /// A signature names as many parameters as it has.
    ParameterNames "V019";
    /// An alias names a parameter, and an array in it, that exist.
    AliasParameter "V020";
    /// An alias names an output that exists.
    AliasOutput "V021";
    /// No parameter is aliased to two outputs.
    ParameterAliasedTwice "V022";
    /// No output is aliased to two parameters.
    OutputAliasedTwice "V023";
    /// Aliased parameter and output have the same size in bytes.
    AliasSize "V024";
    /// A donor names a parameter, and an array in it, that exist.
    Donor "V025";
    /// A donor is not aliased as well.
    DonorAliased "V026";
    /// A shape is given, with dimensions that are no negative numbers.
    InvalidShape "V027";
    /// Every array in an instruction's shape has a layout.
    MissingLayout "V028";
    /// A layout orders each dimension once.
    InvalidLayout "V029";
    /// The operands and attributes go together.
    Operands "V030";
    /// The stated shape is the one that follows from operands and attributes.
    ResultShape "V031";
    /// A comparison has a direction and a type that exist.
    Comparison "V032";
    /// An instruction calls as many computations as its opcode needs.
    CalledCount "V033";
    /// A called computation has as many parameters as the call passes values.
    CalleeParameters "V034";
    /// A called computation takes and returns the shapes that the call passes and states.
    CalleeShapes "V035";
    /// A conditional has a `pred[]` selector and two branches, or an `s32[]` one, and an argument for each branch.
    Branches "V036";
    /// A constant has a literal of its shape.
    LiteralShape "V037";
    /// A literal holds as many elements as its shape has.
    LiteralElements "V038";
    /// An instruction has a name.
    MissingName "V039";
    /// A parameter's replication has an entry for each array in its shape: XLA aborts on any other number.
    ParameterReplication "V040";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// One rule broken at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The computation; `None` where the module as a whole is concerned.
    pub computation: Option<String>,
    /// The instruction's name.
    pub instruction: Option<String>,
    /// The instruction as text; the end of a long one is left out.
    pub text: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rule)?;
        if let Some(computation) = &self.computation {
            write!(f, " in %{computation}")?;
        }
        if let Some(instruction) = &self.instruction {
            write!(f, ", %{instruction}")?;
        }
        write!(f, ": {}", self.message)?;
        match &self.text {
            Some(text) => write!(f, "\n    {text}"),
            None => Ok(()),
        }
    }
}

/// Every violation found, at least one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct VerifyErrors {
    /// Name of the module.
    pub module: String,
    /// In the order of the module.
    pub violations: Vec<Violation>,
}

impl fmt::Display for VerifyErrors {
    /// A line of summary, then the first violations, then how many more there are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.violations.len();
        let noun = if count == 1 { "violation" } else { "violations" };
        write!(f, "module {:?} is not valid HLO ({count} {noun})", self.module)?;
        for violation in self.violations.iter().take(PRINTED) {
            write!(f, "\n  {violation}")?;
        }
        if count > PRINTED {
            write!(f, "\n  and {} more", count - PRINTED)?;
        }
        Ok(())
    }
}

/// Checks every [`Rule`].
///
/// # Errors
///
/// Where at least one is broken; the error holds all violations.
pub fn verify(module: &Module) -> Result<(), VerifyErrors> {
    let mut report = Report { module, violations: Vec::new() };
    order::check_module(module, &mut report);
    let parameters = instruction::Parameters::new(module);
    for (id, computation) in module.computations() {
        let positions = order::check_computation(computation, &mut report);
        signature::check_computation(computation, parameters.of(id), &mut report);
        let context = instruction::Context { module, computation, id, positions: &positions, parameters: &parameters };
        let mut operands = Vec::new();
        for (_, instruction) in computation.instructions() {
            instruction::check(&context, instruction, &mut operands, &mut report);
        }
    }
    signature::check_entry(module, parameters.of(module.entry()), &mut report);
    if report.violations.is_empty() {
        Ok(())
    } else {
        Err(VerifyErrors { module: module.name().to_owned(), violations: report.violations })
    }
}

/// Collects violations.
struct Report<'a> {
    module: &'a Module,
    violations: Vec<Violation>,
}

impl Report<'_> {
    fn whole(&mut self, rule: Rule, message: String) {
        self.violations.push(Violation { rule, computation: None, instruction: None, text: None, message });
    }

    fn computation(&mut self, rule: Rule, computation: &Computation, message: String) {
        let computation = Some(computation.name.clone());
        self.violations.push(Violation { rule, computation, instruction: None, text: None, message });
    }

    fn instruction(&mut self, rule: Rule, computation: &Computation, instruction: &Instruction, message: String) {
        self.violations.push(Violation {
            rule,
            computation: Some(computation.name.clone()),
            instruction: Some(instruction.name.clone()),
            text: Some(excerpt(self.module, computation, instruction)),
            message,
        });
    }
}

fn excerpt(module: &Module, computation: &Computation, instruction: &Instruction) -> String {
    let text = text::print_instruction(module, computation, instruction, text::Preset::Snapshot);
    match text.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or(&text)),
        None => text,
    }
}
