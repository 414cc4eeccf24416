//! One block of a tensor: a header, then the data.

use std::{
    alloc::{self, Layout},
    num::NonZero,
    ptr::{self, NonNull},
    sync::LazyLock,
    thread,
};

use cudarc::driver::sys;

use super::MemoryKind;

/// libtorch requires 64 (`c10::gAlignment`), a cache line; the header takes one.
const ALIGNMENT: usize = 64;

/// A mapping's length is a multiple of this. It is more than a page, so that tiles that differ by a row are the same to
/// the cache; what a tensor does not write is not resident.
const GRANULE: usize = 64 << 10;

/// What the system backs large mappings with where it can.
const HUGE_PAGE: usize = 2 << 20;

/// A header lies directly in front of the data, so that a pointer to the data is all that a block is known by.
#[repr(C, align(64))]
struct Header {
    /// What the tensor asked for, bytes.
    len: usize,
    /// Length of the block's own mapping, header included; 0 for a block of the heap.
    mapped_len: usize,
    is_pinned: bool,
    kind: MemoryKind,
}

/// A tensor's memory.
pub(super) struct Block(NonNull<Header>);

impl Block {
    /// Takes memory from the heap. `None` if there is none.
    pub(super) fn from_heap(len: usize, kind: MemoryKind) -> Option<Self> {
        // SAFETY: the layout has a size: it contains the header.
        let start = NonNull::new(unsafe { alloc::alloc(heap_layout(len)?) })?;
        Some(Self::write(start.cast(), Header { len, mapped_len: 0, is_pinned: false, kind }))
    }

    /// Takes over a mapping that is at least [`Block::mapped_len_for`] `len` long.
    pub(super) fn from_mapping(mapping: Mapping, len: usize, kind: MemoryKind) -> Self {
        let (mapped_len, is_pinned) = (mapping.len, mapping.is_pinned);
        let start = mapping.into_start();
        Self::write(start.cast(), Header { len, mapped_len, is_pinned, kind })
    }

    fn write(start: NonNull<Header>, header: Header) -> Self {
        // SAFETY: both constructors give memory of their own, aligned to 64 bytes, with room for a header.
        unsafe { start.write(header) };
        Self(start)
    }

    /// How long a mapping must be for `len` bytes of data; `None` if no address space is that large.
    pub(super) fn mapped_len_for(len: usize) -> Option<usize> {
        len.checked_add(size_of::<Header>())?.checked_next_multiple_of(GRANULE)
    }

    /// The block whose data starts at `data`.
    ///
    /// # Safety
    ///
    /// `data` comes from [`Block::into_data`]. Of two blocks made from one pointer, only one may be released.
    pub(super) unsafe fn from_data(data: NonNull<u8>) -> Self {
        // SAFETY: `into_data` has added as much.
        Self(unsafe { data.cast::<Header>().sub(1) })
    }

    /// Its data, uninitialised. Whoever has the pointer owns the block.
    pub(super) fn into_data(self) -> NonNull<u8> {
        // SAFETY: every block is longer than its header, or as long if it has no data.
        unsafe { self.0.add(1).cast() }
    }

    fn header(&self) -> &Header {
        // SAFETY: `write` has initialised it; it is changed only through `&mut self`.
        unsafe { self.0.as_ref() }
    }

    pub(super) fn len(&self) -> usize {
        self.header().len
    }

    pub(super) fn kind(&self) -> MemoryKind {
        self.header().kind
    }

    pub(super) fn set_kind(&mut self, kind: MemoryKind) {
        // SAFETY: as for `header`.
        unsafe { self.0.as_mut().kind = kind };
    }

    /// Frees a block of the heap; returns the mapping of any other.
    pub(super) fn release(self) -> Option<Mapping> {
        let Header { len, mapped_len, is_pinned, .. } = *self.header();
        let start = self.0.cast::<u8>();
        if mapped_len > 0 {
            return Some(Mapping { start, len: mapped_len, is_pinned });
        }
        let layout = heap_layout(len).expect("the layout of an allocated block");
        // SAFETY: `from_heap` has allocated it with this layout, and `self` was its only owner.
        unsafe { alloc::dealloc(start.as_ptr(), layout) };
        None
    }
}

