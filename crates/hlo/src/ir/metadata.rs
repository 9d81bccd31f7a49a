//! Stripping what only a front end put there.

use super::Module;

impl Module {
    /// Removes every instruction's `op_name`, source location and frontend attribute.
    ///
    /// The program stays the same. Analyses must give the same answer with and
    /// without; this is how tests hold them to it.
    pub fn strip_metadata(&mut self) {
        for computation in &mut self.arena {
            for instruction in &mut computation.arena {
                let attributes = instruction.attributes_mut();
                attributes.metadata = Default::default();
                attributes.original_value = None;
            }
        }
        self.header.stack_frame_index = None;
    }
}
