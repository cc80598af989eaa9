// SPDX-License-Identifier: Apache-2.0
// The one list of calls that fail with EFAULT before they have done anything: they are retried when their memory has
// come home. X(name, result, result of a failure, parameters, arguments, what makes its memory ready). Those that are
// not so simple are in transfers.cpp; what the C library does inside itself is seen by nobody.
#pragma once

#include <dirent.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "preload/kernel_access.hpp"

#define UHMM_MEMORY(...) make_ready({__VA_ARGS__})

#define UHMM_SET_BYTES(count) (((count) > 0 ? static_cast<size_t>(count) / 64 + 1 : 1) * 8)

#define UHMM_RETRIED_CALL_LIST(X)                                                                                      \
  /* Paths. */                                                                                                         \
  X(creat, int, -1, (const char* path, mode_t mode), (path, mode), UHMM_MEMORY(text(path)))                            \
  X(creat64, int, -1, (const char* path, mode_t mode), (path, mode), UHMM_MEMORY(text(path)))                          \
  X(access, int, -1, (const char* path, int mode), (path, mode), UHMM_MEMORY(text(path)))                              \
  X(faccessat, int, -1, (int folder, const char* path, int mode, int flags), (folder, path, mode, flags),              \
    UHMM_MEMORY(text(path)))                                                                                           \
  X(stat, int, -1, (const char* path, struct stat* found), (path, found),                                              \
    UHMM_MEMORY(text(path), out(found, sizeof(*found))))                                                               \
  X(stat64, int, -1, (const char* path, struct stat64* found), (path, found),                                          \
    UHMM_MEMORY(text(path), out(found, sizeof(*found))))                                                               \
  X(lstat, int, -1, (const char* path, struct stat* found), (path, found),                                             \
    UHMM_MEMORY(text(path), out(found, sizeof(*found))))                                                               \
  X(lstat64, int, -1, (const char* path, struct stat64* found), (path, found),                                         \
    UHMM_MEMORY(text(path), out(found, sizeof(*found))))                                                               \
  X(fstat, int, -1, (int fd, struct stat* found), (fd, found), UHMM_MEMORY(out(found, sizeof(*found))))                \
  X(fstat64, int, -1, (int fd, struct stat64* found), (fd, found), UHMM_MEMORY(out(found, sizeof(*found))))            \
  X(fstatat, int, -1, (int folder, const char* path, struct stat* found, int flags), (folder, path, found, flags),     \
    UHMM_MEMORY(text(path), out(found, sizeof(*found))))                                                               \
  X(fstatat64, int, -1, (int folder, const char* path, struct stat64* found, int flags), (folder, path, found, flags), \
    UHMM_MEMORY(text(path), out(found, sizeof(*found))))                                                               \
  X(statx, int, -1, (int folder, const char* path, int flags, unsigned mask, struct statx* found),                     \
    (folder, path, flags, mask, found), UHMM_MEMORY(text(path), out(found, sizeof(*found))))                           \
  X(statfs, int, -1, (const char* path, struct statfs* found), (path, found),                                          \
    UHMM_MEMORY(text(path), out(found, sizeof(*found))))                                                               \
  X(fstatfs, int, -1, (int fd, struct statfs* found), (fd, found), UHMM_MEMORY(out(found, sizeof(*found))))            \
  X(readlink, ssize_t, -1, (const char* path, char* to, size_t bytes), (path, to, bytes),                              \
    UHMM_MEMORY(text(path), out(to, bytes)))                                                                           \
  X(readlinkat, ssize_t, -1, (int folder, const char* path, char* to, size_t bytes), (folder, path, to, bytes),        \
    UHMM_MEMORY(text(path), out(to, bytes)))                                                                           \
  X(__readlink_chk, ssize_t, -1, (const char* path, char* to, size_t bytes, size_t room), (path, to, bytes, room),     \
    UHMM_MEMORY(text(path), out(to, bytes)))                                                                           \
  X(getcwd, char*, nullptr, (char* to, size_t bytes), (to, bytes), UHMM_MEMORY(out(to, bytes)))                        \
  X(chdir, int, -1, (const char* path), (path), UHMM_MEMORY(text(path)))                                               \
  X(chroot, int, -1, (const char* path), (path), UHMM_MEMORY(text(path)))                                              \
  X(chmod, int, -1, (const char* path, mode_t mode), (path, mode), UHMM_MEMORY(text(path)))                            \
  X(fchmodat, int, -1, (int folder, const char* path, mode_t mode, int flags), (folder, path, mode, flags),            \
    UHMM_MEMORY(text(path)))                                                                                           \
  X(chown, int, -1, (const char* path, uid_t owner, gid_t group), (path, owner, group), UHMM_MEMORY(text(path)))       \
  X(lchown, int, -1, (const char* path, uid_t owner, gid_t group), (path, owner, group), UHMM_MEMORY(text(path)))      \
  X(fchownat, int, -1, (int folder, const char* path, uid_t owner, gid_t group, int flags),                            \
    (folder, path, owner, group, flags), UHMM_MEMORY(text(path)))                                                      \
  X(mkdir, int, -1, (const char* path, mode_t mode), (path, mode), UHMM_MEMORY(text(path)))                            \
  X(mkdirat, int, -1, (int folder, const char* path, mode_t mode), (folder, path, mode), UHMM_MEMORY(text(path)))      \
  X(rmdir, int, -1, (const char* path), (path), UHMM_MEMORY(text(path)))                                               \
  X(unlink, int, -1, (const char* path), (path), UHMM_MEMORY(text(path)))                                              \
  X(unlinkat, int, -1, (int folder, const char* path, int flags), (folder, path, flags), UHMM_MEMORY(text(path)))      \
  X(link, int, -1, (const char* from, const char* to), (from, to), UHMM_MEMORY(text(from), text(to)))                  \
  X(symlink, int, -1, (const char* from, const char* to), (from, to), UHMM_MEMORY(text(from), text(to)))               \
  X(rename, int, -1, (const char* from, const char* to), (from, to), UHMM_MEMORY(text(from), text(to)))                \
  X(renameat, int, -1, (int folder, const char* from, int other, const char* to), (folder, from, other, to),           \
    UHMM_MEMORY(text(from), text(to)))                                                                                 \
  X(truncate, int, -1, (const char* path, off_t bytes), (path, bytes), UHMM_MEMORY(text(path)))                        \
  X(truncate64, int, -1, (const char* path, off64_t bytes), (path, bytes), UHMM_MEMORY(text(path)))                    \
  X(utimensat, int, -1, (int folder, const char* path, const struct timespec* times, int flags),                       \
    (folder, path, times, flags), UHMM_MEMORY(text(path), in(times, 2 * sizeof(*times))))                              \
  X(memfd_create, int, -1, (const char* name, unsigned flags), (name, flags), UHMM_MEMORY(text(name)))                 \
  X(fopen, FILE*, nullptr, (const char* path, const char* mode), (path, mode), UHMM_MEMORY(text(path)))                \
  X(fopen64, FILE*, nullptr, (const char* path, const char* mode), (path, mode), UHMM_MEMORY(text(path)))              \
  X(opendir, DIR*, nullptr, (const char* path), (path), UHMM_MEMORY(text(path)))                                       \
  /* Small answers and questions. */                                                                                   \
  X(pipe, int, -1, (int* ends), (ends), UHMM_MEMORY(out(ends, 2 * sizeof(int))))                                       \
  X(pipe2, int, -1, (int* ends, int flags), (ends, flags), UHMM_MEMORY(out(ends, 2 * sizeof(int))))                    \
  X(uname, int, -1, (struct utsname * found), (found), UHMM_MEMORY(out(found, sizeof(*found))))                        \
  X(sysinfo, int, -1, (struct sysinfo * found), (found), UHMM_MEMORY(out(found, sizeof(*found))))                      \
  X(sigpending, int, -1, (sigset_t * set), (set), UHMM_MEMORY(out(set, sizeof(*set))))                                 \
  X(sched_getaffinity, int, -1, (pid_t thread, size_t bytes, cpu_set_t * set), (thread, bytes, set),                   \
    UHMM_MEMORY(out(set, bytes)))                                                                                      \
  X(sched_setaffinity, int, -1, (pid_t thread, size_t bytes, const cpu_set_t* set), (thread, bytes, set),              \
    UHMM_MEMORY(in(set, bytes)))                                                                                       \
  X(getgroups, int, -1, (int count, gid_t* groups), (count, groups),                                                   \
    UHMM_MEMORY(out(groups, static_cast<size_t>(count) * sizeof(gid_t))))                                              \
  /* Sockets. */                                                                                                       \
  X(bind, int, -1, (int fd, const sockaddr* address, socklen_t bytes), (fd, address, bytes),                           \
    UHMM_MEMORY(in(address, bytes)))                                                                                   \
  X(connect, int, -1, (int fd, const sockaddr* address, socklen_t bytes), (fd, address, bytes),                        \
    UHMM_MEMORY(in(address, bytes)))                                                                                   \
  X(getsockname, int, -1, (int fd, sockaddr* address, socklen_t* bytes), (fd, address, bytes),                         \
    UHMM_MEMORY(out(address, sizeof(sockaddr_storage)), out(bytes, sizeof(*bytes))))                                   \
  X(getpeername, int, -1, (int fd, sockaddr* address, socklen_t* bytes), (fd, address, bytes),                         \
    UHMM_MEMORY(out(address, sizeof(sockaddr_storage)), out(bytes, sizeof(*bytes))))                                   \
  X(setsockopt, int, -1, (int fd, int level, int name, const void* value, socklen_t bytes),                            \
    (fd, level, name, value, bytes), UHMM_MEMORY(in(value, bytes)))                                                    \
  X(socketpair, int, -1, (int domain, int type, int protocol, int* ends), (domain, type, protocol, ends),              \
    UHMM_MEMORY(out(ends, 2 * sizeof(int))))                                                                           \
  /* Waiting: what they wait for is still there afterwards. */                                                         \
  X(poll, int, -1, (pollfd * fds, nfds_t count, int milliseconds), (fds, count, milliseconds),                         \
    UHMM_MEMORY(out(fds, count * sizeof(*fds))))                                                                       \
  X(ppoll, int, -1, (pollfd * fds, nfds_t count, const struct timespec* time, const sigset_t* mask),                   \
    (fds, count, time, mask),                                                                                          \
    UHMM_MEMORY(out(fds, count * sizeof(*fds)), in(time, sizeof(*time)), in(mask, sizeof(*mask))))                     \
  X(select, int, -1, (int count, fd_set* readable, fd_set* writable, fd_set* other, struct timeval* time),             \
    (count, readable, writable, other, time),                                                                          \
    UHMM_MEMORY(out(readable, UHMM_SET_BYTES(count)), out(writable, UHMM_SET_BYTES(count)),                            \
                out(other, UHMM_SET_BYTES(count)), out(time, sizeof(*time))))                                          \
  X(pselect, int, -1,                                                                                                  \
    (int count, fd_set* readable, fd_set* writable, fd_set* other, const struct timespec* time, const sigset_t* mask), \
    (count, readable, writable, other, time, mask),                                                                    \
    UHMM_MEMORY(out(readable, UHMM_SET_BYTES(count)), out(writable, UHMM_SET_BYTES(count)),                            \
                out(other, UHMM_SET_BYTES(count)), in(time, sizeof(*time)), in(mask, sizeof(*mask))))                  \
  X(epoll_ctl, int, -1, (int set, int operation, int fd, struct epoll_event* event), (set, operation, fd, event),      \
    UHMM_MEMORY(in(event, sizeof(*event))))                                                                            \
  X(epoll_wait, int, -1, (int set, struct epoll_event* events, int count, int milliseconds),                           \
    (set, events, count, milliseconds), UHMM_MEMORY(out(events, static_cast<size_t>(count) * sizeof(*events))))        \
  X(epoll_pwait, int, -1, (int set, struct epoll_event* events, int count, int milliseconds, const sigset_t* mask),    \
    (set, events, count, milliseconds, mask),                                                                          \
    UHMM_MEMORY(out(events, static_cast<size_t>(count) * sizeof(*events)), in(mask, sizeof(*mask))))                   \
  /* Messages out: a socket takes all of one before it keeps any. */                                                   \
  X(sendmsg, ssize_t, -1, (int fd, const msghdr* message, int flags), (fd, message, flags),                            \
    make_message_ready(message, false))                                                                                \
  X(process_vm_readv, ssize_t, -1,                                                                                     \
    (pid_t process, const iovec* to, unsigned long count, const iovec* from, unsigned long others,                     \
     unsigned long flags),                                                                                             \
    (process, to, count, from, others, flags), make_ends_ready(process, to, count, from, others, true))                \
  X(process_vm_writev, ssize_t, -1,                                                                                    \
    (pid_t process, const iovec* from, unsigned long count, const iovec* to, unsigned long others,                     \
     unsigned long flags),                                                                                             \
    (process, from, count, to, others, flags), make_ends_ready(process, from, count, to, others, false))               \
  /* Other programs. */                                                                                                \
  X(execve, int, -1, (const char* path, char* const* words, char* const* environment), (path, words, environment),     \
    make_program_ready(path, words, environment))                                                                      \
  X(execv, int, -1, (const char* path, char* const* words), (path, words), make_program_ready(path, words, environ))   \
  X(execvp, int, -1, (const char* path, char* const* words), (path, words), make_program_ready(path, words, environ))  \
  X(execvpe, int, -1, (const char* path, char* const* words, char* const* environment), (path, words, environment),    \
    make_program_ready(path, words, environment))                                                                      \
  X(fexecve, int, -1, (int fd, char* const* words, char* const* environment), (fd, words, environment),                \
    make_program_ready(nullptr, words, environment))                                                                   \
  /* What is given back is complete or not there. */                                                                   \
  X(getentropy, int, -1, (void* to, size_t bytes), (to, bytes), UHMM_MEMORY(out(to, bytes)))                           \
  X(vmsplice, ssize_t, -1, (int fd, const iovec* parts, size_t count, unsigned flags), (fd, parts, count, flags),      \
    make_vectors_ready(parts, count, true))                                                                            \
  X(sendmmsg, int, -1, (int fd, mmsghdr* messages, unsigned count, int flags), (fd, messages, count, flags),           \
    make_messages_ready(messages, count, false))
