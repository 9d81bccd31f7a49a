//! EntroPIC: entropy control for JAX-exported train steps.
