//! Kernel loading.
