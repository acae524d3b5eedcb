# cython: language_level=3, binding=False, boundscheck=False, wraparound=False
"""The few Linux calls that Python does not wrap: lasting locks, private pages, bare mappings.

Place in the flow: level 3, used by `liveness.py`, `attachment.py` and `segment.py` only.  Knows
nothing of caches: it is given paths and byte numbers.

Why locks are held by a mapping.  An open-file-description lock (F_OFD_SETLK) lives as long as the
open file description, which lives as long as any descriptor or mapping refers to it.  Descriptors
cannot be trusted with that: `os.closerange` in a daemon closes them, and a child that was forked
in C inherits them and would keep its dead parent's lock.  So `LockHold` opens the file, maps one
page of it (PROT_NONE: nobody ever touches it), tells the kernel not to copy that mapping to
children (MADV_DONTFORK), takes the lock, and closes the descriptor.  From then on the mapping
alone keeps the lock, and the kernel drops both with the process, however it ends.

Why nothing here releases the GIL between open and close.  A child that another Python thread
forked just then would inherit the descriptor, and the lock with it; `os.closerange` in another
thread would let us lock a stranger's file.  With the GIL held, neither can come in between.  None
of these calls blocks.

Why pages that are wiped on fork.  A child may be forked by C code, behind Python's back, so that
no hook runs.  A word in a page with MADV_WIPEONFORK reads zero in every child, and so tells any
code, at the cost of one load, that what it knows about "its" process is somebody else's.
"""

import os
import threading

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrnoWithFilenameObject
from libc.errno cimport EACCES, EAGAIN, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.fcntl cimport O_CLOEXEC, O_NONBLOCK, O_RDONLY, O_RDWR, open as c_open
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close as c_close


cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void*, size_t, int, int, int, int64_t)
    int munmap(void*, size_t)
    int madvise(void*, size_t, int)
    void* MAP_FAILED
    int MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED
    int PROT_NONE, PROT_READ, PROT_WRITE
    int MADV_DONTFORK, MADV_WIPEONFORK


cdef extern from "<fcntl.h>" nogil:
    struct flock:
        short l_type
        short l_whence
        int64_t l_start
        int64_t l_len
        int l_pid
    int fcntl(int, int, ...)
    int F_OFD_SETLK, F_OFD_GETLK
    short F_WRLCK, F_UNLCK
    int O_NOFOLLOW


cdef extern from *:
    """
    #include <stdatomic.h>
    /* One word that only its own process writes: relaxed is enough, the GIL orders the rest. */
    static inline uint64_t shm_page_load(void *page) {
        return __atomic_load_n((uint64_t *)page, __ATOMIC_RELAXED);
    }
    static inline void shm_page_store(void *page, uint64_t value) {
        __atomic_store_n((uint64_t *)page, value, __ATOMIC_RELAXED);
    }
    """
    uint64_t shm_page_load(void*) nogil
    void shm_page_store(void*, uint64_t) nogil


cdef extern from *:
    """
    #include <limits.h>
    #include <linux/futex.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    /* Not FUTEX_PRIVATE: the word is found by file and offset, whoever mapped it where. */
    static inline void shm_futex_wait(void *word, uint32_t expected, double seconds) {
        struct timespec t;
        t.tv_sec = (time_t)seconds;
        t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
        syscall(SYS_futex, word, FUTEX_WAIT, expected, &t, (void *)0, 0);
    }
    static inline void shm_futex_wake(void *word) {
        syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, (void *)0, (void *)0, 0);
    }
    """
    void shm_futex_wait(void*, uint32_t, double) nogil
    void shm_futex_wake(void*) nogil


cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t*)
    int sigdelset(sigset_t*, int)
    int pthread_sigmask(int, const sigset_t*, sigset_t*)
    int SIG_BLOCK, SIG_SETMASK
    int SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP


cdef enum:
    PAGE = 4096  # what is asked of mmap, which rounds up to the system's own page size


cdef object raise_errno(str path):
    """Raises the OSError subclass of the present `errno`, naming `path`."""
    PyErr_SetFromErrnoWithFilenameObject(OSError, path)


