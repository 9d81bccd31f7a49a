//! How many steps a loop over steps does, and which of its leaves says which of them it is at.
//!
//! The number is known where a leaf counts from a constant, by a constant, up to a constant, or where the front end or a
//! compiler noted it (`known_trip_count`). Where both say it, both must say the same.

use std::num::NonZeroU32;

use hlo::{ComputationId, Instruction, InstructionId, Module, Opcode};

use super::graph::{Graph, NodeId, Op, loop_body};
use crate::loops::Trips;

/// What a loop is made of.
pub(super) struct Loop<'a, 'm> {
    /// What is around it.
    pub(super) outer: &'a Graph<'m>,
    /// The value of each leaf before the first step.
    pub(super) initial: &'a [NodeId],
    /// Its body.
    pub(super) body: &'a Graph<'m>,
    /// The `while`.
    pub(super) instruction: &'m Instruction,
}

/// How often the `while` at `site` of a computation runs its body, where that is known.
#[must_use]
pub fn trip_count(module: &Module, computation: ComputationId, site: InstructionId) -> Option<u64> {
    let instruction = module.computation(computation)?.get(site)?;
    let outer = Graph::new(module, computation).ok()?;
    let body_id = loop_body(module, instruction)?;
    let body = Graph::new(module, body_id).ok()?;
    let initial = outer.initial_of(computation, site);
    let trips = Loop { outer: &outer, initial, body: &body, instruction }.trips(body_id).ok()?;
    Some(u64::from(trips.steps.get()))
}

/// A leaf that goes from `first` by `by`.
#[derive(Debug, Clone, Copy)]
struct Counter {
    first: i64,
    by: i64,
}

impl Loop<'_, '_> {
    /// How many steps it does; where that is not known, why not.
    pub(super) fn trips(&self, body: ComputationId) -> Result<Trips, String> {
        let noted = noted(self.instruction);
        let counted = self.counted(body);
        let steps = match (&counted, noted) {
            (Ok(counted), Some(noted)) if *counted != noted => {
                return Err(format!("it counts {counted} steps, and `known_trip_count` says {noted}"));
            }
            (Ok(steps), _) => *steps,
            (Err(_), Some(steps)) => steps,
            (Err(reason), None) => return Err(reason.clone()),
        };
        let steps = u32::try_from(steps).ok().filter(|steps| i32::try_from(*steps).is_ok()).and_then(NonZeroU32::new);
        let steps = steps.ok_or_else(|| "it does no step, or more than can be counted".to_owned())?;
        Ok(Trips { steps, counter: self.numbers().first().copied() })
    }

    /// The leaves that are the number of the step, from 0.
    pub(super) fn numbers(&self) -> Vec<usize> {
        let from_zero = |&k: &usize| matches!(self.counter(k), Some(Counter { first: 0, by: 1 }));
        (0..self.initial.len()).filter(from_zero).collect()
    }

    /// Whether leaf `k` is a counter of steps, by whatever constant.
    pub(super) fn counts(&self, k: usize) -> bool {
        self.counter(k).is_some()
    }

    fn counted(&self, body: ComputationId) -> Result<u64, String> {
        let unknown = |what: &str| Err(format!("{what}, so that the number of its steps is not known in advance"));
        let condition = self.instruction.called.iter().copied().find(|&c| c != body);
        let condition = condition.and_then(|c| Graph::new(self.outer.module, c).ok());
        let Some(condition) = condition else { return unknown("its condition cannot be read") };
        let Some(&verdict) = condition.outputs.first() else { return unknown("its condition cannot be read") };
        let test = condition.through_conversions(verdict);
        let Some((x, y)) = condition.pair(test).filter(|_| condition.is(test, Opcode::Compare)) else {
            return unknown("its condition does more than to compare a counter with a bound");
        };
        let direction = condition.instruction(test).map_or("", |i| i.attributes.comparison_direction.as_str());
        let (left, right) = (self.counter_in(&condition, x), self.counter_in(&condition, y));
        let (counter, bound, direction) = match (left, right) {
            (Some(counter), _) => (counter, y, direction),
            (None, Some(counter)) => (counter, x, mirrored(direction)),
            (None, None) => {
                return unknown("no side of its condition is a counter that goes from a constant, by a constant");
            }
        };
        let Some(bound) = self.known_in(&condition, bound).and_then(integer) else {
            return unknown("the bound of its counter is no constant");
        };
        match trips(counter, bound, direction) {
            Some(steps) => Ok(steps),
            None => unknown("its counter does not come to its bound"),
        }
    }

