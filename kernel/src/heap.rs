//! The C library's heap, kept near the size of what is in use. On other libraries than glibc nothing is done.

/// Arenas that threads share. Each has free memory of its own, and by default there are eight a processor: a daemon whose
/// threads mostly wait would hold far more than it uses.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Lets threads share a few arenas. To be called before there are threads.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers, and may be called at any time. Refused, it changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Gives free memory back to the kernel: after a start, which takes many times what running does.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number, and touches memory alone that nobody has.
    unsafe {
        libc::malloc_trim(0);
    }
}
