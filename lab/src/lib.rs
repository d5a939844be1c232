//! Hosts as namespaces: for xtask, tests and netctl lab
