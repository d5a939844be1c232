//! `BPF_PROG_TEST_RUN`: a program on a packet by hand, for tests.

use std::{io, os::fd::BorrowedFd};

use super::sys::{PROG_TEST_RUN, addr, bpf, raw};

#[repr(C)]
#[derive(Default)]
struct Run {
    prog_fd: u32,
    retval: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
}

/// `struct __sk_buff` up to `gso_size`; the kernel takes `ifindex`, `gso_size` and few others.
#[repr(C)]
#[derive(Clone, Copy)]
struct Context {
    words: [u32; 48],
}

/// Word of `ifindex` in `struct __sk_buff`: len, pkt_type, mark, queue_mapping, protocol, vlan (3), priority,
/// ingress_ifindex, ifindex.
const IFINDEX: usize = 10;
/// Word of `gso_size`, the last that the kernel takes.
const GSO_SIZE: usize = 44;

/// How the packet came in.
#[derive(Clone, Copy)]
pub(super) struct Came {
    /// On which device.
    pub(super) ifindex: u32,
    /// Octets of payload per segment; 0: it is one packet.
    pub(super) gso_size: u32,
}

/// Runs a program on a packet; gives the verdict and the packet afterwards, and the
/// mean time in ns.
pub(super) fn run(program: BorrowedFd<'_>, packet: &[u8], came: Came, repeat: u32) -> io::Result<(i32, Vec<u8>, u32)> {
    let mut out = vec![0u8; packet.len() + 512];
    let mut ctx = Context { words: [0; 48] };
    ctx.words[IFINDEX] = came.ifindex;
    ctx.words[GSO_SIZE] = came.gso_size;
    let mut a = Run {
        prog_fd: raw(program),
        size_in: packet.len() as u32,
        size_out: out.len() as u32,
        data_in: addr(packet.as_ptr()),
        data_out: addr(out.as_mut_ptr()),
        repeat,
        ctx_size_in: size_of::<Context>() as u32,
        ctx_in: addr(&ctx),
        ..Run::default()
    };
    // SAFETY: all buffers are valid for the sizes given.
    unsafe { bpf(PROG_TEST_RUN, &mut a) }?;
    out.truncate(a.size_out as usize);
    Ok((a.retval.cast_signed(), out, a.duration))
}
