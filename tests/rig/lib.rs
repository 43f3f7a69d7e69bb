//! The lab, its hosts and the oracle.
