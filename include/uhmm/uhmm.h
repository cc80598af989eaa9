/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uhmm: heterogeneous memory management in user space. The C interface (C11, stable ABI).
 *
 * Conventions that hold for every call unless its comment says otherwise
 *  - Addresses and lengths are in bytes. Any address and any length > 0 is accepted; the runtime works on whole system
 *    pages (4 KiB on x86-64), so a call affects every page that the byte range touches. Neighbours on the first and
 *    last page move along and keep working.
 *  - Thread-safety: every call may be made from any thread at any time between uhmm_init and uhmm_shutdown, except
 *    where a comment names a restriction. No call may be made from a signal handler or from a kernel on a device.
 *  - Results: UHMM_OK is 0, everything else is an error. uhmm_error_detail() then holds a sentence for the calling
 *    thread. A failed call has changed nothing, except where "Partial success" is documented.
 *  - Every call returns UHMM_ERR_NOT_INITIALIZED before uhmm_init and after uhmm_shutdown, and UHMM_ERR_FORKED in a
 *    child made by fork(): the child owns plain copies of the memory and no devices, until it calls uhmm_init itself.
 *  - Every call that works on memory, devices or streams may return UHMM_ERR_NO_MEMORY (no system memory for the
 *    runtime's records, or for pages that should come home); it has then changed nothing more than its counts say.
 *  - Structs begin with `size`. Set it to sizeof the struct (the *_INIT macros do); a newer library reads what an
 *    older program knows. A size of 0 or one smaller than the first released layout is UHMM_ERR_INVALID.
 *  - Ownership: the library never keeps a caller's pointer after a call returns, except callback contexts.
 */
#ifndef UHMM_UHMM_H
#define UHMM_UHMM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define UHMM_VERSION_MAJOR 0
#define UHMM_VERSION_MINOR 1
#define UHMM_VERSION_PATCH 0
#define UHMM_VERSION (UHMM_VERSION_MAJOR * 10000 + UHMM_VERSION_MINOR * 100 + UHMM_VERSION_PATCH)

#if defined(__GNUC__)
#define UHMM_API __attribute__((visibility("default")))
#else
#define UHMM_API
#endif

/* ------------------------------------------------------------------ status */

/* X-macro: name, value, text. The one list of statuses; enum, names and documentation are made from it. */
#define UHMM_STATUS_LIST(X)                                                              \
  X(UHMM_OK, 0, "success")                                                               \
  X(UHMM_ERR_INVALID, 1, "an argument is not valid")                                     \
  X(UHMM_ERR_NOT_INITIALIZED, 2, "the runtime is not initialized")                       \
  X(UHMM_ERR_ALREADY, 3, "already done")                                                 \
  X(UHMM_ERR_NO_MEMORY, 4, "out of memory or address space")                             \
  X(UHMM_ERR_NOT_SUPPORTED, 5, "not supported by this kernel, device or kind of memory") \
  X(UHMM_ERR_PERMISSION, 6, "permission denied")                                         \
  X(UHMM_ERR_NOT_REGISTERED, 7, "the memory is not registered")                          \
  X(UHMM_ERR_OVERLAP, 8, "overlaps something registered already")                        \
  X(UHMM_ERR_NO_DEVICE, 9, "no such device")                                             \
  X(UHMM_ERR_DEVICE_LOST, 10, "the device was lost")                                     \
  X(UHMM_ERR_DEVICE_FULL, 11, "device memory is full")                                   \
  X(UHMM_ERR_BUSY, 12, "busy or pinned")                                                 \
  X(UHMM_ERR_FAULT, 13, "the address is not mapped or does not allow the access")        \
  X(UHMM_ERR_TIMEOUT, 14, "timed out")                                                   \
  X(UHMM_ERR_DATA_LOST, 15, "the only copy of the data is gone")                         \
  X(UHMM_ERR_FORKED, 16, "not available in a forked child")                              \
  X(UHMM_ERR_SYSTEM, 17, "a system call failed")                                         \
  X(UHMM_ERR_UNKNOWN_KERNEL, 18, "the function is not known to the device")              \
  X(UHMM_ERR_KERNEL_FAILED, 19, "a kernel crashed on the device")                        \
  X(UHMM_ERR_NOT_FOUND, 20, "no such stream, fence, pool or subscription")               \
  X(UHMM_ERR_CONFIG, 21, "a configuration value is not valid")

typedef enum uhmm_status {
#define UHMM_X(name, value, text) name = (value),
  UHMM_STATUS_LIST(UHMM_X)
#undef UHMM_X
} uhmm_status;

/* Name of a status ("UHMM_ERR_BUSY"); "UHMM_ERR_?" for an unknown value. Static storage; callable at any time. */
UHMM_API const char* uhmm_status_name(uhmm_status status);
/* One-line meaning of a status. Static storage; callable at any time. */
UHMM_API const char* uhmm_status_text(uhmm_status status);
/* What went wrong in the calling thread's last failed call, as a sentence; "" if nothing did. Valid until the thread's
 * next failed call. Callable at any time. */
UHMM_API const char* uhmm_error_detail(void);

/* ------------------------------------------------------- version and set-up */

/* UHMM_VERSION of the library that is loaded. Callable at any time. */
UHMM_API uint32_t uhmm_version(void);
/* The same as "major.minor.patch". Static storage. */
UHMM_API const char* uhmm_version_string(void);

/* Flags of uhmm_config.flags. */
/* Never use UFFDIO_MOVE: write-protect, copy and drop instead (env UHMM_NO_MOVE=1). */
#define UHMM_CONFIG_NO_MOVE 0x1u
/* Ignore UHMM_* variables; in setuid programs they are always ignored. */
#define UHMM_CONFIG_NO_ENV 0x2u
/* The initial soft devices are coherent, not private (env UHMM_SOFT_KIND=coherent). */
#define UHMM_CONFIG_COHERENT 0x4u
/* Don't listen for `uhmm maps` (env UHMM_NO_REPORT=1). */
#define UHMM_CONFIG_NO_REPORT 0x8u
/* Let the kernel's page table show private pages that are on a device: in /proc/PID/pagemap and smaps they count as
 * swapped out, as with Linux HMM, where they are otherwise just absent. Costs a system call more for each move.
 * Linux 6.4; ignored before (env UHMM_DEVICE_ENTRIES=1). */
#define UHMM_CONFIG_DEVICE_ENTRIES 0x10u
/* Bring everything home before fork(), also where a child could be served from the devices: the child then has plain
 * copies from the start, and no thread of the runtime's (env UHMM_FORK_HOME=1). */
#define UHMM_CONFIG_FORK_HOME 0x20u
/* The GPU is of this vendor's driver; with neither, of the one that has a GPU (env UHMM_GPU_KIND=cuda). */
#define UHMM_CONFIG_GPU_CUDA 0x40u
#define UHMM_CONFIG_GPU_HIP 0x80u

/*
 * How the runtime learns of CPU faults: the rungs of a ladder, best first. AUTO takes the first that this process may
 * use, and uhmm_get_config tells which that was; a rung that is named is taken or uhmm_init fails. SIGNAL is taken only
 * by name.
 */
typedef enum uhmm_fault_rung {
  UHMM_FAULTS_AUTO = 0,
  UHMM_FAULTS_SYSCALL = 1,   /* userfaultfd(2): root, CAP_SYS_PTRACE, or the sysctl vm.unprivileged_userfaultfd=1 */
  UHMM_FAULTS_DEVICE = 2,    /* /dev/userfaultfd: whoever may open it */
  UHMM_FAULTS_USER_MODE = 3, /* userfaultfd(2) for everybody: a system call that gets a pointer into memory that is on
                                a device fails with EFAULT; plain loads and stores work as ever */
  UHMM_FAULTS_SIGNAL = 4 /* the same, and the faulting thread serves its own faults, in a handler of SIGBUS: no thread
                            has to be woken. The program keeps its hands off: no handler of its own for SIGBUS after
                            uhmm_init (one from before gets what is not uhmm's), no thread that blocks SIGBUS, no stack
                            of a running thread in managed memory. */
} uhmm_fault_rung;

/*
 * Configuration. Zero in a field means its default. Environment variables, where set, override the struct.
 * Each is one setting with one default; docs/tuning.md lists them with ranges. What goes to stderr is set by the
 * environment alone: debug, info, warning, error or off (env UHMM_LOG=warning).
 */
typedef struct uhmm_config {
  size_t size;                 /* sizeof(uhmm_config) */
  uint32_t flags;              /* UHMM_CONFIG_* */
  uint32_t soft_devices;       /* devices opened by uhmm_init, 1..8, default 1, without a GPU (UHMM_SOFT_DEVICES) */
  uint64_t device_memory;      /* bytes of each soft device, >= 2 MiB, default 2 GiB (UHMM_DEVICE_MEMORY) */
  uint32_t device_workers;     /* kernel workers of each soft device, 1..256, default: CPUs (UHMM_DEVICE_WORKERS) */
  uint32_t service_threads;    /* fault service threads, 1..64, default min(CPUs, 8) (UHMM_SERVICE_THREADS) */
  uint64_t staging_memory;     /* most system memory kept as recycled staging, >= 2 MiB, default 1/16 (UHMM_STAGING) */
  uint64_t fault_around;       /* most bytes brought by one fault, 4 KiB..2 MiB, default 2 MiB (UHMM_FAULT_AROUND) */
  uint64_t link_latency_ns;    /* soft link model: added per copy, default 0 = off (UHMM_LINK_LATENCY_NS) */
  uint64_t link_bytes_per_sec; /* soft link model: limit, default 0 = off (UHMM_LINK_BANDWIDTH) */
  uint32_t fault_rung; /* uhmm_fault_rung; as words auto, syscall, device, user-mode, signal (UHMM_FAULTS=auto) */
  uint32_t gpus;       /* GPUs opened by uhmm_init, before soft devices, 0 or 1, default 0 (UHMM_GPUS) */
} uhmm_config;
#define UHMM_CONFIG_INIT \
  { sizeof(uhmm_config), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/*
 * Start the runtime: service threads and devices. `config` may be NULL (all defaults).
 * Errors: ALREADY (running); CONFIG (a field or variable out of range; the detail names it and the range);
 * NOT_SUPPORTED (no userfaultfd: the detail says why and what helps; or a GPU is asked for and there is no driver, or
 * an old one); NO_DEVICE (no GPU); PERMISSION (as NOT_SUPPORTED, or fault_rung names a rung that this process may not
 * use); NO_MEMORY; SYSTEM. After uhmm_shutdown it may be called again, and so it may in a child made by fork() whose
 * parent runs: it starts a runtime of the child's own, with no range registered. FORKED: called by a kernel.
 */
UHMM_API uhmm_status uhmm_init(const uhmm_config* config);
/*
 * Bring all memory back to system memory, unregister every range, remove the devices, stop the threads. Memory of
 * uhmm_malloc stays readable and writable until the process ends, but can no longer be freed.
 * No other thread may be inside a uhmm call. Pages that were lost stay lost (SIGBUS).
 * Errors: DATA_LOST (everything was shut down, but some pages could not be brought back).
 */
UHMM_API uhmm_status uhmm_shutdown(void);
/* The configuration in force, defaults and environment applied. Errors: INVALID (NULL or size). */
UHMM_API uhmm_status uhmm_get_config(uhmm_config* out);

/* ----------------------------------------------------------------- devices */

/* A processor: 0 is the CPU, 1..8 are devices. Ids of removed devices are reused. */
typedef uint32_t uhmm_processor;
#define UHMM_CPU 0u
#define UHMM_MAX_DEVICES 8u

typedef enum uhmm_device_kind { UHMM_DEVICE_SOFT = 1, UHMM_DEVICE_CUDA = 2, UHMM_DEVICE_HIP = 3 } uhmm_device_kind;

#define UHMM_DEVICE_COHERENT 0x1u /* the CPU can map device memory and access it in place; else private */
#define UHMM_DEVICE_FAULTING 0x2u /* the device has page faults that the runtime serves */
#define UHMM_DEVICE_IS_LOST 0x4u  /* a kernel crashed or the device died; uhmm_device_restart brings it back */

typedef struct uhmm_device_info {
  size_t size;           /* sizeof(uhmm_device_info) */
  uhmm_processor device; /* 1..8 */
  uint32_t kind;         /* uhmm_device_kind */
  uint32_t flags;        /* UHMM_DEVICE_* */
  uint32_t workers;      /* parallel kernel workers */
  uint64_t memory_bytes; /* device memory in all */
  uint64_t memory_free;  /* of it, not holding a current copy of any page */
  uint64_t page_bytes;   /* unit of residency, 4096 */
  int64_t process_id;    /* of the device process; 0 if it has none */
  char name[64];         /* "soft0" */
  char lost_reason[192]; /* why it was lost: signal, address, function; "" otherwise */
} uhmm_device_info;
#define UHMM_DEVICE_INFO_INIT                                    \
  {                                                              \
    sizeof(uhmm_device_info), 0, 0, 0, 0, 0, 0, 0, 0, {0}, { 0 } \
  }

typedef struct uhmm_device_desc {
  size_t size;                 /* sizeof(uhmm_device_desc) */
  uint32_t kind;               /* uhmm_device_kind */
  uint32_t flags;              /* 0; soft devices: or UHMM_DEVICE_COHERENT */
  uint64_t memory_bytes;       /* >= 2 MiB, rounded up to 2 MiB; 0: as configured; of a GPU: most of its free memory */
  uint32_t workers;            /* 0: as configured */
  uint32_t reserved;           /* 0 */
  uint64_t link_latency_ns;    /* 0: as configured */
  uint64_t link_bytes_per_sec; /* 0: as configured */
} uhmm_device_desc;
#define UHMM_DEVICE_DESC_INIT \
  { sizeof(uhmm_device_desc), UHMM_DEVICE_SOFT, 0, 0, 0, 0, 0, 0 }

/* Number of devices present (lost ones count). Errors: INVALID (NULL). */
UHMM_API uhmm_status uhmm_device_count(uint32_t* count);
/* Ids of the devices present, ascending; at most `capacity` are stored, *count is how many there are.
 * Errors: INVALID (count NULL, or ids NULL with capacity > 0). */
UHMM_API uhmm_status uhmm_device_list(uhmm_processor* ids, uint32_t capacity, uint32_t* count);
/* Errors: NO_DEVICE; INVALID (NULL or size). */
UHMM_API uhmm_status uhmm_device_get_info(uhmm_processor device, uhmm_device_info* out);
/*
 * Add a device at run time. Every registered range becomes reachable from it.
 * Errors: INVALID (desc or out NULL, kind, flags, size); NO_MEMORY (8 devices present, or no address space);
 * NOT_SUPPORTED (kind not built in, or its driver absent or too old; a second GPU; a GPU with the rung `signal`);
 * NO_DEVICE (the driver has no GPU); PERMISSION (it may not be opened); SYSTEM. Nothing half done.
 */
UHMM_API uhmm_status uhmm_device_add(const uhmm_device_desc* desc, uhmm_processor* out);
/*
 * Remove a device: waits for its streams, brings every page back, then frees it. Its streams, fences and pools end.
 * Work that other threads ask for meanwhile waits, then finds no device; memory that they send there is refused (BUSY).
 * Errors: NO_DEVICE; DATA_LOST (it was removed, but pages whose only copy was there could not be brought back; they
 * raise SIGBUS).
 */
UHMM_API uhmm_status uhmm_device_remove(uhmm_processor device);
/*
 * Start a device anew: after it was lost, or so that it learns about libraries loaded since it started. Pages on a
 * healthy device are brought back first; streams stay valid. Lost pages stay lost until unmapped or discarded.
 * Work that other threads ask for meanwhile waits; memory that they send there is refused (BUSY).
 * Errors: NO_DEVICE; NO_MEMORY (pages could not be brought back: it goes on as it was); SYSTEM (it could not be
 * started; it stays lost).
 */
UHMM_API uhmm_status uhmm_device_restart(uhmm_processor device);

/* ------------------------------------------------------------ memory pools */

typedef uint64_t uhmm_pool; /* 0 is a device's default pool */

/* Why something happened to pages. One list for events, statistics and callbacks. */
#define UHMM_CAUSE_LIST(X)                                         \
  X(UHMM_CAUSE_NONE, 0, "none")                                    \
  X(UHMM_CAUSE_USER, 1, "explicit migration")                      \
  X(UHMM_CAUSE_CPU_FAULT, 2, "CPU fault")                          \
  X(UHMM_CAUSE_DEVICE_FAULT, 3, "device fault")                    \
  X(UHMM_CAUSE_PREFETCH_USER, 4, "prefetch by request")            \
  X(UHMM_CAUSE_PREFETCH_FAULT, 5, "prefetch by observed locality") \
  X(UHMM_CAUSE_EVICTION, 6, "eviction")                            \
  X(UHMM_CAUSE_COHERENCE, 7, "a write made other copies stale")    \
  X(UHMM_CAUSE_DISCARD, 8, "discard")                              \
  X(UHMM_CAUSE_UNREGISTER, 9, "unregister or unmap")               \
  X(UHMM_CAUSE_DEVICE_REMOVE, 10, "device removed or restarted")   \
  X(UHMM_CAUSE_DEVICE_LOST, 11, "device lost")                     \
  X(UHMM_CAUSE_EXCLUSIVE, 12, "exclusive access")                  \
  X(UHMM_CAUSE_ACQUIRE, 13, "acquire or release")                  \
  X(UHMM_CAUSE_FORK, 14, "fork")                                   \
  X(UHMM_CAUSE_DEVICE_ACCESS, 15, "read or write through the device's page table")

typedef enum uhmm_cause {
#define UHMM_X(name, value, text) name = (value),
  UHMM_CAUSE_LIST(UHMM_X)
#undef UHMM_X
      UHMM_CAUSE_COUNT = 16
} uhmm_cause;
/* Short text of a cause; "?" if unknown. Static storage; callable at any time. */
UHMM_API const char* uhmm_cause_text(uhmm_cause cause);

typedef enum uhmm_fault_action {
  UHMM_FAULT_MIGRATE = 0, /* bring the page back (the default) */
  UHMM_FAULT_SIGBUS = 1   /* refuse: the page is lost, the access raises SIGBUS */
} uhmm_fault_action;

typedef struct uhmm_fault_info {
  size_t size;           /* sizeof(uhmm_fault_info) as the library knows it */
  uint64_t address;      /* page-aligned address that faulted */
  uhmm_processor device; /* where the current copy is */
  uint32_t is_write;     /* 1 if the access was a write */
} uhmm_fault_info;

/*
 * What a pool's owner may do. Versioned by `size`; any callback may be NULL. Callbacks run on a runtime thread, with
 * no runtime lock held, and may be concurrent. They must not touch managed memory and must not call uhmm; they should
 * return soon. Source: dev_pagemap's callbacks in Linux HMM.
 */
typedef struct uhmm_pool_ops {
  size_t size; /* sizeof(uhmm_pool_ops) */
  /* The CPU touched a page whose only copy is in this pool. */
  uhmm_fault_action (*page_fault)(void* context, const uhmm_fault_info* fault);
  /* The pool's copy of the page at `address` was freed; called once per page. */
  void (*page_free)(void* context, uint64_t address, uhmm_cause cause);
} uhmm_pool_ops;
#define UHMM_POOL_OPS_INIT \
  { sizeof(uhmm_pool_ops), NULL, NULL }

typedef struct uhmm_pool_desc {
  size_t size;              /* sizeof(uhmm_pool_desc) */
  uhmm_processor device;    /* whose memory */
  uint32_t flags;           /* 0 */
  uint64_t bytes;           /* quota, > 0, taken from the device's default pool */
  const uhmm_pool_ops* ops; /* copied; may be NULL */
  void* context;            /* passed to the callbacks; must outlive the pool */
} uhmm_pool_desc;
#define UHMM_POOL_DESC_INIT \
  { sizeof(uhmm_pool_desc), 1, 0, 0, NULL, NULL }

/*
 * Set a part of a device's memory aside, with callbacks. Ranges use it after uhmm_range_set_pool.
 * Errors: INVALID; NO_DEVICE; OVERLAP (the pools' quotas together would exceed the device's memory); DEVICE_LOST.
 */
UHMM_API uhmm_status uhmm_pool_create(const uhmm_pool_desc* desc, uhmm_pool* out);
/* Bring the pool's pages back, give its quota to the default pool, end its callbacks (none runs after the return).
 * Errors: NOT_FOUND; NO_MEMORY (some pages could not be brought back: the pool stays). */
UHMM_API uhmm_status uhmm_pool_destroy(uhmm_pool pool);
/* Place pages of the registered range that contains `address` into `pool` from now on when they go to the pool's
 * device; pages already there are brought back first. Pool 0 with any device: the default pools.
 * Errors: NOT_REGISTERED; NOT_FOUND; DATA_LOST. */
UHMM_API uhmm_status uhmm_range_set_pool(const void* address, uhmm_pool pool);

/* ------------------------------------------------------------------ ranges */

/*
 * Make existing memory managed: [address, address + length), private anonymous with any protection (heap, stack, bss,
 * mmap), shared memory that can be read (shared anonymous, memfd, POSIX shm, files), or a private file mapping that can
 * be written (data), which becomes private anonymous memory with the same contents: only while the program has no other
 * thread. It costs nothing until something of it goes to a device. It ends when it is unmapped while some of it is
 * away; forget it before all the same. Shared memory that others may see (named; after a fork: all) is mirrored, not
 * migrated: devices work on the very pages that everybody has; see uhmm_register(3). Pages that were lost under an
 * earlier registration are lost again (see uhmm_discard). Errors: INVALID (NULL, length 0, wraps, or beyond user
 * space); OVERLAP (with a registered range); FAULT (a hole, or shared memory that can't be read, or neither written nor
 * mirrored; the detail names the address); DATA_LOST (memory that an earlier registration left behind lost, on a kernel
 * without UFFDIO_POISON: map it anew); NOT_SUPPORTED (shared file mappings and System V shared memory that can't be
 * mirrored, private file mappings that are read-only or registered beside other threads, code, hugetlb, device
 * mappings); NO_MEMORY.
 */
UHMM_API uhmm_status uhmm_register(void* address, size_t length);
/*
 * End management: every page is brought back first. `address` must be the start of a registered range.
 * Errors: NOT_REGISTERED; DATA_LOST (done, but lost pages stay lost); BUSY (an acquire still holds it).
 */
UHMM_API uhmm_status uhmm_unregister(void* address);

/*
 * End the management of the pages [address, address + length), whichever ranges they are of: they are brought back
 * first. Ranges that reach further are cut, and their other pages stay where they are. Pages that are not registered
 * are passed over. An acquire or queued work does not keep the memory. `address` is page-aligned; length in bytes,
 * rounded up to pages. Errors: INVALID; NO_MEMORY (nothing ended); DATA_LOST (done, but lost pages stay lost); BUSY
 * (devices keep taking the pages: nothing ended).
 */
UHMM_API uhmm_status uhmm_unregister_pages(void* address, size_t length);
/*
 * The memory is about to end (munmap, MAP_FIXED over it): of the pages [address, address + length) nothing is managed
 * any more, and contents that are on devices are given up, not brought back. Ranges that reach further are cut, and
 * their other pages stay where they are. Pages that are not registered are passed over. An acquire or queued work does
 * not keep the memory, nor what is left of a range that was cut. What the pages read as afterwards is undefined, if
 * they are not unmapped. `address` is page-aligned; length in bytes, rounded up to pages. Errors: INVALID; NO_MEMORY
 * (nothing changed).
 */
UHMM_API uhmm_status uhmm_forget(void* address, size_t length);
/*
 * The memory's protection has changed (mprotect sends no word): on return no device reaches the pages, and its next
 * access asks again what the program may do there. Data stays where it is. Pages that are not registered are passed
 * over. `address` and length as for uhmm_forget. Errors: INVALID.
 */
UHMM_API uhmm_status uhmm_revoke(void* address, size_t length);

/* Allocate managed memory, 16-byte aligned, not zeroed unless said; never NULL for size 0. NULL on failure (detail
 * says why; errno is ENOMEM or EINVAL). uhmm_aligned_alloc: alignment a power of two, any size. */
UHMM_API void* uhmm_malloc(size_t size);
UHMM_API void* uhmm_calloc(size_t count, size_t size);
UHMM_API void* uhmm_aligned_alloc(size_t alignment, size_t size);
/* As realloc(3): the old block stays valid when it fails; pointer NULL allocates; size 0 frees and returns NULL. */
UHMM_API void* uhmm_realloc(void* pointer, size_t size);
/* Free memory of the uhmm_malloc family; NULL is allowed. Not from another allocator: that is undefined, as in free(3),
 * but detected where it can be and then ignored with UHMM_ERR_INVALID's detail. Freeing device-resident memory moves
 * nothing back when the block is large. */
UHMM_API void uhmm_free(void* pointer);
/* Usable bytes of a block of this family, >= the size asked for; 0 for NULL or a foreign pointer. */
UHMM_API size_t uhmm_usable_size(const void* pointer);

/* --------------------------------------------------------------- migration */

typedef struct uhmm_migrate_result {
  size_t size;              /* sizeof(uhmm_migrate_result) */
  uint64_t pages_requested; /* pages the byte range touches */
  uint64_t pages_moved;     /* pages whose data was copied */
  uint64_t pages_populated; /* never-touched pages that were given zeroed backing */
  uint64_t pages_there;     /* pages that were there already */
  uint64_t pages_skipped;   /* pages that could not move: pinned, kernel-pinned, device full, lost */
  uint64_t bytes_moved;     /* bytes copied */
} uhmm_migrate_result;
#define UHMM_MIGRATE_RESULT_INIT \
  { sizeof(uhmm_migrate_result), 0, 0, 0, 0, 0, 0 }

/*
 * Make pages resident on `to` (a device, or UHMM_CPU for system memory) and nowhere else. The whole byte range must be
 * registered; it may span several ranges. `result` may be NULL.
 * Partial success: returns OK when at least one page is on `to` afterwards; the counts tell. Errors: INVALID;
 * NOT_REGISTERED; NO_DEVICE; DEVICE_LOST; BUSY (every page is pinned, or the device or its pool is going away);
 * DEVICE_FULL (nothing fits and nothing can be evicted); DATA_LOST (to the CPU: some pages are lost; the others came
 * back); NOT_SUPPORTED (it is mirrored).
 */
UHMM_API uhmm_status uhmm_migrate(void* address, size_t length, uhmm_processor to, uhmm_migrate_result* result);

typedef uint64_t uhmm_stream; /* 0 is never a valid stream */
typedef uint64_t uhmm_fence;  /* 0 is never a valid fence */

/* The same in stream order: returns at once; errors of the work are reported by uhmm_stream_synchronize and
 * uhmm_fence_wait. Errors here: INVALID; NOT_REGISTERED; NO_DEVICE; NOT_FOUND (stream). */
UHMM_API uhmm_status uhmm_migrate_async(void* address, size_t length, uhmm_processor to, uhmm_stream stream);
/* A hint: make pages current on `to` soon, keeping other copies. Runs in stream order; stream 0: at some time soon.
 * What can't be done is skipped silently (statistics show it). Errors: as uhmm_migrate_async. */
UHMM_API uhmm_status uhmm_prefetch(void* address, size_t length, uhmm_processor to, uhmm_stream stream);
/* Drop the contents of every page that lies wholly inside the byte range, wherever it is: it reads as zeros
 * afterwards. Lost pages become usable again. Errors: INVALID; NOT_REGISTERED; NOT_SUPPORTED (others see it). */
UHMM_API uhmm_status uhmm_discard(void* address, size_t length);

typedef enum uhmm_advice {
  UHMM_ADVISE_NONE = 0,               /* forget all advice of the range */
  UHMM_ADVISE_PREFERRED_LOCATION = 1, /* faults of other devices do not pull pages away from `processor` for good */
  UHMM_ADVISE_ACCESSED_BY = 2,        /* `processor` will access it: keep it reachable without faults where possible */
  UHMM_ADVISE_READ_MOSTLY = 3,        /* CPU reads of device pages duplicate instead of moving */
  UHMM_ADVISE_PINNED = 4,             /* never migrate or evict from where the pages are: requests skip or say BUSY */
  UHMM_ADVISE_UNPINNED = 5,
  UHMM_ADVISE_NOT_READ_MOSTLY = 6
} uhmm_advice;
/* Advice applies to whole registered ranges that the byte range touches. `processor` is read by the first two. It
 * never changes contents. A CPU access to a pinned device page still works, and a kernel that finds no other room has
 * pinned pages evicted: correctness beats advice.
 * Errors: INVALID (advice); NOT_REGISTERED; NO_DEVICE. */
UHMM_API uhmm_status uhmm_advise(void* address, size_t length, uhmm_advice advice, uhmm_processor processor);

typedef enum uhmm_access { UHMM_ACCESS_READ = 1, UHMM_ACCESS_WRITE = 2, UHMM_ACCESS_READ_WRITE = 3 } uhmm_access;
/*
 * Acquire memory for work on `processor` that the runtime doesn't launch itself: afterwards the pages are current and
 * mapped there and stay until uhmm_release with the same arguments. READ keeps other copies; WRITE promises that every
 * byte is overwritten (contents need not be copied). CPU accesses to acquired pages are served as always and may
 * take pages away, so do not touch memory that is acquired for writing on a device.
 * Restarting or removing the device, or shutting down, does not wait for the release: the memory comes home.
 * Errors: INVALID; NOT_REGISTERED; NO_DEVICE; DEVICE_LOST; DEVICE_FULL (not all of it fits, or the kernel has pinned a
 * page for I/O: nothing is held; contents are kept, except that WRITE may already have given some up when a page was
 * pinned, or the range was given another pool, unregistered or its device lost meanwhile); DATA_LOST (a page of it is
 * lost).
 */
UHMM_API uhmm_status uhmm_acquire(void* address, size_t length, uhmm_processor processor, uhmm_access access);
/* End an acquire. Errors: as uhmm_acquire; NOT_FOUND (no such acquire). */
UHMM_API uhmm_status uhmm_release(void* address, size_t length, uhmm_processor processor, uhmm_access access);

/* ----------------------------------------------------- streams and kernels */

/* Work of one stream runs in order; streams run beside each other. Errors: NO_DEVICE; DEVICE_LOST; BUSY (the device
 * is being removed); NO_MEMORY. */
UHMM_API uhmm_status uhmm_stream_create(uhmm_processor device, uhmm_stream* out);
/* Waits for the stream's work. Errors: NOT_FOUND; else the first error of the work since the last synchronize. */
UHMM_API uhmm_status uhmm_stream_synchronize(uhmm_stream stream);
/* Waits for the stream's work, then ends the stream. Errors: as uhmm_stream_synchronize. */
UHMM_API uhmm_status uhmm_stream_destroy(uhmm_stream stream);
/* A fence completes when all work queued in the stream before it has. Errors: NOT_FOUND; NO_MEMORY. */
UHMM_API uhmm_status uhmm_fence_record(uhmm_stream stream, uhmm_fence* out);
/* Later work of `stream` waits for the fence, which may be of another stream or device. Errors: NOT_FOUND. */
UHMM_API uhmm_status uhmm_stream_wait_fence(uhmm_stream stream, uhmm_fence fence);
/* Wait at most timeout_ns nanoseconds; 0 polls, UINT64_MAX waits for ever. Errors: NOT_FOUND; TIMEOUT; else the error
 * of the stream's work before the fence. */
UHMM_API uhmm_status uhmm_fence_wait(uhmm_fence fence, uint64_t timeout_ns);
/* Forget a fence; work already told to wait for it still does. Errors: NOT_FOUND. */
UHMM_API uhmm_status uhmm_fence_destroy(uhmm_fence fence);

/* Where in the grid one call of a kernel is. */
typedef struct uhmm_kernel_item {
  uint32_t index[3]; /* this call's place, index[i] < grid[i] */
  uint32_t grid[3];
  uhmm_processor device;
  uint32_t worker; /* which worker runs it */
} uhmm_kernel_item;

/*
 * A kernel: an ordinary function of the program or of a library that was loaded when the device started. It is called
 * once per grid cell, by several workers at once. It sees managed memory at its usual addresses; unregistered memory
 * is a private snapshot from when the device started. It must not allocate, lock what other threads of the program
 * lock, or call uhmm. `args` points to a copy of the launch's argument bytes (16-byte aligned, shared by all cells).
 *
 * On a GPU a kernel is a function handle of its driver (CUfunction, hipFunction_t), cast to this type, and `args` are
 * its parameters in one piece, as the driver lays them out. Before it starts all registered memory comes to the GPU,
 * for it has no page faults; an access by the CPU meanwhile waits until the kernel has ended.
 */
typedef void (*uhmm_kernel)(const uhmm_kernel_item* item, void* args);

#define UHMM_MAX_ARGS_BYTES 4096u
typedef struct uhmm_launch_desc {
  size_t size;           /* sizeof(uhmm_launch_desc) */
  uhmm_kernel kernel;    /* what to run */
  const void* args;      /* copied at the call; may be NULL if args_size is 0 */
  size_t args_size;      /* bytes, <= UHMM_MAX_ARGS_BYTES */
  uint32_t grid[3];      /* cells in x, y, z; on a GPU: blocks of threads; 0 counts as 1 */
  uint32_t flags;        /* 0 */
  uint32_t block[3];     /* on a GPU: threads of a block; 0 counts as 1; elsewhere ignored */
  uint32_t shared_bytes; /* on a GPU: dynamic shared memory of a block; elsewhere ignored */
} uhmm_launch_desc;
#define UHMM_LAUNCH_DESC_INIT \
  { sizeof(uhmm_launch_desc), NULL, NULL, 0, {1, 1, 1}, 0, {1, 1, 1}, 0 }
/*
 * Queue a kernel. Errors: NOT_FOUND (stream); INVALID; UNKNOWN_KERNEL (not a function the device knows: the detail
 * says which library, and that uhmm_device_restart makes it known); DEVICE_LOST. A kernel that crashes is
 * KERNEL_FAILED at the next synchronize, with signal, address and function in the detail.
 */
UHMM_API uhmm_status uhmm_launch(uhmm_stream stream, const uhmm_launch_desc* desc);

/* Read or write managed memory through a device's page table, taking device faults as a kernel would. `buffer` is
 * ordinary or managed memory. `faults` (may be NULL): device faults taken, one per run of pages missing there.
 * Errors: INVALID; NO_DEVICE; NOT_REGISTERED; DEVICE_LOST; DATA_LOST; FAULT (not mapped any more, or not readable);
 * PERMISSION (a write to memory that is not writable now). Source: lib/test_hmm.c, READ and WRITE. */
UHMM_API uhmm_status uhmm_device_read(uhmm_processor device, const void* address, void* buffer, size_t length,
                                      uint64_t* faults);
UHMM_API uhmm_status uhmm_device_write(uhmm_processor device, void* address, const void* buffer, size_t length,
                                       uint64_t* faults);
/* Give a device exclusive (atomic) access: until a CPU touches a page, only the device can. `pages` (may be NULL):
 * pages made exclusive. Errors: INVALID; NO_DEVICE; NOT_REGISTERED; DEVICE_LOST; BUSY (a page is pinned or is not fit;
 * nothing stays exclusive); DEVICE_FULL. Source: lib/test_hmm.c, EXCLUSIVE. */
UHMM_API uhmm_status uhmm_make_exclusive(void* address, size_t length, uhmm_processor device, uint64_t* pages);

/* ------------------------------------------------------------- observation */

typedef enum uhmm_page_state {
  UHMM_PAGE_NONE = 0,      /* never touched */
  UHMM_PAGE_SYSTEM = 1,    /* in system memory */
  UHMM_PAGE_SHARED = 2,    /* in system memory and on devices, all current */
  UHMM_PAGE_DEVICE = 3,    /* on one device only */
  UHMM_PAGE_EXCLUSIVE = 4, /* a device has exclusive access */
  UHMM_PAGE_LOST = 5       /* the only copy is gone: SIGBUS */
} uhmm_page_state;

typedef struct uhmm_page_info {
  uint8_t state;        /* uhmm_page_state */
  uint8_t devices;      /* bit d-1: device d holds a current copy */
  uint8_t mapped;       /* bit d-1: device d's page table reaches it */
  uint8_t device_write; /* bit d-1: device d may write without a fault */
  uint8_t huge;         /* bit d-1: device d holds it as part of one 2 MiB page */
} uhmm_page_info;

/* States of the pages that the byte range touches, first page first, at one moment per 2 MiB block. `capacity` is in
 * entries; *count is the number of pages of the range. Errors: INVALID; NOT_REGISTERED. */
UHMM_API uhmm_status uhmm_snapshot(const void* address, size_t length, uhmm_page_info* pages, size_t capacity,
                                   size_t* count);

typedef struct uhmm_stats {
  size_t size;                                /* sizeof(uhmm_stats) */
  uint64_t registered_bytes;                  /* bytes in registered ranges */
  uint64_t ranges;                            /* registered ranges */
  uint64_t cpu_faults;                        /* fault messages served for the CPU */
  uint64_t device_faults;                     /* and for devices */
  uint64_t faults_merged;                     /* of both: found already served */
  uint64_t pages_to_device[UHMM_CAUSE_COUNT]; /* pages copied to devices, by cause */
  uint64_t pages_to_system[UHMM_CAUSE_COUNT]; /* pages copied to system memory, by cause */
  uint64_t bytes_to_device;                   /* bytes copied to devices */
  uint64_t bytes_to_system;                   /* and back */
  uint64_t pages_populated;                   /* pages given zeroed backing */
  uint64_t pages_freed[UHMM_CAUSE_COUNT];     /* device copies freed, by cause */
  uint64_t pages_on_devices;                  /* now: device copies of pages */
  uint64_t pages_lost;                        /* now: lost pages */
  uint64_t move_fallbacks;                    /* runs that UFFDIO_MOVE could not take */
  uint64_t copy_ns;                           /* time spent copying, all threads */
  uint64_t metadata_bytes;                    /* runtime's own memory, process-wide */
  uint64_t staging_bytes;                     /* recycled staging pages, process-wide */
} uhmm_stats;
#define UHMM_STATS_INIT \
  { sizeof(uhmm_stats), 0, 0, 0, 0, 0, {0}, {0}, 0, 0, 0, {0}, 0, 0, 0, 0, 0, 0 }

/* Totals since uhmm_init. What the calling thread has seen happen is counted: the call waits for moves of single blocks
 * that are under way. Errors: INVALID (NULL or size). */
UHMM_API uhmm_status uhmm_get_stats(uhmm_stats* out);
/* Of the registered range that contains `address`, since it was registered; else as uhmm_get_stats. Errors: INVALID;
 * NOT_REGISTERED. */
UHMM_API uhmm_status uhmm_get_range_stats(const void* address, uhmm_stats* out);

#include "uhmm/trace.h"

/* Called on a runtime thread, in order, some time after the event; must not call uhmm_event_unsubscribe. May touch
 * any memory. */
typedef void (*uhmm_event_callback)(void* context, const uhmm_event* event);
typedef uint64_t uhmm_subscription;
/* Call `callback` for each event whose kind's bit (1 << kind) is in `kinds`. Events come from a ring: when callbacks
 * are slower than events, the oldest are dropped and a UHMM_EVENT_DROPPED event says how many.
 * Errors: INVALID (NULL, or no known kind in `kinds`); NO_MEMORY. */
UHMM_API uhmm_status uhmm_event_subscribe(uint64_t kinds, uhmm_event_callback callback, void* context,
                                          uhmm_subscription* out);
/* No callback runs after the return. Errors: NOT_FOUND. */
UHMM_API uhmm_status uhmm_event_unsubscribe(uhmm_subscription subscription);
/* Copy up to `capacity` of the newest events that are numbered > *cursor (0: from the oldest kept), oldest first;
 * *cursor becomes the last one's number. Errors: INVALID. */
UHMM_API uhmm_status uhmm_event_read(uint64_t* cursor, uhmm_event* events, size_t capacity, size_t* count);

#ifdef __cplusplus
}
#endif
#endif /* UHMM_UHMM_H */
