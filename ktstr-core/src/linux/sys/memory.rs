//! Mappings and memory policies.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

/// A value in memory that this process shares with the children it forks later.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    value: NonNull<T>,
}

// SAFETY: `Shared` only provides `&T`, to any thread or process, and `T: Sync`.
unsafe impl<T: Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl<T: Sync> Shared<T> {
    /// Maps shared memory and moves `value` into it. `value` is never dropped, so `T` should not own
    /// any resource.
    pub(crate) fn new(value: T) -> io::Result<Self> {
        assert!(align_of::<T>() <= 4096, "a mapping is aligned to a page");
        // SAFETY: an anonymous mapping at an address of the kernel's choice aliases nothing.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                size_of::<T>(),
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
            )
        }?;
        let pointer = NonNull::new(address.cast::<T>()).expect("mmap never returns null");
        // SAFETY: the mapping is new, writable, large enough and page-aligned.
        unsafe { pointer.write(value) };
        Ok(Self { value: pointer })
    }
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` initialised the value, and the mapping lives as long as `self`. Other
        // processes access it only through `&T` as well, and `T: Sync`.
        unsafe { self.value.as_ref() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size, and no reference outlives `self`.
        // It could only fail if this were not mapped, which `new` excludes.
        let _ = unsafe { rustix::mm::munmap(self.value.as_ptr().cast(), size_of::<T>()) };
    }
}

/// Private memory in whole pages that can be discarded and faulted in again.
#[derive(Debug)]
pub(crate) struct Region {
    bytes: NonNull<AtomicU8>,
    len: usize,
}

impl Region {
    pub(crate) const PAGE: usize = 4096;

    /// Maps `pages` pages. The kernel allocates each when it is first written to.
    pub(crate) fn new(pages: usize) -> io::Result<Self> {
        let len = pages * Self::PAGE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice aliases nothing.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE,
            )
        }?;
        let region = Self { bytes: NonNull::new(address.cast()).expect("mmap is not null"), len };
        region.advise(rustix::mm::Advice::LinuxNoHugepage).or_else(|error| {
            // EINVAL: a kernel without huge pages, which does not need the advice.
            if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) }
        })?;
        Ok(region)
    }

    pub(crate) fn touch(&self) {
        for page in self.bytes().chunks(Self::PAGE) {
            page[0].store(1, Ordering::Relaxed);
        }
    }

    /// Returns the memory to the kernel; the bytes read as zero afterwards.
    pub(crate) fn discard(&self) -> io::Result<()> {
        self.advise(rustix::mm::Advice::LinuxDontNeed)
    }

    fn advise(&self, advice: rustix::mm::Advice) -> io::Result<()> {
        // SAFETY: the range is the live mapping of `self`. Its bytes are only accessed as atomics,
        // which another thread or the kernel may set to zero at any time.
        Ok(unsafe { rustix::mm::madvise(self.bytes.as_ptr().cast(), self.len, advice) }?)
    }

    pub(crate) fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: `new` mapped `len` bytes, which live as long as `self`; zeros are valid.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), self.len) }
    }

    /// Returns the NUMA node of each page, or a negative error number for a page without memory.
    ///
    /// Source: move_pages(2).
    pub(crate) fn nodes(&self) -> io::Result<Vec<i32>> {
        let pages: Vec<_> = self.bytes().chunks(Self::PAGE).map(<[_]>::as_ptr).collect();
        let mut nodes = vec![-libc::ENOENT; pages.len()];
        let none = std::ptr::null::<i32>();
        // SAFETY: both lists have `pages.len()` elements. Without a list of target nodes the kernel
        // moves nothing and only writes to `nodes`.
        let status = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                0,
                pages.len(),
                pages.as_ptr(),
                none,
                nodes.as_mut_ptr(),
                0,
            )
        };
        if status == 0 { Ok(nodes) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and no reference outlives `self`.
        // It could only fail if this were not mapped, which `new` excludes.
        let _ = unsafe { rustix::mm::munmap(self.bytes.as_ptr().cast(), self.len) };
    }
}

/// Sets the NUMA memory policy of this thread; `nodes` has one bit per node.
///
/// Source: set_mempolicy(2).
pub(crate) fn set_mempolicy(mode: i32, nodes: u64) -> io::Result<()> {
    // The kernel reads one bit less than `bits`, and takes the empty set only as a null pointer.
    let (mask, bits) = match nodes {
        0 => (std::ptr::null(), 0),
        _ => (&raw const nodes, u64::BITS + 1),
    };
    // SAFETY: the kernel reads the 64 bits of `nodes`, or nothing if the pointer is null.
    match unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
