//! Reading and writing the controller's fields by name, and vector arithmetic with scalars spread as needed.

use std::collections::BTreeMap;

use hlo::build::{BuildError, Builder, Built, ComparisonDirection};
use hlo::{ComputationId, InstructionId, Module, Opcode, PrimitiveType};

use super::Inputs;
use crate::layout::{ControllerLayout, Field};
use crate::pass::PassError;

/// Which of the controller's arrays a field is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Array {
    Policy,
    State,
    Counters,
    Telemetry,
}

/// Emits control at the end of the entry.
pub(super) struct Emitter<'a> {
    pub(super) b: Builder<'a>,
    layout: &'a ControllerLayout,
    inputs: &'a Inputs,
    sum: ComputationId,
    state: BTreeMap<String, InstructionId>,
    counters: BTreeMap<String, InstructionId>,
    telemetry: BTreeMap<String, InstructionId>,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(
        module: &'a mut Module,
        layout: &'a ControllerLayout,
        inputs: &'a Inputs,
    ) -> Result<Self, BuildError> {
        let sum = Builder::reducer(module, "entropic.sum_scalars", Opcode::Add, PrimitiveType::F32)?;
        let b = Builder::at_entry(module);
        let none = BTreeMap::new;
        Ok(Self { b, layout, inputs, sum, state: none(), counters: none(), telemetry: none() })
    }

    /// Names what follows after a part of the control law.
    pub(super) fn part(&mut self, name: &str) {
        self.b.set_scope(&format!("entropic.{name}"), &format!("entropic/control/{name}"));
    }

    fn fields(&self, array: Array) -> &'a [Field] {
        match array {
            Array::Policy => &self.layout.policy,
            Array::State => &self.layout.state,
            Array::Counters => &self.layout.counters,
            Array::Telemetry => &self.layout.telemetry,
        }
    }

    fn field(&self, array: Array, name: &str) -> Result<&'a Field, PassError> {
        let found = self.fields(array).iter().find(|f| f.name == name);
        found.ok_or_else(|| PassError::Stale { what: format!("the controller's field {name:?}") })
    }

    /// A field of an input as a vector.
    pub(super) fn vector(&mut self, array: Array, name: &str) -> Result<InstructionId, PassError> {
        let field = self.field(array, name)?;
        let source = match array {
            Array::Policy => self.inputs.policy,
            Array::State => self.inputs.state,
            Array::Counters | Array::Telemetry => self.inputs.counters,
        };
        Ok(self.b.slice_vector(source, field.offset as i64, (field.offset + field.len) as i64)?)
    }

    /// A one-element field of an input.
    pub(super) fn scalar(&mut self, array: Array, name: &str) -> Result<InstructionId, PassError> {
        let vector = self.vector(array, name)?;
        Ok(self.b.reshape(vector, &[])?)
    }

    /// A number of the policy.
    pub(super) fn number(&mut self, name: &str) -> Result<InstructionId, PassError> {
        self.scalar(Array::Policy, name)
    }

    /// A number of the policy that counts something, as s32.
    pub(super) fn count(&mut self, name: &str) -> Result<InstructionId, PassError> {
        let number = self.number(name)?;
        Ok(self.b.convert(number, PrimitiveType::S32)?)
    }

    /// Sets a field of an output; each is set once.
    pub(super) fn set(&mut self, array: Array, name: &str, value: InstructionId) {
        let target = match array {
            Array::Policy => return,
            Array::State => &mut self.state,
            Array::Counters => &mut self.counters,
            Array::Telemetry => &mut self.telemetry,
        };
        target.insert(name.to_owned(), value);
    }

    /// All fields of an output, which were set, one after another.
    pub(super) fn assemble(&mut self, array: Array, name: &str) -> Result<InstructionId, PassError> {
        let mut parts = Vec::new();
        for field in self.fields(array) {
            let values = match array {
                Array::Counters => &self.counters,
                Array::Telemetry => &self.telemetry,
                _ => &self.state,
            };
            let value = values.get(&field.name).copied();
            let value =
                value.ok_or_else(|| PassError::Stale { what: format!("the controller's field {}", field.name) })?;
            let flat = if self.b.shape(value)?.rank() == 0 { self.b.reshape(value, &[1])? } else { value };
            parts.push(flat);
        }
        Ok(self.b.named(name).concatenate(&parts, 0)?)
    }

    pub(super) fn f32(&mut self, value: f32) -> Built {
        self.b.constant_f32(value)
    }

    pub(super) fn s32(&mut self, value: i32) -> Built {
        self.b.constant(PrimitiveType::S32, f64::from(value))
    }

    /// Both operands with the scalar one, if any, spread over the other's dimensions.
    fn spread(&mut self, x: InstructionId, y: InstructionId) -> Result<(InstructionId, InstructionId), BuildError> {
        let (rank_x, rank_y) = (self.b.shape(x)?.rank(), self.b.shape(y)?.rank());
        Ok(match (rank_x, rank_y) {
            (0, 1..) => (self.b.broadcast_scalar_like(x, y)?, y),
            (1.., 0) => (x, self.b.broadcast_scalar_like(y, x)?),
            _ => (x, y),
        })
    }

    pub(super) fn binary(&mut self, opcode: Opcode, x: InstructionId, y: InstructionId) -> Built {
        let (x, y) = self.spread(x, y)?;
        self.b.emit(opcode, &[x, y])
    }

    pub(super) fn add(&mut self, x: InstructionId, y: InstructionId) -> Built {
        self.binary(Opcode::Add, x, y)
    }

    pub(super) fn sub(&mut self, x: InstructionId, y: InstructionId) -> Built {
        self.binary(Opcode::Subtract, x, y)
    }

    pub(super) fn mul(&mut self, x: InstructionId, y: InstructionId) -> Built {
        self.binary(Opcode::Multiply, x, y)
    }

    pub(super) fn div(&mut self, x: InstructionId, y: InstructionId) -> Built {
        self.binary(Opcode::Divide, x, y)
    }

    pub(super) fn and(&mut self, x: InstructionId, y: InstructionId) -> Built {
        self.binary(Opcode::And, x, y)
    }

    pub(super) fn compare(&mut self, x: InstructionId, y: InstructionId, direction: ComparisonDirection) -> Built {
        let (x, y) = self.spread(x, y)?;
        self.b.compare(x, y, direction)
    }

    /// Comparison with a constant.
    pub(super) fn is(&mut self, x: InstructionId, direction: ComparisonDirection, value: f32) -> Built {
        let value = self.f32(value)?;
        self.compare(x, value, direction)
    }

    /// `predicate ? x : y` with scalar predicate or arms spread over the widest of the three.
    pub(super) fn select(&mut self, predicate: InstructionId, x: InstructionId, y: InstructionId) -> Built {
        let (x, y) = self.spread(x, y)?;
        let (_, x) = self.spread(predicate, x)?;
        let (_, y) = self.spread(predicate, y)?;
        self.b.select(predicate, x, y)
    }

    /// Sum of a vector.
    pub(super) fn total(&mut self, x: InstructionId) -> Built {
        let zero = self.f32(0.0)?;
        self.b.reduce_all(x, zero, self.sum)
    }

    /// The last element of a vector: that of the whole gradient.
    pub(super) fn whole(&mut self, vector: InstructionId) -> Built {
        let last = self.b.shape(vector)?.num_elements() as i64 - 1;
        self.b.element(vector, last)
    }

    /// Sets a field of telemetry to a flag or count.
    pub(super) fn show(&mut self, name: &str, value: InstructionId) -> Result<(), BuildError> {
        let shown = self.b.convert(value, PrimitiveType::F32)?;
        self.set(Array::Telemetry, name, shown);
        Ok(())
    }

    /// A counter of the state plus one where `event` holds.
    pub(super) fn counted(&mut self, name: &str, event: InstructionId) -> Result<InstructionId, PassError> {
        let count = self.scalar(Array::Counters, name)?;
        let one = self.b.convert(event, PrimitiveType::S32)?;
        Ok(self.add(count, one)?)
    }
}
