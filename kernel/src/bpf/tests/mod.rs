//! Tests on the running kernel: they need root, and make mount and network namespaces of their own, which vanish with
//! the thread that a test runs in, however it ends.

mod bench;
mod early;
mod flows;
mod guards;
mod lab;
mod life;
mod packets;
mod probe;
mod programs;
mod talk;
mod tunnel;
mod world;
