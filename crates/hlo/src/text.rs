//! HLO text as XLA prints it.
