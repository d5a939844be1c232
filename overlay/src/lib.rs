//! Pure core: desired, observed and plan of a node's overlay
