//! The memory of a skip list: one block that never moves.
//!
//! Large ones ask the system for huge pages. A search touches a dozen nodes all over the block; with pages
//! of 4 KiB nearly each of them is also a miss in the table of pages, and filling the block costs a fault
//! for each page.
#![expect(unsafe_code, reason = "memory that many threads share by offsets")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Alignment of blocks that are large enough for huge pages.
const HUGE: usize = 2 << 20;
const SMALL_ALIGN: usize = 64;

/// Not written yet at first; who may read and write which bytes is its owner's to keep.
pub(super) struct Arena {
    base: NonNull<u8>,
    layout: Layout,
}

impl Arena {
    /// REQUIRES: `size` is neither 0 nor near the end of the address space.
    pub(super) fn new(size: usize) -> Arena {
        assert!(size > 0, "an arena has bytes");
        let align = if size >= 2 * HUGE { HUGE } else { SMALL_ALIGN };
        let layout = Layout::from_size_align(size.next_multiple_of(align), align)
            .expect("a size below 4 GiB is a layout");
        // SAFETY: the layout's size is not 0.
        let base = unsafe { alloc(layout) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(layout);
        };
        if align == HUGE {
            ask_for_huge_pages(base, layout.size());
        }
        Arena { base, layout }
    }

    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(super) fn size(&self) -> usize {
        self.layout.size()
    }
}

/// If the system has none, or does not want to, small pages do.
fn ask_for_huge_pages(base: NonNull<u8>, size: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: the bytes are ours, whole pages, and the advice changes none of them.
    unsafe {
        use rustix::mm::{Advice, madvise};
        let _ = madvise(base.as_ptr().cast(), size, Advice::LinuxHugepage);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (base, size);
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc` with this layout, and is freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}
