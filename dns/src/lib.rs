//! Pure core: names, views and answers
