//! The stack that a program needs together with the functions that it is in, as Linux before 6.9 counts it: a kernel that
//! rounds less takes what another one refuses ("combined stack size of N calls is M. Too large").

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};

use super::elf::{Section, sections, text, u32, u64};

/// `MAX_BPF_STACK` (include/linux/filter.h).
const MAX: usize = 512;
/// What each function's part is rounded up to (`check_max_stack_depth`, kernel/bpf/verifier.c before 6.9).
const ROUND: usize = 32;
/// Calls below each other, the program itself included (`MAX_CALL_FRAMES`).
const FRAMES: usize = 8;

const SYMBOLS: u32 = 2;
const RELOCATIONS: u32 = 9;
const FUNCTION: u8 = 2;
const SECTION_SYMBOL: u8 = 3;
/// The read-only register that points behind a function's stack.
const FRAME: u8 = 10;

/// Section and offset where a function begins.
type Place = (usize, usize);

/// A function of the object.
#[derive(Debug)]
struct Function {
    name: String,
    /// Octets of stack.
    depth: usize,
    calls: BTreeSet<Place>,
}

struct Symbol {
    name: String,
    kind: u8,
    place: Place,
    len: usize,
}

/// The deepest chain of calls of an object.
///
/// # Errors
///
/// It needs more than the kernel gives, or the object is not as it should be.
pub(super) fn check(elf: &[u8]) -> anyhow::Result<()> {
    let functions = functions(elf)?;
    let (mut deepest, mut chain) = (0, Vec::new());
    for start in functions.keys() {
        walk(&functions, *start, 0, &mut Vec::new(), &mut |depth, names| {
            if depth > deepest {
                (deepest, chain) = (depth, names.to_vec());
            }
        })?;
    }
    ensure!(!chain.is_empty(), "the object has no function that needs a stack");
    ensure!(
        deepest <= MAX,
        "the stacks of {} need {deepest} octets together and Linux before 6.9 gives {MAX}",
        chain.join(" -> ")
    );
    Ok(())
}

fn walk(
    functions: &BTreeMap<Place, Function>,
    place: Place,
    above: usize,
    names: &mut Vec<String>,
    see: &mut dyn FnMut(usize, &[String]),
) -> anyhow::Result<()> {
    let f = functions.get(&place).context("a call leads to no function")?;
    ensure!(names.len() < FRAMES, "{} calls too deep", names.join(" -> "));
    let depth = above + f.depth.max(1).next_multiple_of(ROUND);
    names.push(format!("{} ({})", f.name, f.depth));
    see(depth, names);
    for call in &f.calls {
        walk(functions, *call, depth, names, see)?;
    }
    names.pop();
    Ok(())
}

fn functions(elf: &[u8]) -> anyhow::Result<BTreeMap<Place, Function>> {
    let sections = sections(elf)?;
    let symbols = symbols(elf, &sections)?;
    let mut targets = BTreeMap::new();
    for table in sections.iter().filter(|s| s.kind == RELOCATIONS) {
        for at in (table.start..table.start + table.len).step_by(16) {
            let symbol = symbols
                .get(u64(elf, at + 8)? >> 32)
                .context("a relocation without a symbol")?;
            targets.insert((table.about, u64(elf, at)?), symbol);
        }
    }
    let mut functions = BTreeMap::new();
    for symbol in symbols.iter().filter(|s| s.kind == FUNCTION) {
        let start = sections
            .get(symbol.place.0)
            .context("a function without a section")?
            .start;
        let (mut depth, mut calls) = (0, BTreeSet::new());
        let mut at = symbol.place.1;
        // The registers that were just made a copy of the frame pointer.
        let mut copies = BTreeSet::new();
        while at < symbol.place.1 + symbol.len {
            let (code, registers) = (byte(elf, start + at)?, byte(elf, start + at + 1)?);
            let (to, from) = (registers & 15, registers >> 4);
            let imm = u32(elf, start + at + 4)?.cast_signed();
            let off = i16::from_le_bytes([byte(elf, start + at + 2)?, byte(elf, start + at + 3)?]);
            let below = |n: i64| usize::try_from(-n).unwrap_or(0);
            match code {
                // Stores (of a constant, of a register) and loads of every width.
                _ if matches!(code & 7, 2 | 3) && to == FRAME => depth = depth.max(below(off.into())),
                _ if code & 7 == 1 && from == FRAME => depth = depth.max(below(off.into())),
                // to = r10; to += imm
                0xbf if from == FRAME => drop(copies.insert(to)),
                0x07 if copies.remove(&to) => depth = depth.max(below(imm.into())),
                // A call of a function of the object: imm is relative to the next instruction, or a relocation tells.
                0x85 if from == 1 => drop(calls.insert(target(&targets, (symbol.place.0, at), imm)?)),
                _ => {}
            }
            // A constant of 64 bits takes two.
            at += if code == 0x18 { 16 } else { 8 };
        }
        let name = symbol.name.clone();
        functions.insert(symbol.place, Function { name, depth, calls });
    }
    Ok(functions)
}