    /// The counter that a value of the condition is.
    fn counter_in(&self, condition: &Graph<'_>, id: NodeId) -> Option<Counter> {
        self.counter(self.leaf_in(condition, id)?)
    }

    fn leaf_in(&self, condition: &Graph<'_>, id: NodeId) -> Option<usize> {
        let id = condition.through_conversions(id);
        condition.inputs.iter().position(|&input| input == id)
    }

    /// The number that a value of the condition is: a constant, or a leaf that is one and stays.
    fn known_in(&self, condition: &Graph<'_>, id: NodeId) -> Option<f64> {
        condition.constant(id).or_else(|| {
            let leaf = self.leaf_in(condition, id)?;
            let stays = self.body.inputs.get(leaf) == self.body.outputs.get(leaf);
            self.outer.constant(*self.initial.get(leaf).filter(|_| stays)?)
        })
    }

    fn counter(&self, leaf: usize) -> Option<Counter> {
        let (body, first) = (self.body, self.outer.constant(*self.initial.get(leaf)?)?);
        let (&old, &new) = (body.inputs.get(leaf)?, body.outputs.get(leaf)?);
        if !body.element_type(old).is_integral() || !body.is_scalar(old) {
            return None;
        }
        let next = body.through_conversions(new);
        let (x, y) = body.pair(next)?;
        let same = |id| body.through_conversions(id) == old;
        let by = match body.op(next) {
            Op::Hlo(Opcode::Add) if same(x) => body.constant(y)?,
            Op::Hlo(Opcode::Add) if same(y) => body.constant(x)?,
            Op::Hlo(Opcode::Subtract) if same(x) => -body.constant(y)?,
            _ => return None,
        };
        Some(Counter { first: integer(first)?, by: integer(by)? })
    }
}

/// What a front end or compiler noted.
fn noted(instruction: &Instruction) -> Option<u64> {
    let config: serde_json::Value = serde_json::from_slice(&instruction.attributes.backend_config).ok()?;
    let count = config.get("known_trip_count")?.get("n")?;
    count.as_u64().or_else(|| count.as_str()?.parse().ok())
}

fn mirrored(direction: &str) -> &'static str {
    match direction {
        "LT" => "GT",
        "LE" => "GE",
        "GT" => "LT",
        "GE" => "LE",
        "NE" => "NE",
        _ => "",
    }
}

/// How often the counter passes the test.
fn trips(Counter { first, by }: Counter, bound: i64, direction: &str) -> Option<u64> {
    // A counter that goes down is one that goes up, seen from the other side.
    let (distance, by, direction) = if by < 0 {
        (first.checked_sub(bound)?, by.checked_neg()?, mirrored(direction))
    } else {
        (bound.checked_sub(first)?, by, direction)
    };
    let by = u64::try_from(by).ok().filter(|&by| by > 0)?;
    match direction {
        "LT" => Some(u64::try_from(distance).unwrap_or(0).div_ceil(by)),
        "LE" => Some(u64::try_from(distance).ok().map_or(0, |distance| distance / by + 1)),
        "NE" => u64::try_from(distance).ok().filter(|distance| distance % by == 0).map(|distance| distance / by),
        _ => None,
    }
}

/// A whole number that `f64` holds exactly.
fn integer(value: f64) -> Option<i64> {
    let exact = value.fract() == 0.0 && value.abs() < (1_u64 << 52) as f64;
    #[allow(clippy::cast_possible_truncation, reason = "it is a whole number below 2⁵²")]
    exact.then_some(value as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_counted_from_where_it_begins_by_what_it_adds() {
        let count = |first, by, bound, direction| trips(Counter { first, by }, bound, direction);
        assert_eq!(count(0, 1, 4, "LT"), Some(4));
        assert_eq!(count(2, 3, 9, "LT"), Some(3));
        assert_eq!(count(1, 1, 4, "LE"), Some(4));
        assert_eq!(count(4, -1, 0, "GT"), Some(4));
        assert_eq!(count(4, -2, 0, "GE"), Some(3));
        assert_eq!(count(0, 2, 6, "NE"), Some(3));
        assert_eq!(count(5, 1, 4, "LT"), Some(0));
        // Neither of these ends.
        assert_eq!(count(0, 2, 5, "NE"), None);
        assert_eq!(count(0, 0, 5, "LT"), None);
        assert_eq!(count(0, -1, 5, "LT"), None);
        assert_eq!(count(0, 1, 5, "EQ"), None);
    }
}
