//! Single protections switched off, for the tests that attack without one: only in a build with the feature
//! `test-switches`, which no release can have. In every other build `without` is the constant `false`, and neither the
//! variable nor its name is there.
//!
//! Invariant: what is switched off is never recorded as `enforced`.

#[cfg(all(feature = "test-switches", not(debug_assertions)))]
compile_error!("test-switches lets the environment switch protections off: it is for debug builds of the tests only");

/// Whether the protection `name` is switched off (`GRACEKEEPER_TEST_WITHOUT`, a list).
#[cfg(feature = "test-switches")]
#[must_use]
pub fn without(name: &str) -> bool {
    static OFF: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let off = OFF.get_or_init(|| std::env::var("GRACEKEEPER_TEST_WITHOUT").unwrap_or_default());
    off.split(',').any(|word| word == name)
}

/// Never: this build has no switches.
#[cfg(not(feature = "test-switches"))]
#[must_use]
#[inline]
pub const fn without(_: &str) -> bool {
    false
}
