//! How the release binary is linked: no unwind tables, and identical functions once.
//!
//! Nothing unwinds in the release (panic = "abort"), and the panic hook prints no backtrace, so the tables that glibc's
//! archive brings along are 160 KB that nobody reads; folding identical functions is another 24 KB. Both are said in the
//! terms of rust-lld, which links x86-64 Linux by default; elsewhere the binary is that much larger.

fn main() {
    println!("cargo:rerun-if-changed=link/no-unwind.ld");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("link/no-unwind.ld");
        for argument in ["--icf=all", "--no-eh-frame-hdr", "-T", &script.display().to_string()] {
            println!("cargo:rustc-link-arg-bin=gracekeeper=-Wl,{argument}");
        }
    }
}
