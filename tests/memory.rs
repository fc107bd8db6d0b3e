//! How much memory a reader takes of a file that somebody hostile wrote: an allocator that counts.
#![allow(unsafe_code, clippy::unwrap_used)]

use gracekeeper::audit::verify::{State, check};
use gracekeeper::policy::Policy;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufReader, Read};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(layout.size(), SeqCst) + layout.size(), SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most that was taken at once, beyond what was there.
fn peak<T>(of: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(SeqCst);
    PEAK.store(before, SeqCst);
    let result = of();
    (result, PEAK.load(SeqCst) - before)
}

const MIB: usize = 1 << 20;

/// One test, so that nobody else takes memory meanwhile.
#[test]
fn readers_take_no_more_than_they_said() {
    let (_, whole) = peak(|| vec![0u8; 64 * MIB].len());
    assert!(whole >= 64 * MIB, "control: the allocator counts");

    // A line without end, and 64 MiB of lines that are no records, of braces, of quotes and of numbers.
    for filler in [&b"x"[..], b"{", b"\"", b"9", b"{\"a\":", b"x\n", b"{}\n", b"\n"] {
        let endless = std::iter::repeat_n(filler, 64 * MIB / filler.len()).flatten().copied();
        let mut bytes = endless;
        let reader = BufReader::new(FromIter(&mut bytes));
        let (report, most) = peak(|| check(reader, None).unwrap());
        assert_ne!(report.state, State::Sealed);
        assert!(most < 6 * MIB, "{filler:?}: {most} bytes");
    }

    // A policy of the longest kind, and one byte more.
    let longest = format!("{{\"version\":1,\"commands\":[{}]}}", vec!["{\"path\":\"/x\"}"; MIB / 14 - 10].join(","));
    assert!(longest.len() <= MIB);
    for text in [
        longest.clone(),
        "[".repeat(MIB),
        "\"".repeat(MIB),
        "{\"version\":1,".repeat(MIB / 13),
        longest + &" ".repeat(MIB),
    ] {
        let (result, most) = peak(|| Policy::parse(text.as_bytes()));
        assert!(result.is_err() && most < 32 * MIB, "{most} bytes");
    }
}

struct FromIter<'a, I>(&'a mut I);

impl<I: Iterator<Item = u8>> Read for FromIter<'_, I> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let mut n = 0;
        for (slot, byte) in to.iter_mut().zip(self.0.by_ref()) {
            *slot = byte;
            n += 1;
        }
        Ok(n)
    }
}
