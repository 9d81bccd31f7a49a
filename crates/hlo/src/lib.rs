//! HLO as a typed IR.
