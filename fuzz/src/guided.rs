//! One door under libFuzzer; `NETD_DOOR` names it. Run by `cargo xtask fuzz --guided --door DOOR`.
#![no_main]

use std::sync::LazyLock;

use fuzz::Door;

static DOOR: LazyLock<Door> = LazyLock::new(|| {
    let name = std::env::var("NETD_DOOR").unwrap_or_default();
    let door = fuzz::all().into_iter().find(|d| d.name == name);
    door.unwrap_or_else(|| panic!("NETD_DOOR={name:?} names no door; try: cargo xtask fuzz --list"))
});

libfuzzer_sys::fuzz_target!(|octets: &[u8]| (DOOR.open)(octets));
