//! PJRT C API client.
