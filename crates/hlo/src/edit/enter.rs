//! A called computation as the entry, for a while.

use super::EditError;
use crate::ir::{Alias, AliasKind, ComputationId, Module};
use crate::proto::HloModuleProto;
use crate::proto::hlo_input_output_alias_proto::AliasEntryProto;

/// What [`Module::enter`] took away, and [`Module::leave`] needs.
#[derive(Debug, Clone)]
pub struct Outside {
    entry: ComputationId,
    order: Vec<ComputationId>,
    header: HloModuleProto,
}

impl Module {
    /// Makes `inner` the entry, with these aliases. Computations that it does not need, the entry first of all, are not
    /// part of the module until [`Module::leave`]; ids stay what they are.
    ///
    /// # Errors
    ///
    /// Where there is no such computation.
    pub fn enter(&mut self, inner: ComputationId, aliases: &[Alias]) -> Result<Outside, EditError> {
        let body = self.computation(inner).ok_or(EditError::NoSuch { what: "computation", index: inner.index() })?;
        let header = HloModuleProto {
            name: self.header.name.clone(),
            host_program_shape: body.header.program_shape.clone(),
            ..Default::default()
        };
        let outside = Outside {
            entry: self.entry,
            order: self.order.clone(),
            header: std::mem::replace(&mut self.header, header),
        };
        self.entry = inner;
        let table = self.header.input_output_alias.get_or_insert_default();
        table.entries.extend(aliases.iter().map(|alias| AliasEntryProto {
            output_shape_index: vec![alias.output as i64],
            parameter_number: alias.parameter as i64,
            kind: if alias.kind == AliasKind::Must { 2 } else { 1 },
            ..Default::default()
        }));
        self.remove_unreachable_computations();
        Ok(outside)
    }

    /// Makes what was the entry before [`Module::enter`] the entry again. Computations that were made meanwhile stay, before
    /// the one that was entered.
    pub fn leave(&mut self, outside: Outside) {
        let inner = self.entry;
        let made: Vec<_> = self.order.iter().copied().filter(|c| !outside.order.contains(c)).collect();
        self.order = outside.order;
        let at = self.order.iter().position(|&c| c == inner).unwrap_or(0);
        self.order.splice(at..at, made);
        self.entry = outside.entry;
        self.header = outside.header;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::nested;
    use crate::build::Builder;
    use crate::verify::verify;

    #[test]
    fn a_callee_is_changed_as_an_entry_and_called_again() {
        let mut module = nested();
        let main = module.entry();
        let callee = module.order()[0];
        let outside = module.enter(callee, &[]).unwrap();
        assert_eq!((module.entry(), module.order().len()), (callee, 1));
        verify(&module).unwrap();
        let made = module.add_computation("made");
        let mut b = Builder::new(&mut module, made);
        let x = b.parameter("x", crate::Shape::scalar(crate::PrimitiveType::F32)).unwrap();
        b.set_root(x).unwrap();
        module.leave(outside);
        assert_eq!(module.order(), [made, callee, main]);
        verify(&module).unwrap();
    }
}