cdef int open_file(str path, int flags) except -1:
    """Opens an existing file; never follows a link, blocks on a pipe, or outlives an exec."""
    cdef bytes encoded = os.fsencode(path)
    cdef int fd = c_open(encoded, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
    if fd < 0:
        raise_errno(path)
    return fd


cdef class Mapping:
    """A shared mapping of a file, made with mmap(2) directly.

    `Mapping(fd, size)` maps the first `size` bytes of an open file; `Mapping.open(path)` opens an
    existing file, maps all of it, and closes the descriptor.  No descriptor is kept (Python's
    `mmap` keeps a duplicate, which `os.closerange` closes and `close()` would close again, by then
    perhaps a stranger's).  Children inherit the mapping.

    Supports the buffer protocol; the memory is unmapped when the object is deallocated, that is
    after the last buffer over it is gone, so a buffer can never dangle.  `close()` only refuses
    new buffers.

    `companion` is any object that must live as long as the memory does: the lock that says that
    this process is alive goes with the last call that may still be writing.

    `size` (bytes), `inode`, `device`, `mode` (with the file type), `uid`, `gid`, `links` and
    `blocks` (of 512 bytes) are those of the file when it was mapped.
    """

    cdef void* _address
    cdef bint _writable
    cdef public object companion
    cdef readonly bint closed
    cdef readonly size_t size
    cdef readonly uint64_t inode
    cdef readonly uint64_t device
    cdef readonly uint64_t links
    cdef readonly uint64_t blocks
    cdef readonly unsigned int mode
    cdef readonly unsigned int uid
    cdef readonly unsigned int gid

    def __init__(self, int fd, size_t size):
        if self._address != NULL:
            raise RuntimeError("a Mapping is initialised once")
        self._map(fd, size, True, None)

    @staticmethod
    def open(str path, *, bint writable=True):
        """Maps all of an existing file; raises the `OSError` of open(2) or mmap(2).

        An empty file gives a mapping of size 0.  What is no regular file is not mapped either:
        look at `mode`.
        """
        cdef Mapping self = Mapping.__new__(Mapping)
        cdef int fd = open_file(path, O_RDWR if writable else O_RDONLY)
        try:
            self._map(fd, <size_t>-1, writable, path)
        finally:
            c_close(fd)
        return self

    cdef int _map(self, int fd, size_t size, bint writable, str path) except -1:
        cdef struct_stat status
        cdef void* address
        memset(&status, 0, sizeof(status))
        if fstat(fd, &status) != 0:
            raise_errno(path)
        self.inode = status.st_ino
        self.device = status.st_dev
        self.links = status.st_nlink
        self.blocks = status.st_blocks
        self.mode = status.st_mode
        self.uid = status.st_uid
        self.gid = status.st_gid
        if size == <size_t>-1:
            size = status.st_size if (status.st_mode & 0o170000) == 0o100000 else 0
            if size == 0:
                return 0
        address = mmap(NULL, size, PROT_READ | (PROT_WRITE if writable else 0), MAP_SHARED, fd, 0)
        if address == MAP_FAILED:
            raise_errno(path)
        self._address = address
        self._writable = writable
        self.size = size
        return 0

    def __dealloc__(self):
        if self._address != NULL:
            munmap(self._address, self.size)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self.closed:
            raise ValueError("the mapping is closed")
        PyBuffer_FillInfo(buffer, self, self._address, self.size, not self._writable, flags)

    def __releasebuffer__(self, Py_buffer* buffer):
        pass

    def __len__(self):
        return self.size

    def close(self):
        """Refuses new buffers from now on; the memory goes with the last buffer.  Idempotent."""
        self.closed = True


cdef class ProcessPage:
    """A word that belongs to this process alone: zero in every child, however it was forked.

    Exports its 8 bytes as a writable buffer, native byte order, at an address that does not
    change.  After a fork the child may `set` it again: the page is then as private to the child,
    and wiped in its children.
    """

    cdef void* _address

    def __cinit__(self, uint64_t value=1):
        cdef void* address = mmap(
            NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
        )
        if address == MAP_FAILED:
            raise_errno(None)
        self._address = address
        if madvise(address, PAGE, MADV_WIPEONFORK) != 0:
            raise_errno(None)
        shm_page_store(address, value)

    def __dealloc__(self):
        if self._address != NULL:
            munmap(self._address, PAGE)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self._address, 8, False, flags)

    def __releasebuffer__(self, Py_buffer* buffer):
        pass

    @property
    def is_mine(self):
        """Whether this process has set the word: false in a child until it does so itself."""
        return shm_page_load(self._address) != 0

    @property
    def value(self):
        return shm_page_load(self._address)

    def set(self, uint64_t value):
        """Stores `value`; 0 says that the word is nobody's."""
        shm_page_store(self._address, value)


cdef class ProcessLock:
    """A re-entrant thread lock that a fork never leaves locked.

    Use it as `with lock.current(): ...`.  In a child whose parent was inside at the fork, the
    first use makes a new lock, whether Python or C code forked.
    """

    cdef object _lock
    cdef ProcessPage _page

    def __cinit__(self):
        self._lock = threading.RLock()
        self._page = ProcessPage()

    def current(self):
        """The lock of this process."""
        if shm_page_load(self._page._address) == 0:
            lock = threading.RLock()  # may run finalisers, and so another thread: look again
            if shm_page_load(self._page._address) == 0:
                self._lock = lock
                shm_page_store(self._page._address, 1)
        return self._lock


