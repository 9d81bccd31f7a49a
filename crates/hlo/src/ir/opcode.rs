//! The opcode table: variant, text name and arity on one line each.
//!
//! Import, inference, verifier and printer all read this table and nothing else.

use std::fmt;

/// How many operands an opcode takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arity {
    /// Exactly this many.
    Exact(usize),
    /// At least this many.
    AtLeast(usize),
}

impl Arity {
    /// Whether `count` operands satisfy this arity.
    #[must_use]
    pub fn accepts(self, count: usize) -> bool {
        match self {
            Self::Exact(n) => count == n,
            Self::AtLeast(n) => count >= n,
        }
    }
}

impl fmt::Display for Arity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(n) => write!(f, "exactly {n}"),
            Self::AtLeast(n) => write!(f, "at least {n}"),
        }
    }
}

macro_rules! opcodes {
    ($($variant:ident $name:literal $kind:ident $count:literal;)*) => {
        /// The operation of an instruction, named as XLA names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Opcode {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
            /// An operation this table does not list: it rides along and is opaque to every pass.
            Unrecognized,
        }

        impl Opcode {
            /// Every opcode of the table, in the table's order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in HLO text and on the wire; empty for [`Opcode::Unrecognized`].
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* Self::Unrecognized => "" }
            }

            /// The opcode of that name, or [`Opcode::Unrecognized`].
            #[must_use]
            pub fn from_name(name: &str) -> Self {
                match name { $($name => Self::$variant,)* _ => Self::Unrecognized }
            }

            /// How many operands the operation takes.
            #[must_use]
            pub fn arity(self) -> Arity {
                match self { $(Self::$variant => Arity::$kind($count),)* Self::Unrecognized => Arity::AtLeast(0) }
            }
        }
    };
}

opcodes! {
    Abs "abs" Exact 1;
    Acos "acos" Exact 1;
    Acosh "acosh" Exact 1;
    Add "add" Exact 2;
    AddDependency "add-dependency" Exact 2;
    AfterAll "after-all" AtLeast 0;
    AllGather "all-gather" AtLeast 1;
    AllGatherDone "all-gather-done" Exact 1;
    AllGatherStart "all-gather-start" AtLeast 1;
    AllReduce "all-reduce" AtLeast 1;
    AllReduceDone "all-reduce-done" Exact 1;
    AllReduceStart "all-reduce-start" AtLeast 1;
    AllToAll "all-to-all" AtLeast 1;
    And "and" Exact 2;
    Asin "asin" Exact 1;
    Asinh "asinh" Exact 1;
    AsyncDone "async-done" Exact 1;
    AsyncStart "async-start" AtLeast 0;
    AsyncUpdate "async-update" Exact 1;
    Atan2 "atan2" Exact 2;
    Atanh "atanh" Exact 1;
    BatchNormGrad "batch-norm-grad" Exact 5;
    BatchNormInference "batch-norm-inference" Exact 5;
    BatchNormTraining "batch-norm-training" Exact 3;
    Bitcast "bitcast" Exact 1;
    BitcastConvert "bitcast-convert" Exact 1;
    Broadcast "broadcast" Exact 1;
    Call "call" AtLeast 0;
    Cbrt "cbrt" Exact 1;
    Ceil "ceil" Exact 1;
    Cholesky "cholesky" Exact 1;
    Clamp "clamp" Exact 3;
    CollectiveBroadcast "collective-broadcast" AtLeast 1;
    CollectivePermute "collective-permute" AtLeast 1;
    CollectivePermuteDone "collective-permute-done" Exact 1;
    CollectivePermuteStart "collective-permute-start" AtLeast 1;
    Compare "compare" Exact 2;
    Complex "complex" Exact 2;
    Concatenate "concatenate" AtLeast 1;
    Conditional "conditional" AtLeast 2;
    Constant "constant" Exact 0;
    Convert "convert" Exact 1;
    Convolution "convolution" Exact 2;
    Copy "copy" Exact 1;
    CopyDone "copy-done" Exact 1;
    CopyStart "copy-start" Exact 1;
    Cos "cosine" Exact 1;
    Cosh "cosh" Exact 1;
    CustomCall "custom-call" AtLeast 0;
    Divide "divide" Exact 2;
    Domain "domain" Exact 1;
    Dot "dot" AtLeast 2;
    DynamicReshape "dynamic-reshape" AtLeast 1;
    DynamicSlice "dynamic-slice" AtLeast 1;
    DynamicUpdateSlice "dynamic-update-slice" AtLeast 2;
    Erf "erf" Exact 1;
    Exp "exponential" Exact 1;
    Expm1 "exponential-minus-one" Exact 1;
    Fft "fft" Exact 1;
    Floor "floor" Exact 1;
    Fusion "fusion" AtLeast 0;
    Gather "gather" Exact 2;
    GetDimensionSize "get-dimension-size" Exact 1;
    GetTupleElement "get-tuple-element" Exact 1;
    Imag "imag" Exact 1;
    Infeed "infeed" Exact 1;
    Iota "iota" Exact 0;
    IsFinite "is-finite" Exact 1;
    Log "log" Exact 1;
    Log1p "log-plus-one" Exact 1;
    Logistic "logistic" Exact 1;
    Map "map" AtLeast 1;
    Maximum "maximum" Exact 2;
    Minimum "minimum" Exact 2;
    Multiply "multiply" Exact 2;
    Negate "negate" Exact 1;
    Not "not" Exact 1;
    OptimizationBarrier "opt-barrier" Exact 1;
    Or "or" Exact 2;
    Outfeed "outfeed" AtLeast 1;
    Pad "pad" Exact 2;
    Parameter "parameter" Exact 0;
    PartitionId "partition-id" Exact 0;
    PopulationCount "popcnt" Exact 1;
    Power "power" Exact 2;
    RaggedAllToAll "ragged-all-to-all" Exact 6;
    RaggedDot "ragged-dot" Exact 3;
    Real "real" Exact 1;
    Recv "recv" Exact 1;
    RecvDone "recv-done" Exact 1;
    Reduce "reduce" AtLeast 2;
    ReducePrecision "reduce-precision" Exact 1;
    ReduceScatter "reduce-scatter" AtLeast 1;
    ReduceWindow "reduce-window" AtLeast 2;
    Remainder "remainder" Exact 2;
    ReplicaId "replica-id" Exact 0;
    Reshape "reshape" Exact 1;
    Reverse "reverse" Exact 1;
    Rng "rng" AtLeast 0;
    RngBitGenerator "rng-bit-generator" Exact 1;
    RngGetAndUpdateState "rng-get-and-update-state" Exact 0;
    RoundNearestAfz "round-nearest-afz" Exact 1;
    RoundNearestEven "round-nearest-even" Exact 1;
    Rsqrt "rsqrt" Exact 1;
    Scan "scan" AtLeast 1;
    Scatter "scatter" AtLeast 3;
    Select "select" Exact 3;
    SelectAndScatter "select-and-scatter" Exact 3;
    Send "send" Exact 2;
    SendDone "send-done" Exact 1;
    SetDimensionSize "set-dimension-size" Exact 2;
    ShiftLeft "shift-left" Exact 2;
    ShiftRightArithmetic "shift-right-arithmetic" Exact 2;
    ShiftRightLogical "shift-right-logical" Exact 2;
    Sign "sign" Exact 1;
    Sin "sine" Exact 1;
    Sinh "sinh" Exact 1;
    Slice "slice" Exact 1;
    Sort "sort" AtLeast 1;
    Sqrt "sqrt" Exact 1;
    StochasticConvert "stochastic-convert" Exact 2;
    Subtract "subtract" Exact 2;
    Tan "tan" Exact 1;
    Tanh "tanh" Exact 1;
    TopK "topk" Exact 1;
    Transpose "transpose" Exact 1;
    TriangularSolve "triangular-solve" Exact 2;
    Tuple "tuple" AtLeast 0;
    While "while" Exact 1;
    Xor "xor" Exact 2;
    ClzCount "count-leading-zeros" Exact 1;
}

