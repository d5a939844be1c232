//! The maps. Names, keys and values are the contract with user space (`ebpf_abi`); the sizes are defaults.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use ebpf_abi::{
    Addr, AffVal, Backend, BurstVal, COUNTER_CELLS, EpAddrKey, EpAddrVal, EpCfg, EpExtraKey, EpMacKey, EpMacVal, Flow, FragKey,
    FragVal, FwdKey, FwdVal, MemberVal, NodeCfg, PoolKey, RevVal, RouteKey, RouteVal, SvcKey, SvcVal, TargetKey,
    TargetVal, size,
};

use crate::deliver::Target;

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
const MMAP: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "config")]
pub(crate) static CONFIG: Array<NodeCfg, 1> = Array::new();
#[btf_map(name = "services")]
pub(crate) static SERVICES: HashMap<SvcKey, SvcVal, { size::SERVICES as usize }, ON_DEMAND> = HashMap::new();
#[btf_map(name = "backends")]
pub(crate) static BACKENDS: Array<Backend, { size::BACKENDS as usize }> = Array::new();
#[btf_map(name = "lut")]
pub(crate) static LUT: Array<u32, { size::LUT as usize }, MMAP> = Array::new();
#[btf_map(name = "ep_by_mac")]
pub(crate) static EP_BY_MAC: HashMap<EpMacKey, EpMacVal, { size::ENDPOINTS as usize }, ON_DEMAND> = HashMap::new();
#[btf_map(name = "ep_by_addr")]
pub(crate) static EP_BY_ADDR: HashMap<EpAddrKey, EpAddrVal, { 4 * size::ENDPOINTS as usize }, ON_DEMAND> =
    HashMap::new();
#[btf_map(name = "ep_config")]
pub(crate) static EP_CONFIG: HashMap<u32, EpCfg, { size::ENDPOINTS as usize }, ON_DEMAND> = HashMap::new();
#[btf_map(name = "ep_extra")]
pub(crate) static EP_EXTRA: HashMap<EpExtraKey, u32, { size::ENDPOINTS as usize }, ON_DEMAND> = HashMap::new();
#[btf_map(name = "routes")]
pub(crate) static ROUTES: LpmTrie<[u32; 5], RouteVal, { size::ROUTES as usize }, ON_DEMAND> = LpmTrie::new();
#[btf_map(name = "members")]
pub(crate) static MEMBERS: HashMap<u32, MemberVal, { size::MEMBERS as usize }, ON_DEMAND> = HashMap::new();
#[btf_map(name = "pools")]
pub(crate) static POOLS: LpmTrie<Addr, u32, { size::POOLS as usize }, ON_DEMAND> = LpmTrie::new();
#[btf_map(name = "targets")]
pub(crate) static TARGETS: HashMap<TargetKey, TargetVal, { size::TARGETS as usize }, ON_DEMAND> = HashMap::new();
#[btf_map(name = "affinity")]
pub(crate) static AFFINITY: LruHashMap<Flow, AffVal, { size::FLOWS as usize }> = LruHashMap::new();
#[btf_map(name = "reverse")]
pub(crate) static REVERSE: LruHashMap<Flow, RevVal, { size::FLOWS as usize }> = LruHashMap::new();
#[btf_map(name = "forward")]
pub(crate) static FORWARD: LruHashMap<FwdKey, FwdVal, { size::REWRITTEN as usize }> = LruHashMap::new();
#[btf_map(name = "fragments")]
pub(crate) static FRAGMENTS: LruHashMap<FragKey, FragVal, { size::FRAGMENTS as usize }> = LruHashMap::new();
#[btf_map(name = "bursts")]
pub(crate) static BURSTS: Array<BurstVal, { size::BURSTS as usize }> = Array::new();
#[btf_map(name = "counters")]
pub(crate) static COUNTERS: PerCpuArray<u64, { COUNTER_CELLS as usize }> = PerCpuArray::new();

/// Room for what rare walks need beside the 512 octets of stack.
#[repr(C)]
pub(crate) struct Scratch {
    /// The flow that an ICMP error quotes.
    pub(crate) quoted: Flow,
    /// The key of its way back.
    pub(crate) back: Flow,
    /// What the error's own ends become.
    pub(crate) outer: Flow,
    /// What the quoted ends become.
    pub(crate) inner: Flow,
    /// The flow as it arrived.
    pub(crate) arrived: FwdKey,
    pad: u32,
    /// Its way back.
    pub(crate) way: RevVal,
    /// An IPv6 packet in the making.
    pub(crate) ip: [u32; 18],
    /// Whom an ICMP error is for.
    pub(crate) to: Target,
    /// Its node as on the wire; 0: this one.
    pub(crate) vtep: u32,
}

/// One per CPU: programs of one hook's walk do not interrupt each other (softirqs are off).
#[btf_map(name = "scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// This CPU's scratch; holds what the last walk left there.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: the cell is this CPU's own, and each walk takes it once.
    SCRATCH.get_ptr_mut(0).map(|s| unsafe { &mut *s })
}

/// The node's configuration; `None` until user space has written it.
#[inline(always)]
pub(crate) fn config() -> Option<&'static NodeCfg> {
    let cfg = CONFIG.get_ptr(0)?;
    // SAFETY: a cell of an array map lives as long as the map.
    let cfg = unsafe { &*cfg };
    (cfg.abi != 0).then_some(cfg)
}

/// The whole key of an address in `routes`: [`RouteKey`] behind its prefix length.
#[inline(always)]
pub(crate) fn route_key(vni: u32, a: &Addr) -> Key<[u32; 5]> {
    const { assert!(size_of::<Key<[u32; 5]>>() == size_of::<RouteKey>()) };
    Key::new(160, [vni.to_be(), a.w[0], a.w[1], a.w[2], a.w[3]])
}

/// The whole key of an address in `pools`: [`PoolKey`] behind its prefix length.
#[inline(always)]
pub(crate) fn pool_key(a: &Addr) -> Key<Addr> {
    const { assert!(size_of::<Key<Addr>>() == size_of::<PoolKey>()) };
    Key::new(128, *a)
}
