// SPDX-License-Identifier: Apache-2.0
// Every lock of the runtime, outermost first. A thread may take a lock only if its rank is greater than that of every
// lock it holds. docs/locking.md is generated from this list (`./dev format` rewrites it, `./dev lint` compares).
#pragma once

// X(identifier, rank, protects, may be held across)
#define UHMM_LOCK_LIST(X)                                                                                           \
  X(Lifecycle, 10, "initialisation, shutdown, adding and removing devices and pools", "everything below")           \
  X(Acquires, 20, "the list of what is acquired", "nothing that waits")                                             \
  X(Strays, 25, "copies of the process that nobody was told of", "page operations on them")                         \
  X(VaSpace, 30, "shared: ranges and blocks exist; exclusive: they are added and removed", "everything below")      \
  X(StreamTable, 40, "the tables of streams and fences", "nothing that waits")                                      \
  X(Stream, 45, "one stream's queue and fence states", "nothing that waits")                                        \
  X(Flush, 47, "a device's stale mappings are unmapped before work begins, by one thread at a time", "block locks") \
  X(Block, 50, "the masks of one 2 MiB block; at most one block lock is held at a time",                            \
    "copies and page-table calls")                                                                                  \
  X(Snapshots, 55, "which forked children still want pages of this process", "copies")                              \
  X(Arm, 60, "whether a range is armed with userfaultfd", "one ioctl")                                              \
  X(CopyShield, 62, "what the program keeps from its children", "reading the kernel's map, and madvise calls")      \
  X(Attach, 65, "which ranges a device can reach; detaching needs the address space exclusively",                   \
    "the device's answer")                                                                                          \
  X(DeviceMemory, 70, "a device's accounting, LRU lists and stale-mapping list", "nothing that waits")              \
  X(DeviceFiles, 75, "a file on its way to a device process, and the request that it is for",                       \
    "the device process's answer")                                                                                  \
  X(DeviceChannel, 80, "one request to a device process at a time", "the device process's answer")                  \
  X(Staging, 90, "which staging slots are in use and which of their pages are filled", "nothing that waits")        \
  X(Workers, 95, "the queue of the worker threads", "nothing that waits")                                           \
  X(Patience, 97, "since when faults of a device can't be served", "nothing that waits")                            \
  X(Trace, 100, "subscriptions to events", "nothing that waits")                                                    \
  X(News, 105, "who takes the kernel's news of the memory map from it, and tells it", "reading it")                 \
  X(Arena, 110, "the metadata arena's pools", "nothing that waits")
