//! What `jax.export` writes: a StableHLO module with the trees, shapes and platforms of its function.
//!
//! `exported.serialize()` makes a FlatBuffers buffer after the schema of `jax/_src/export/serialization.fbs`, without a
//! file identifier. Only what describes the function itself is read: shardings are in the module as well, and
//! derivatives (`vjp`) are none of our business.

mod flat;
mod tree;

use hlo::{PrimitiveType, Shape};
use thiserror::Error;

pub use flat::FlatError;
use flat::Table;

/// The versions of the calling convention that are read: those that JAX 0.10.2 reads.
const CALLING_CONVENTIONS: std::ops::RangeInclusive<u16> = 9..=10;

/// Field numbers of `Exported`.
mod field {
    pub(super) const FUNCTION_NAME: usize = 1;
    pub(super) const IN_TREE: usize = 2;
    pub(super) const IN_AVALS: usize = 3;
    pub(super) const OUT_TREE: usize = 4;
    pub(super) const OUT_AVALS: usize = 5;
    pub(super) const PLATFORMS: usize = 9;
    pub(super) const ORDERED_EFFECTS: usize = 10;
    pub(super) const MODULE: usize = 13;
    pub(super) const CALLING_CONVENTION: usize = 14;
    pub(super) const KEPT: usize = 15;
    pub(super) const UNIQUE_AVALS: usize = 19;
    pub(super) const IN_AVALS_IDXS: usize = 22;
    pub(super) const OUT_AVALS_IDXS: usize = 23;
}

/// An exported function.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// Its name.
    pub function: String,
    /// The leaves of its arguments.
    pub inputs: Vec<Leaf>,
    /// The leaves of its result.
    pub outputs: Vec<Leaf>,
    /// Which of `inputs` the module takes, in order.
    pub kept: Vec<usize>,
    /// The platforms it was lowered for; a module for several takes the position in this list first.
    pub platforms: Vec<String>,
    /// StableHLO, portable bytecode.
    pub module: Vec<u8>,
}

/// A leaf of a tree: an array.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaf {
    /// Where it is (`args[0]['w']`, `result[1]`).
    pub path: String,
    /// What it is in the module; a typed random key is its words.
    pub shape: Shape,
}

/// Why a `jax.export` file is not read.
#[derive(Debug, Error)]
pub enum ExportError {
    /// Not the format, or a part of a file.
    #[error("the jax.export file is damaged or truncated: {0}")]
    Damaged(#[from] FlatError),
    /// Parts that do not go together.
    #[error("the jax.export file contradicts itself: {0}")]
    Contradiction(&'static str),
    /// A tree that no program has.
    #[error("the trees of the jax.export file are deeper or larger than those of any program")]
    TreeTooLarge,
    /// A node of a kind that is not known here.
    #[error(
        "the jax.export file has tree nodes of kind {kind}, which this version does not know; export a bare module"
    )]
    TreeKind {
        /// The number.
        kind: u8,
    },
    /// Another way of passing arguments.
    #[error(
        "the jax.export file has calling convention {found}, and this version reads {} to {}; export with the JAX of \
         models/requirements.txt", CALLING_CONVENTIONS.start(), CALLING_CONVENTIONS.end()
    )]
    CallingConvention {
        /// The version.
        found: u16,
    },
    /// Side effects in an order, which the module passes on as tokens.
    #[error(
        "the function has ordered effects ({effects}); they are passed from step to step as tokens, which a train step \
         on a device cannot take. Export it without ordered callbacks and prints"
    )]
    OrderedEffects {
        /// Their classes.
        effects: String,
    },
    /// A shape with a variable in it.
    #[error(
        "{path} has the symbolic dimension {dimension:?}; export the step with the shapes that it will be trained with"
    )]
    Symbolic {
        /// The leaf.
        path: String,
        /// The dimension.
        dimension: String,
    },
    /// An element type that is not known here.
    #[error("{path} has elements of type {dtype} of jax.export, which this version does not know")]
    Dtype {
        /// The leaf.
        path: String,
        /// The number.
        dtype: u8,
    },
}

