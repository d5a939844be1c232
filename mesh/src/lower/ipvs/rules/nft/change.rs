//! From what is seen to what is wanted.

use std::collections::BTreeMap;

use super::{Elements, Seen, Table};

/// What one transaction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Elements alone come and go.
    Elements(Vec<SetChange>),
    /// The table is made anew.
    Rebuild,
}

/// What changes in one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetChange {
    /// Name.
    pub set: String,
    /// Everything goes first.
    pub clear: bool,
    /// Elements that go.
    pub remove: Elements,
    /// Elements that come. One whose value changes goes and comes.
    pub add: Elements,
}

/// Compares. Elements change where all else is as it should be.
pub fn change(seen: Option<&Seen>, wanted: &Table) -> Change {
    let Some(seen) = seen.filter(|s| s.shape == wanted.shape()) else {
        return Change::Rebuild;
    };
    let none = Elements::new();
    let mut out = Vec::new();
    for (name, set) in &wanted.sets {
        let held = seen.elements.get(name).unwrap_or(&none);
        if *held == set.elements {
            continue;
        }
        // Ranges of one field share their edges in the kernel: they are replaced together.
        let clear = set.ranges && set.key.len() == 1;
        let differing = |of: &Elements, from: &Elements| -> Elements {
            let news = of.iter().filter(|(k, v)| from.get(*k) != Some(*v));
            news.map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        out.push(SetChange {
            set: name.clone(),
            clear,
            remove: if clear {
                BTreeMap::new()
            } else {
                differing(held, &set.elements)
            },
            add: if clear {
                set.elements.clone()
            } else {
                differing(&set.elements, held)
            },
        });
    }
    if out.is_empty() {
        Change::None
    } else {
        Change::Elements(out)
    }
}
