//! The memory of a skip list: one block that never moves.
//!
//! Large ones are mapped by themselves, with huge pages where the system has them. A search touches a dozen
//! nodes all over the block; with pages of 4 KiB nearly each of them is also a miss in the table of pages, and
//! filling the block costs a fault for each page. And an allocator that is asked for so much may first tidy
//! up, for tens of milliseconds in which a writer waits; a mapping is there at once, and gone at once.
#![expect(unsafe_code, reason = "memory that many threads share by offsets")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Alignment of blocks that are large enough for huge pages.
const HUGE: usize = 2 << 20;
const SMALL_ALIGN: usize = 64;

/// Not written yet at first; who may read and write which bytes is its owner's to keep.
pub(super) struct Arena {
    base: NonNull<u8>,
    size: usize,
    source: Source,
}

/// Where the memory is from, and goes back to.
enum Source {
    Allocator(Layout),
    /// A mapping of its own: where it begins and its bytes.
    #[cfg(unix)]
    Mapping(*mut std::ffi::c_void, usize),
}

impl Arena {
    /// REQUIRES: `size` is neither 0 nor near the end of the address space.
    pub(super) fn new(size: usize) -> Arena {
        assert!(size > 0, "an arena has bytes");
        let mapped = if size >= 2 * HUGE { map(size) } else { None };
        mapped.unwrap_or_else(|| allocate(size))
    }

    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }
}

fn allocate(size: usize) -> Arena {
    let size = size.next_multiple_of(SMALL_ALIGN);
    let layout =
        Layout::from_size_align(size, SMALL_ALIGN).expect("a size below 4 GiB is a layout");
    // SAFETY: the layout's size is not 0.
    let base = unsafe { alloc(layout) };
    let Some(base) = NonNull::new(base) else {
        handle_alloc_error(layout);
    };
    Arena {
        base,
        size,
        source: Source::Allocator(layout),
    }
}

/// A mapping with a part that is aligned for huge pages; `None` if the system does not give one.
#[cfg(unix)]
fn map(size: usize) -> Option<Arena> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let size = size.next_multiple_of(HUGE);
    let whole = size + HUGE;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the system chooses where, so that nothing else is replaced.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), whole, access, MapFlags::PRIVATE) };
    let start = start.ok()?;
    let skipped = start.align_offset(HUGE);
    // SAFETY: less than `HUGE` is skipped, and the mapping is larger by that.
    let base = unsafe { start.cast::<u8>().add(skipped) };
    let arena = Arena {
        base: NonNull::new(base)?,
        size,
        source: Source::Mapping(start, whole),
    };
    ask_for_huge_pages(arena.base, size);
    Some(arena)
}

#[cfg(not(unix))]
fn map(_: usize) -> Option<Arena> {
    None
}

/// If the system has none, or does not want to, small pages do.
#[cfg(unix)]
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
        match self.source {
            // SAFETY: `base` came from `alloc` with this layout, and is freed once.
            Source::Allocator(layout) => unsafe { dealloc(self.base.as_ptr(), layout) },
            // SAFETY: this is the whole mapping, and nobody refers to it any more.
            #[cfg(unix)]
            Source::Mapping(start, whole) => unsafe {
                let _ = rustix::mm::munmap(start, whole);
            },
        }
    }
}
