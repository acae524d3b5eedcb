# cython: language_level=3, binding=False, boundscheck=False, wraparound=False
# cython: initializedcheck=False, embedsignature=True, embedsignature.format=clinic
# cython: cdivision=True
"""The thin layer between Python objects and the C core.

Place: level 2 of the house.  It turns keys and values into bytes and back, takes and releases
shards, maps outcomes to exceptions; it decides nothing about where things lie (layout.h), what is
evicted (room.h), or who is alive (liveness, reached through the attachment).

Rules that every method keeps:

* The GIL is held from taking a shard to releasing it, or released before the shard is taken and
  taken again after it was released: nothing in between can switch threads, run a signal handler,
  collect garbage or fork.  Nothing in between allocates Python objects, calls Python or makes a
  system call.
* Nothing read from shared memory counts before shm_hit_valid(); only private copies are decoded.
* Before anything else a method asks whether this process is still the one that attached
  (`joined`, wiped by the kernel in a forked child), open, and attached to a living segment.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_FromDouble
from cpython.long cimport PyLong_FromLongLong
from cpython.object cimport PyObject
from cpython.dict cimport PyDict_GetItemWithError
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.long cimport PyLong_FromUnsignedLongLong
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memmove, memset

from .core cimport *

import os as _os

from shmcache import errors as _errors
from shmcache import keys as _keys
from shmcache import limits as _limits
from shmcache._linux import futex_wait as _futex_wait
from shmcache._linux import futex_wake as _futex_wake

cdef extern from "glue.h" nogil:
    void shm_choose_clock()
    uint64_t shm_now_ms()
    uint64_t shm_now_ns()
    void shm_wake_wait(uint32_t *word, uint32_t expected, uint64_t ns)
    void shm_wake_all(uint32_t *word)
    bint shm_is_ascii(const uint8_t *p, size_t n)
    const char *const *shm_fault_names
    const char *const *shm_invariant_names
    const char *const *shm_invariant_texts
    const int SHM_HAS_FAULTS
    void shm_fault_set(int point, int countdown, int sig)

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object s)
    void *PyUnicode_DATA(object s)
    Py_ssize_t PyUnicode_GET_LENGTH(object s)
    const char *PyUnicode_AsUTF8AndSize(object s, Py_ssize_t *n) except NULL
    object PyUnicode_New(Py_ssize_t n, Py_UCS4 maxchar)
    object PyUnicode_DecodeUTF8(const char *s, Py_ssize_t n, const char *errors)
    long long PyLong_AsLongLongAndOverflow(object o, int *overflow) except? -1
    object PyObject_CallOneArg(object f, object arg)
    object PyObject_Vectorcall(object f, PyObject *const *args, size_t n, object names)
    object PyObject_VectorcallNamed "PyObject_Vectorcall"(object f, PyObject *const *args, size_t n,
                                                          PyObject *names)
    PyObject *PyTuple_GET_ITEM(object t, Py_ssize_t i)
    ctypedef struct PyTupleObject:
        PyObject *ob_item[1]
    Py_ssize_t PyTuple_GET_SIZE(object t)
    tuple PyTuple_New(Py_ssize_t n)
    void PyTuple_SET_ITEM(object t, Py_ssize_t i, object item)
    bint PyObject_CheckBuffer(object o)
    void Py_XDECREF(PyObject *o)
    ctypedef PyObject *(*vectorcallfunc)(PyObject *, PyObject *const *, size_t, PyObject *)
    Py_ssize_t PyVectorcall_NARGS(size_t nargsf)
    object PyVectorcall_Call(object callable, PyObject *arguments, PyObject *keywords)
    object PyMethod_New(object function, object instance)
    ctypedef struct PyTypeObject:
        Py_ssize_t tp_vectorcall_offset
        unsigned long tp_flags
    const unsigned long Py_TPFLAGS_HAVE_VECTORCALL, Py_TPFLAGS_METHOD_DESCRIPTOR
    void PyType_Modified(PyTypeObject *kind)

shm_choose_clock()

cdef object _MISSING = object()  # "no value", where None is one

include "attached.pxi"
include "keys.pxi"
include "msgpack.pxi"
include "values.pxi"
include "local.pxi"
include "reads.pxi"
include "ring.pxi"
include "batches.pxi"
include "handle.pxi"
include "lease.pxi"
include "memoized.pxi"
include "cursor.pxi"
include "swap.pxi"
include "token.pxi"
include "tables.pxi"
include "tend.pxi"
include "export.pxi"
