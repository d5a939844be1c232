//! The vocabulary: ids, specs, rows, API requests and answers
