//! HLO text to [`Module`]: the grammar in which XLA prints and which [`print`](super::print) follows.
//!
//! What is read is what the text says, and nothing is passed over: an attribute, a property of a layout or a kind of
//! sharding that the representation cannot hold is an error that names it, and so is a literal that was elided when it
//! was printed (`{...}`). Every error has a line, a column, the token that stands there and what is wrong with it. Like
//! import, parsing does not judge: arities, shapes and the entry's signature are the verifier's matter.
//!
//! Besides what this crate prints, the parser takes what XLA prints otherwise: names without `%`, operands with their
//! shapes, computations inside attributes, asynchronous operations by their short names (`negate-start`), tables of
//! stack frames, and no `ROOT` where the last line is the root.
//!
//! Text does not carry, so that a module which went through text has others or none of:
//!
//! - the wire ids of module, computations and instructions, the order of a scheduled proto apart from its schedule, and
//!   names of the signature's parameters other than the parameters' own;
//! - which of its equal encodings an attribute had: defaults that were spelled out (`stride=1`, a precision of
//!   `default` for each operand, a group count of 1, empty messages), iota or listed groups under an older field;
//! - profiles, the source's stack frames where this crate printed the text, `original_value`, sizes of generated code,
//!   cross-program prefetches, sparsity, and partitioning options beside the shardings of instructions;
//! - names that XLA would sanitize, and those of the computation around an asynchronous operation with a short name;
//! - whether shardings may propagate to parameters and outputs: it means something to the partitioner only, and a text
//!   that says for more than one partition is refused.

use thiserror::Error;

use crate::ir::{Module, Names};

mod attributes;
mod computation;
mod cursor;
mod dimensions;
mod float;
mod header;
mod literal;
mod metadata;
mod shape;
mod sharding;

use computation::{Parser, program_shape};

/// Why a text is no module: where, what stands there, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {}", problem.describe(token))]
pub struct ParseError {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// What stands there, shortened; empty at the end of the text.
    pub token: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Something else was expected.
    Expected(String),
    /// It is understood, and cannot be taken.
    Refused(String),
}

impl Problem {
    fn describe(&self, token: &str) -> String {
        match self {
            Self::Expected(what) if token.is_empty() => format!("expected {what}, found the end of the text"),
            Self::Expected(what) => format!("expected {what}, found `{token}`"),
            Self::Refused(why) => format!("`{token}`: {why}"),
        }
    }
}

/// Longest text, in bytes: far above any module, and what ids and offsets are sure to hold.
const LONGEST: usize = 1 << 31;

/// Reads a module from HLO text.
///
/// # Errors
///
/// Where the text is no module, or holds something that the representation does not; see [`ParseError`].
pub fn parse(text: &str) -> Result<Module, ParseError> {
    let mut parser = Parser::new(text);
    if text.len() > LONGEST {
        return Err(parser.c.refused(format!("the text has more than {LONGEST} bytes")));
    }
    let header = parser.header()?;
    let mut entry = None;
    while parser.c.peek().is_some() {
        let at = parser.c;
        let is_entry = parser.c.eat_word("ENTRY");
        let id = parser.computation()?;
        if is_entry && entry.replace(id).is_some() {
            return Err(at.refused("the module has an entry already"));
        }
    }
    let Some(entry) = entry else { return Err(parser.c.expected("a computation marked `ENTRY`")) };
    let mut proto = header.proto;
    if let Some(computation) = parser.computations.get(entry.index()) {
        let program = program_shape(computation);
        match proto.host_program_shape.as_option_mut() {
            Some(signature) => signature.parameter_names = program.parameter_names,
            None => proto.host_program_shape = program.into(),
        }
    }
    if header.is_scheduled {
        proto.schedule = Some(super::schedule::encode(&parser.computations));
    }
    let order = (0..).take(parser.computations.len()).map(crate::ComputationId).collect();
    let names = Names::of(&parser.computations);
    Ok(Module { arena: parser.computations, order, entry, header: proto, names })
}