fn target(targets: &BTreeMap<Place, &Symbol>, call: Place, imm: i32) -> anyhow::Result<Place> {
    let offset = |base: usize| {
        let at = i64::try_from(base)? + (i64::from(imm) + 1) * 8;
        usize::try_from(at).context("a call leads out of the object")
    };
    match targets.get(&call) {
        None => Ok((call.0, offset(call.1)?)),
        Some(s) if s.kind == SECTION_SYMBOL => Ok((s.place.0, offset(s.place.1)?)),
        Some(s) => Ok(s.place),
    }
}

fn symbols(elf: &[u8], sections: &[Section]) -> anyhow::Result<Vec<Symbol>> {
    let table = sections.iter().find(|s| s.kind == SYMBOLS).context("no symbols")?;
    let strings = sections.get(table.strings).context("symbols without names")?.start;
    (table.start..table.start + table.len)
        .step_by(24)
        .map(|at| {
            let name = text(elf, strings + u32(elf, at)? as usize)?;
            Ok(Symbol {
                name: String::from_utf8_lossy(name).into_owned(),
                kind: byte(elf, at + 4)? & 15,
                place: (usize::from(super::elf::u16(elf, at + 6)?), u64(elf, at + 8)?),
                len: u64(elf, at + 16)?,
            })
        })
        .collect()
}

fn byte(elf: &[u8], at: usize) -> anyhow::Result<u8> {
    elf.get(at).copied().context("cut short")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, depth: usize, calls: &[usize]) -> Function {
        Function {
            name: name.to_owned(),
            depth,
            calls: calls.iter().map(|c| (0, *c)).collect(),
        }
    }

    fn deepest(functions: [Function; 4]) -> usize {
        let functions = functions.into_iter().enumerate().map(|(i, f)| ((0, i), f)).collect();
        let mut deepest = 0;
        walk(&functions, (0, 0), 0, &mut Vec::new(), &mut |depth, _| {
            deepest = deepest.max(depth)
        })
        .unwrap();
        deepest
    }

    #[test]
    fn each_part_is_rounded_up_and_the_deepest_chain_counts() {
        let sum = deepest([
            function("program", 240, &[1, 3]),
            function("a", 80, &[2]),
            function("b", 192, &[]),
            function("c", 250, &[]),
        ]);
        assert_eq!(sum, 256 + 96 + 192);
        let sum = deepest([
            function("program", 0, &[1]),
            function("a", 32, &[]),
            function("b", 512, &[]),
            function("c", 512, &[]),
        ]);
        assert_eq!(sum, 32 + 32);
    }

    #[test]
    fn the_object_fits_and_its_calls_are_found() {
        let object = std::fs::read(crate::build::root().join("ebpf/netd.bpf.o")).unwrap();
        check(&object).unwrap();
        let functions = functions(&object).unwrap();
        let program = functions.values().find(|f| f.name == "from_ep").unwrap();
        assert!(program.depth > 0 && !program.calls.is_empty());
        assert!(program.calls.iter().all(|c| functions.contains_key(c)));
    }
}