cdef class LockHold:
    """An exclusive lock on one byte of a file, held until `release()` or the process's end.

    path: an existing file that may be written; links are not followed.
    start: number of the byte, 0 to 2^63 - 2; it need not exist.

    Raises `BlockingIOError` at once if somebody else (another hold of this process too) has the
    byte, else the `OSError` of open(2), mmap(2) or fcntl(2).  `inode` and `device` say which file
    was locked: compare them with what the path names now, since it may have been replaced between.

    Needs no descriptor once it is made.  A child does not inherit it: there `is_mine` is false,
    and releasing does nothing.
    """

    cdef void* _address
    cdef ProcessPage _page
    cdef readonly uint64_t inode
    cdef readonly uint64_t device
    cdef readonly int64_t start

    def __cinit__(self, str path, int64_t start):
        cdef struct_stat status
        cdef flock lock
        cdef void* address
        cdef int fd
        self._page = ProcessPage()
        self.start = start
        fd = open_file(path, O_RDWR)
        try:
            if fstat(fd, &status) != 0:
                raise_errno(path)
            self.inode = status.st_ino
            self.device = status.st_dev
            address = mmap(NULL, PAGE, PROT_NONE, MAP_SHARED, fd, 0)
            if address == MAP_FAILED:
                raise_errno(path)
            self._address = address
            if madvise(address, PAGE, MADV_DONTFORK) != 0:
                raise_errno(path)
            memset(&lock, 0, sizeof(lock))
            lock.l_type = F_WRLCK
            lock.l_start = start
            lock.l_len = 1
            if fcntl(fd, F_OFD_SETLK, &lock) != 0:
                if errno == EACCES or errno == EAGAIN:
                    raise BlockingIOError(EAGAIN, f"byte {start} is locked", path)
                raise_errno(path)
        finally:
            c_close(fd)

    def __dealloc__(self):
        self._drop()

    cdef void _drop(self):
        # In a child the address is not ours: the mapping was not copied, and something else may
        # lie there by now.
        if self._address != NULL and self._page is not None:
            if shm_page_load(self._page._address) != 0:
                munmap(self._address, PAGE)
        self._address = NULL

    @property
    def is_mine(self):
        """Whether this process holds the lock."""
        return self._address != NULL and shm_page_load(self._page._address) != 0

    def release(self):
        """Drops the lock.  Idempotent; in a child of the holder it does nothing."""
        self._drop()


def probe(str path, list ranges):
    """Which of some ranges of a file somebody holds a lock in.

    ranges: pairs of first byte and length (0: to the end of all files).
    Returns `(device, inode, held)`, `held` being a list of bools, one for each range.  Locks that
    this process holds count like any other's.  Takes no lock.  Raises the `OSError` of open(2).

    Costs two calls of about a microsecond each, and one for each range that grows with the number
    of locks on the file.
    """
    cdef struct_stat status
    cdef flock lock
    cdef list held = []
    cdef int fd = open_file(path, O_RDONLY)
    try:
        if fstat(fd, &status) != 0:
            raise_errno(path)
        for start, length in ranges:
            memset(&lock, 0, sizeof(lock))
            lock.l_type = F_WRLCK
            lock.l_start = start
            lock.l_len = length
            if fcntl(fd, F_OFD_GETLK, &lock) != 0:
                raise_errno(path)
            held.append(lock.l_type != F_UNLCK)
    finally:
        c_close(fd)
    return status.st_dev, status.st_ino, held


cdef char* futex_word(Mapping mapping, size_t offset) except NULL:
    if offset % 4 or mapping.size < 4 or offset > mapping.size - 4:
        raise ValueError(f"offset {offset} is no 32-bit word of {mapping.size} bytes")
    return <char*>mapping._address + offset


def futex_wait(Mapping mapping, size_t offset, uint32_t expected, double seconds):
    """Sleeps while the 32-bit word at `offset` of a mapping is `expected`, `seconds` at most.

    Returns after `futex_wake`, the time, a signal, or at once where the word is another: it says
    not which, so look again.  Releases the GIL, keeps the memory mapped, and runs the handlers of
    signals (`KeyboardInterrupt`).  Needs no permission but to read the word, and leaves nothing
    behind in any process that dies in it.
    """
    cdef char* word = futex_word(mapping, offset)
    if not seconds > 0:
        return
    with nogil:
        shm_futex_wait(word, expected, min(seconds, 3600.0))
    PyErr_CheckSignals()


def futex_wake(Mapping mapping, size_t offset):
    """Wakes everybody, of any process, who sleeps on that word.  Costs a system call."""
    shm_futex_wake(futex_word(mapping, offset))


cdef class SignalsHeld:
    """A context in which no signal reaches the calling thread; at its end those that came do.

    For waiting in a library that runs Python's signal handlers and drops what they raise.  What
    says that the thread itself went wrong (SIGSEGV, SIGBUS...) is not held.  Raises, at the end,
    what a handler raises.  Costs two system calls, some 0.3 us.
    """

    cdef sigset_t before

    def __enter__(self):
        cdef sigset_t held
        cdef int number
        sigfillset(&held)
        for number in (SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP):
            sigdelset(&held, number)
        pthread_sigmask(SIG_BLOCK, &held, &self.before)

    def __exit__(self, *exc_info):
        pthread_sigmask(SIG_SETMASK, &self.before, NULL)
        PyErr_CheckSignals()
