//! Our own environment block, which `/proc/PID/environ` shows for as long as we live.

/// Overwrites the value of every variable that is `value`: a secret that has been taken. A holder of CAP_PERFMON or
/// CAP_SYS_ADMIN may read the block of any process, dumpable or not and whatever Landlock says (mm_access, Linux 6.13).
/// To be called before there is a second thread.
pub fn forget(value: &[u8]) {
    unsafe extern "C" {
        static environ: *const *mut libc::c_char;
    }
    // SAFETY: libc's environ(7) is null or an array of strings that end in NUL, itself ended by null; there is one thread, and
    // nobody holds a reference into them: std hands out copies.
    unsafe {
        let mut at = environ;
        while !at.is_null() && !(*at).is_null() {
            let text = std::ffi::CStr::from_ptr(*at).to_bytes();
            let name = text.iter().position(|&b| b == b'=').map_or(text.len(), |eq| eq.saturating_add(1));
            if text.get(name..).is_some_and(|found| found == value) {
                for offset in name..text.len() {
                    // Volatile: nobody reads it again, which is no reason to leave it out.
                    (*at).add(offset).write_volatile(0);
                }
            }
            at = at.add(1);
        }
    }
}
