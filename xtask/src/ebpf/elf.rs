//! As much of a little-endian ELF64 object as the rewriting and the checks of it need.

use anyhow::{Context as _, bail, ensure};

/// A section's place in the file, and what its header says of others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    /// `SHT_...`.
    pub(super) kind: u32,
    pub(super) start: usize,
    pub(super) len: usize,
    /// The section that it is about (`sh_info`), where it is about one.
    pub(super) about: usize,
    /// The section of its strings (`sh_link`).
    pub(super) strings: usize,
    /// Where its name begins in the file.
    name: usize,
}

/// The sections of an object.
pub(super) fn sections(elf: &[u8]) -> anyhow::Result<Vec<Section>> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "no little-endian ELF64 file");
    let (table, size) = (u64(elf, 0x28)?, u16(elf, 0x3a)? as usize);
    let (count, names) = (u16(elf, 0x3c)? as usize, u16(elf, 0x3e)? as usize);
    let header = |i: usize| table + i * size;
    let strings = u64(elf, header(names) + 0x18)?;
    (0..count)
        .map(|i| {
            Ok(Section {
                kind: u32(elf, header(i) + 4)?,
                start: u64(elf, header(i) + 0x18)?,
                len: u64(elf, header(i) + 0x20)?,
                strings: u32(elf, header(i) + 0x28)? as usize,
                about: u32(elf, header(i) + 0x2c)? as usize,
                name: strings + u32(elf, header(i))? as usize,
            })
        })
        .collect()
}

/// The section of a name.
pub(super) fn section(elf: &[u8], wanted: &str) -> anyhow::Result<Section> {
    for section in sections(elf)? {
        if text(elf, section.name)? == wanted.as_bytes() {
            return Ok(section);
        }
    }
    bail!("no section {wanted}")
}

/// A name that ends with a zero octet.
pub(super) fn text(elf: &[u8], at: usize) -> anyhow::Result<&[u8]> {
    let name = elf.get(at..).context("a name lies outside the file")?;
    Ok(name.split(|c| *c == 0).next().unwrap_or_default())
}

fn array<const N: usize>(b: &[u8], at: usize) -> anyhow::Result<[u8; N]> {
    b.get(at..at + N).and_then(|s| s.try_into().ok()).context("cut short")
}

pub(super) fn u16(b: &[u8], at: usize) -> anyhow::Result<u16> {
    Ok(u16::from_le_bytes(array(b, at)?))
}

pub(super) fn u32(b: &[u8], at: usize) -> anyhow::Result<u32> {
    Ok(u32::from_le_bytes(array(b, at)?))
}

pub(super) fn u64(b: &[u8], at: usize) -> anyhow::Result<usize> {
    Ok(usize::try_from(u64::from_le_bytes(array(b, at)?))?)
}