fn heap_layout(len: usize) -> Option<Layout> {
    Layout::from_size_align(len.checked_add(size_of::<Header>())?, ALIGNMENT).ok()
}

/// Anonymous memory that nothing else shares, given back to the system when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// Whether the driver has been told of it.
    is_pinned: bool,
}

// SAFETY: a mapping belongs to the process, and `Mapping` is its only owner.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes, a multiple of the page size. `None` if the system refuses.
    pub(super) fn new(len: usize) -> Option<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: without MAP_FIXED no existing mapping is touched.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        Some(Self { start: NonNull::new(start.cast())?, len, is_pinned: false })
    }

    /// As [`Mapping::new`], its pages kept where they are, for a GPU to copy from and to. Fails with words.
    pub(super) fn new_pinned(len: usize) -> Result<Self, String> {
        static HAS_DRIVER: LazyLock<bool> = LazyLock::new(|| {
            // SAFETY: loads the driver's library, which is loaded already where there is a GPU.
            unsafe { sys::is_culib_present() }
        });
        let mut mapping =
            Self::new(len).ok_or_else(|| format!("the system has no {len} bytes left"))?;
        let start = mapping.start.as_ptr().cast();
        // Pages of 2 MiB are fewer to pin. A system that has none goes on with small ones.
        // SAFETY: the range is this mapping's.
        let _ = unsafe { libc::madvise(start, len, libc::MADV_HUGEPAGE) };
        if !*HAS_DRIVER {
            return Err("this machine has no NVIDIA driver to pin memory".to_owned());
        }
        mapping.populate();
        // SAFETY: the range is this mapping's, which stays until `drop` has unregistered it.
        unsafe { sys::cuMemHostRegister_v2(start, len, sys::CU_MEMHOSTREGISTER_PORTABLE) }
            .result()
            .map_err(|error| {
                format!("the NVIDIA driver cannot pin {len} bytes of host memory: {error}")
            })?;
        mapping.is_pinned = true;
        Ok(mapping)
    }

    /// Has the system find and clear all pages, with as many threads as it has cores: the driver would do it page by page on one.
    fn populate(&mut self) {
        // Of so many huge pages a share is worth a thread.
        const LEAST_SHARE: usize = 64 << 20;
        let num_threads = thread::available_parallelism().map_or(1, NonZero::get);
        let share = self.len.div_ceil(num_threads).next_multiple_of(HUGE_PAGE).max(LEAST_SHARE);
        let start = self.start.as_ptr().addr();
        let populate = |offset: usize| {
            let len = share.min(self.len - offset);
            // Linux before 5.14 does not know it, and then the driver finds the pages. Memory that has run out is the driver's to say.
            // SAFETY: the range is this mapping's, and what is written to it is what it has.
            let _ = unsafe {
                libc::madvise(
                    ptr::with_exposed_provenance_mut(start + offset),
                    len,
                    libc::MADV_POPULATE_WRITE,
                )
            };
        };
        thread::scope(|scope| {
            for offset in (0..self.len).step_by(share).skip(1) {
                let thread = thread::Builder::new().spawn_scoped(scope, move || populate(offset));
                if thread.is_err() {
                    // The system has no thread left.
                    populate(offset);
                }
            }
            populate(0);
        });
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.is_pinned
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Its start. Whoever has the pointer, and the length, owns the mapping.
    fn into_start(self) -> NonNull<u8> {
        let start = self.start;
        std::mem::forget(self);
        start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.is_pinned {
            // SAFETY: the range was registered when the mapping was made.
            let unpinned = unsafe { sys::cuMemHostUnregister(self.start.as_ptr().cast()) };
            if unpinned.result().is_err() {
                // The driver may still copy from and to these pages: nothing else must come to lie there.
                return;
            }
        }
        // SAFETY: the range is this mapping's, and `self` was its only owner.
        if unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) } != 0 {
            // The process has as many mappings as it may, and cannot split one: the pages at least go back.
            // SAFETY: as above; nobody reads the contents any more.
            let _ =
                unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_DONTNEED) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_space_is_no_memory() {
        assert_eq!(Block::mapped_len_for(usize::MAX - 8), None);
        assert!(Mapping::new(1 << 60).is_none());
        assert!(Block::from_heap(usize::MAX - 8, MemoryKind::Other).is_none());
    }
}
