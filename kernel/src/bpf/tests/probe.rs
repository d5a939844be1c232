//! What the running kernel is able to do, by asking it: distributions take features of newer kernels into older ones, so
//! its number tells nothing.

use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};

use crate::bpf::{
    sys::{addr, bpf},
    test_run::{self, Came},
};

const PROG_LOAD: libc::c_int = 5;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_F_ADJ_ROOM_DECAP_L3_IPV6` (Linux 6.3).
const DECAP_IPV6: i32 = 1 << 8;

/// `union bpf_attr` of `BPF_PROG_LOAD`, as far as it is needed.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// `struct bpf_insn`; both registers in one octet, the destination in the lower half.
#[repr(C)]
struct Insn {
    code: u8,
    registers: u8,
    off: i16,
    imm: i32,
}

/// Whether headers can be taken off a packet of IPv4 that has IPv6 inside; else the programs leave such packets to the
/// VXLAN device. `packet` is one, and `headers` the octets between its Ethernet header and the inner IPv6 header.
pub(super) fn unwraps_ipv6(packet: &[u8], headers: usize) -> bool {
    // Without the flag every kernel does it (and takes what is left for IPv4): the flag alone makes the difference.
    assert_eq!(shrink(packet, headers, 0), 0);
    match shrink(packet, headers, DECAP_IPV6) {
        0 => true,
        e if e == -libc::EINVAL => false,
        e => panic!("bpf_skb_adjust_room: {e}"),
    }
}

/// What `bpf_skb_adjust_room` says when it takes `headers` octets away.
fn shrink(packet: &[u8], headers: usize, flags: i32) -> i32 {
    let insn = |code, registers, imm| Insn {
        code,
        registers,
        off: 0,
        imm,
    };
    let program = [
        // r2 = -headers, r3 = BPF_ADJ_ROOM_MAC, r4 = flags; r1 is the packet already
        insn(0xb7, 2, -i32::try_from(headers).unwrap()),
        insn(0xb7, 3, 1),
        insn(0xb7, 4, flags),
        // bpf_skb_adjust_room; what it says is the verdict
        insn(0x85, 0, 50),
        insn(0x95, 0, 0),
    ];
    let mut load = Load {
        prog_type: SCHED_CLS,
        insn_cnt: program.len() as u32,
        insns: addr(program.as_ptr()),
        license: addr(c"GPL".as_ptr()),
    };
    // SAFETY: the program and its licence are readable, the latter to its zero; the descriptor is ours alone.
    let fd = unsafe {
        let fd = bpf(PROG_LOAD, &mut load).unwrap();
        OwnedFd::from_raw_fd(i32::try_from(fd).unwrap())
    };
    let came = Came {
        ifindex: 1,
        gso_size: 0,
    };
    test_run::run(fd.as_fd(), packet, came, 1).unwrap().0
}