impl Exported {
    /// Reads `exported.serialize()`.
    ///
    /// # Errors
    ///
    /// Where the bytes are something else, or a function that cannot be a train step here; see [`ExportError`].
    pub fn read(bytes: &[u8]) -> Result<Self, ExportError> {
        let table = Table::root(bytes)?;
        let module = table.u8s(field::MODULE)?;
        if module.is_empty() {
            return Err(ExportError::Contradiction("there is no module in it"));
        }
        let found = table.u16(field::CALLING_CONVENTION)?;
        if !CALLING_CONVENTIONS.contains(&found) {
            return Err(ExportError::CallingConvention { found });
        }
        let effects = table.tables(field::ORDERED_EFFECTS)?.map(|e| e?.text(0)).collect::<Result<Vec<_>, _>>()?;
        if !effects.is_empty() {
            return Err(ExportError::OrderedEffects { effects: effects.join(", ") });
        }
        let avals = |idxs, own| -> Result<Vec<Table<'_>>, ExportError> {
            let unique = table.tables(field::UNIQUE_AVALS)?.collect::<Result<Vec<_>, _>>()?;
            let idxs = table.u32s(idxs)?;
            if idxs.is_empty() {
                return Ok(table.tables(own)?.collect::<Result<Vec<_>, _>>()?);
            }
            let unknown = || ExportError::Contradiction("an array has a type that is not in its list");
            idxs.into_iter().map(|i| unique.get(i as usize).copied().ok_or_else(unknown)).collect()
        };
        let in_avals = avals(field::IN_AVALS_IDXS, field::IN_AVALS)?;
        let out_avals = avals(field::OUT_AVALS_IDXS, field::OUT_AVALS)?;
        let inputs = leaves(table, field::IN_TREE, &in_avals, input_path)?;
        let outputs = leaves(table, field::OUT_TREE, &out_avals, |path| format!("result{path}"))?;
        let kept: Vec<usize> = table.u16s(field::KEPT)?.into_iter().map(usize::from).collect();
        if kept.iter().any(|&k| k >= inputs.len()) || !kept.is_sorted_by(|a, b| a < b) {
            return Err(ExportError::Contradiction("its module takes arguments that the function does not have"));
        }
        Ok(Self {
            function: table.text(field::FUNCTION_NAME)?.to_owned(),
            inputs,
            outputs,
            kept,
            platforms: table.texts(field::PLATFORMS)?.map(|p| p.map(str::to_owned)).collect::<Result<_, _>>()?,
            module: module.to_vec(),
        })
    }

    /// The inputs that the module takes.
    pub fn kept_inputs(&self) -> impl Iterator<Item = &Leaf> {
        self.kept.iter().filter_map(|&k| self.inputs.get(k))
    }
}

/// The leaves of a tree with their shapes.
fn leaves(
    exported: Table<'_>,
    tree: usize,
    avals: &[Table<'_>],
    rename: impl Fn(&str) -> String,
) -> Result<Vec<Leaf>, ExportError> {
    let tree = exported.table(tree)?.ok_or(ExportError::Contradiction("a tree is missing"))?;
    let paths = tree::leaves(tree)?;
    if paths.len() != avals.len() {
        return Err(ExportError::Contradiction("a tree has another number of leaves than there are arrays"));
    }
    let leaf = |(path, aval): (String, &Table<'_>)| {
        let path = rename(&path);
        Ok(Leaf { shape: shape(*aval, &path)?, path })
    };
    paths.into_iter().zip(avals).map(leaf).collect()
}

/// The arguments are a tuple of positional and keyword arguments.
fn input_path(path: &str) -> String {
    match (path.strip_prefix("[0]"), path.strip_prefix("[1]")) {
        (Some(rest), _) => format!("args{rest}"),
        (_, Some(rest)) => format!("kwargs{rest}"),
        _ => path.to_owned(),
    }
}

/// The shape of an `AbstractValue`: fields kind, shape (texts), dtype.
fn shape(aval: Table<'_>, path: &str) -> Result<Shape, ExportError> {
    let mut dims = aval
        .texts(1)?
        .map(|dimension| {
            let dimension = dimension?;
            dimension
                .parse::<u32>()
                .map(i64::from)
                .map_err(|_| ExportError::Symbolic { path: path.to_owned(), dimension: dimension.to_owned() })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let dtype = aval.u8(2)?;
    let unknown = || ExportError::Dtype { path: path.to_owned(), dtype };
    let element_type = match dtype {
        // Typed random keys, by implementation: threefry, rbg, unsafe rbg.
        27 => {
            dims.push(2);
            PrimitiveType::U32
        }
        28 | 29 => {
            dims.push(4);
            PrimitiveType::U32
        }
        _ => *DTYPES.get(usize::from(dtype)).ok_or_else(unknown)?,
    };
    Ok(Shape::array(element_type, &dims))
}

/// The enumeration `DType` in its order. `float0`, which has no values, is `pred` in a module.
const DTYPES: [PrimitiveType; 27] = {
    use PrimitiveType as T;
    [
        T::PRED,
        T::S8,
        T::S16,
        T::S32,
        T::S64,
        T::U8,
        T::U16,
        T::U32,
        T::U64,
        T::F16,
        T::F32,
        T::F64,
        T::C64,
        T::C128,
        T::BF16,
        T::S4,
        T::U4,
        T::F8E4M3B11FNUZ,
        T::F8E4M3FN,
        T::F8E4M3FNUZ,
        T::F8E5M2,
        T::F8E5M2FNUZ,
        T::PRED,
        T::F8E4M3,
        T::F8E3M4,
        T::F8E8M0FNU,
        T::F4E2M1FN,
    ]
};
