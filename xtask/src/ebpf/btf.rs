//! BTF as the kernel takes it. Names: Rust's (`Option<u32>`, `a::b`) are no C identifiers, and the kernel refuses the whole BTF for one
//! such name (`btf_name_valid_identifier`, kernel/bpf/btf.c): every character that it does not take becomes `_`. Members:
//! Rust orders the fields of a struct as it likes and describes them in the source's order; the kernel wants them by
//! offset (`btf_struct_check_meta`).

use anyhow::{Context as _, bail, ensure};

use super::elf::{section, u16, u32};

/// Rewrites the BTF of an ELF object in place: nothing changes its length.
pub(super) fn fit(elf: &mut [u8]) -> anyhow::Result<()> {
    let s = section(elf, ".BTF")?;
    let btf = elf
        .get_mut(s.start..s.start + s.len)
        .context(".BTF lies outside the file")?;
    ensure!(u16(btf, 0)? == 0xeb9f, "no BTF magic");
    let header = u32(btf, 4)? as usize;
    let types = header + u32(btf, 8)? as usize..header + (u32(btf, 8)? + u32(btf, 12)?) as usize;
    let strings = header + u32(btf, 16)? as usize..header + (u32(btf, 16)? + u32(btf, 20)?) as usize;
    let mut at = types.start;
    while at < types.end {
        let (name, info) = (u32(btf, at)?, u32(btf, at + 4)?);
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        // Octets behind the common header per type, and per member; whether members begin with a name.
        let (extra, each, named) = match kind {
            // int, array, struct, union, enum, function prototype
            1 => (4, 0, false),
            3 => (12, 0, false),
            4 | 5 => (0, 12, true),
            6 => (0, 8, true),
            13 => (0, 8, true),
            // variable, section, declaration tag, enum of 64 bits
            14 => (4, 0, false),
            15 => (0, 12, false),
            17 => (4, 0, false),
            19 => (0, 12, true),
            // pointer, forward, typedef, qualifiers, function, float, type tag
            2 | 7..=12 | 16 | 18 => (0, 0, false),
            _ => bail!("BTF kind {kind} is not known"),
        };
        // Names of sections begin with a dot, as they must.
        if kind != 15 {
            sanitize(btf, &strings, name)?;
        }
        at += 12 + extra;
        if kind == 4 {
            by_offset(btf.get_mut(at..at + 12 * members).context("members lie outside .BTF")?);
        }
        for _ in 0..members * usize::from(each != 0) {
            if named {
                let name = u32(btf, at)?;
                sanitize(btf, &strings, name)?;
            }
            at += each;
        }
    }
    Ok(())
}

/// Sorts the members of a struct (name, type, offset in bits) by their offset.
fn by_offset(members: &mut [u8]) {
    let mut sorted: Vec<[u8; 12]> = members.as_chunks::<12>().0.to_vec();
    // The upper octet is a bit field's width.
    sorted.sort_by_key(|[.., a, b, c, _]| u32::from_le_bytes([*a, *b, *c, 0]));
    for (to, from) in members.as_chunks_mut::<12>().0.iter_mut().zip(sorted) {
        *to = from;
    }
}

fn sanitize(btf: &mut [u8], strings: &std::ops::Range<usize>, name: u32) -> anyhow::Result<()> {
    let table = btf
        .get_mut(strings.clone())
        .context("the string table lies outside .BTF")?;
    let name = table
        .get_mut(name as usize..)
        .context("a name lies outside the string table")?;
    for (i, c) in name.iter_mut().take_while(|c| **c != 0).enumerate() {
        if !(c.is_ascii_alphabetic() || *c == b'_' || i > 0 && c.is_ascii_digit()) {
            *c = b'_';
        }
    }
    Ok(())
}