impl Opcode {
    /// Whether each output element depends only on the same element of the operands.
    ///
    /// `parameter`, `constant` and shape-changing operations are not elementwise;
    /// `select` and `clamp` are, although their predicate or bounds may be scalars.
    #[must_use]
    pub fn is_elementwise(self) -> bool {
        use Opcode as O;
        self.is_elementwise_unary()
            || self.is_elementwise_binary()
            || matches!(self, O::Compare | O::Select | O::Clamp | O::StochasticConvert)
    }

    /// Elementwise with one operand of the result's shape (the element type may change).
    #[must_use]
    pub fn is_elementwise_unary(self) -> bool {
        use Opcode as O;
        matches!(
            self,
            O::Abs
                | O::Acos
                | O::Acosh
                | O::Asin
                | O::Asinh
                | O::Atanh
                | O::Cbrt
                | O::Ceil
                | O::ClzCount
                | O::Convert
                | O::Copy
                | O::Cos
                | O::Cosh
                | O::Erf
                | O::Exp
                | O::Expm1
                | O::Floor
                | O::Imag
                | O::IsFinite
                | O::Log
                | O::Log1p
                | O::Logistic
                | O::Negate
                | O::Not
                | O::PopulationCount
                | O::Real
                | O::ReducePrecision
                | O::RoundNearestAfz
                | O::RoundNearestEven
                | O::Rsqrt
                | O::Sign
                | O::Sin
                | O::Sinh
                | O::Sqrt
                | O::Tan
                | O::Tanh
        )
    }

    /// Elementwise with two operands of one element type, which is the result's.
    #[must_use]
    pub fn is_elementwise_binary(self) -> bool {
        use Opcode as O;
        matches!(
            self,
            O::Add
                | O::And
                | O::Atan2
                | O::Divide
                | O::Maximum
                | O::Minimum
                | O::Multiply
                | O::Or
                | O::Power
                | O::Remainder
                | O::ShiftLeft
                | O::ShiftRightArithmetic
                | O::ShiftRightLogical
                | O::Subtract
                | O::Xor
        )
    }
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Unrecognized { "(unrecognized)" } else { self.name() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_resolve_to_themselves() {
        for &opcode in Opcode::ALL {
            assert_eq!(Opcode::from_name(opcode.name()), opcode);
        }
        assert_eq!(Opcode::from_name("no-such-opcode"), Opcode::Unrecognized);
    }
}
