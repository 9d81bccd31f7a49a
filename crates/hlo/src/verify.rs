//! The rules that a module must obey before a compiler sees it.
use crate::ir::Module;
use thiserror::Error;
/// All violations.
#[derive(Debug, Error)]
#[error("invalid module")]
pub struct VerifyError;
/// Checks.
///
/// # Errors
///
/// Where a rule is violated.
pub fn verify(module: &Module) -> Result<(), VerifyError> {
    for (_, c) in module.computations() {
        let mut seen = std::collections::HashSet::new();
        for (id, i) in c.instructions() {
            if i.operands.iter().any(|o| !seen.contains(o)) {
                return Err(VerifyError);
            }
            seen.insert(id);
        }
    }
    Ok(())
}
