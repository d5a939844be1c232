//! Pure core: load-balancing intent lowered to map entries
