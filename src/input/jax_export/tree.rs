//! Paths of the leaves of a pytree, as JAX prints them.

use super::ExportError;
use super::flat::Table;

/// Nesting beyond which a tree is refused.
const DEPTH: usize = 200;

/// Bytes that all paths of a tree may have together. A real tree's are a few hundred kilobytes; parts that are shared
/// in the file could make them any number.
const SIZE: usize = 1 << 26;

/// Field numbers of `PyTreeDef`.
mod field {
    pub(super) const KIND: usize = 0;
    pub(super) const CHILDREN: usize = 1;
    pub(super) const CHILDREN_NAMES: usize = 2;
}

/// The paths of a tree's leaves, in order.
pub(super) fn leaves(tree: Table<'_>) -> Result<Vec<String>, ExportError> {
    let mut walk = Walk { paths: Vec::new(), size: 0 };
    walk.visit(tree, "", 0)?;
    Ok(walk.paths)
}

struct Walk {
    paths: Vec<String>,
    size: usize,
}

impl Walk {
    fn visit(&mut self, node: Table<'_>, path: &str, depth: usize) -> Result<(), ExportError> {
        // A node without a leaf costs something, too.
        self.size += path.len() + 1;
        if depth > DEPTH || self.size > SIZE {
            return Err(ExportError::TreeTooLarge);
        }
        match node.u8(field::KIND)? {
            // leaf, None
            0 => self.paths.push(path.to_owned()),
            1 => {}
            // tuple, list; of a registered class only the number of a child is known
            kind @ (2 | 3 | 5) => {
                for (index, child) in node.tables(field::CHILDREN)?.enumerate() {
                    let key = if kind == 5 { format!("[<flat index {index}>]") } else { format!("[{index}]") };
                    self.visit(child?, &format!("{path}{key}"), depth + 1)?;
                }
            }
            // dict
            4 => {
                let mut names = node.texts(field::CHILDREN_NAMES)?;
                for child in node.tables(field::CHILDREN)? {
                    let name =
                        names.next().ok_or(ExportError::Contradiction("a dict with more values than keys"))??;
                    let quote = if name.contains('\'') && !name.contains('"') { '"' } else { '\'' };
                    self.visit(child?, &format!("{path}[{quote}{name}{quote}]"), depth + 1)?;
                }
            }
            kind => return Err(ExportError::TreeKind { kind }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VTABLE: usize = 4;

    /// Trees of tuples: `levels` above a leaf, each with `width` times the next as its children.
    fn shared(levels: usize, width: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let word = |bytes: &mut Vec<u8>, value: usize| bytes.extend(u32::try_from(value).unwrap().to_le_bytes());
        // The root's offset, and one vtable: its size, a table's size, where the kind is, where the children are.
        word(&mut bytes, 12);
        bytes.extend([8, 0, 12, 0, 4, 0, 8, 0]);
        for level in 0..=levels {
            let table = bytes.len();
            word(&mut bytes, table - VTABLE);
            word(&mut bytes, if level == levels { 0 } else { 2 });
            word(&mut bytes, 4);
            let children = if level == levels { 0 } else { width };
            word(&mut bytes, children);
            let next = bytes.len() + 4 * children;
            for _ in 0..children {
                let offset = next - bytes.len();
                word(&mut bytes, offset);
            }
        }
        bytes
    }

    fn paths(bytes: &[u8]) -> Result<Vec<String>, ExportError> {
        leaves(Table::root(bytes).unwrap())
    }

    #[test]
    fn leaves_have_the_paths_that_jax_prints() {
        assert_eq!(paths(&shared(0, 0)).unwrap(), [""]);
        assert_eq!(paths(&shared(2, 2)).unwrap(), ["[0][0]", "[0][1]", "[1][0]", "[1][1]"]);
    }

    #[test]
    fn trees_that_grow_without_end_are_refused() {
        for (levels, width) in [(60, 2), (100, 1000), (300, 1), (60_000, 1)] {
            let error = paths(&shared(levels, width)).unwrap_err().to_string();
            assert!(error.contains("deeper or larger"), "{error}");
        }
    }

    #[test]
    fn kinds_of_other_versions_are_refused() {
        let mut bytes = shared(0, 0);
        bytes[16] = 9;
        assert!(paths(&bytes).unwrap_err().to_string().contains("kind 9"));
    }
}
