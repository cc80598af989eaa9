// SPDX-License-Identifier: Apache-2.0
#include "tests/api/bad_input_table.hpp"

#include <cstdint>

namespace uhmm::test {
namespace {

using Rows = std::vector<Row>;

void* no_user_space() { return reinterpret_cast<void*>(0xffff'8000'0000'0000); }
constexpr std::uint64_t kUnknown = 999'999;

// Calls that take a byte range and something else.
struct RangeCall {
  const char* name;
  std::function<uhmm_status(World&, void*, std::size_t)> run;
};
Rows range_rows() {
  const RangeCall calls[] = {
      {"uhmm_register", [](World&, void* at, std::size_t n) { return uhmm_register(at, n); }},
      {"uhmm_migrate", [](World&, void* at, std::size_t n) { return uhmm_migrate(at, n, 1, nullptr); }},
      {"uhmm_migrate_async", [](World& w, void* at, std::size_t n) { return uhmm_migrate_async(at, n, 1, w.stream); }},
      {"uhmm_prefetch", [](World& w, void* at, std::size_t n) { return uhmm_prefetch(at, n, 1, w.stream); }},
      {"uhmm_prefetch", [](World&, void* at, std::size_t n) { return uhmm_prefetch(at, n, 1, 0); }},
      {"uhmm_discard", [](World&, void* at, std::size_t n) { return uhmm_discard(at, n); }},
      {"uhmm_advise", [](World&, void* at, std::size_t n) { return uhmm_advise(at, n, UHMM_ADVISE_READ_MOSTLY, 0); }},
      {"uhmm_acquire", [](World&, void* at, std::size_t n) { return uhmm_acquire(at, n, 1, UHMM_ACCESS_READ); }},
      {"uhmm_device_read",
       [](World& w, void* at, std::size_t n) { return uhmm_device_read(1, at, w.buffer, n, nullptr); }},
      {"uhmm_device_write",
       [](World& w, void* at, std::size_t n) { return uhmm_device_write(1, at, w.buffer, n, nullptr); }},
      {"uhmm_make_exclusive", [](World&, void* at, std::size_t n) { return uhmm_make_exclusive(at, n, 1, nullptr); }},
      {"uhmm_snapshot",
       [](World&, void* at, std::size_t n) {
         std::size_t count = 0;
         return uhmm_snapshot(at, n, nullptr, 0, &count);
       }},
      {"uhmm_release", [](World&, void* at, std::size_t n) { return uhmm_release(at, n, 1, UHMM_ACCESS_READ); }},
  };
  Rows rows;
  for (const auto& call : calls) {
    const auto run = call.run;
    const auto add = [&](const char* what, uhmm_status expected, auto at, std::size_t length) {
      rows.push_back({call.name, what, expected, [=](World& w) { return run(w, at(w), length); }});
    };
    const auto memory = [](World& w) -> void* { return w.memory; };
    add(
        "NULL", UHMM_ERR_INVALID, [](World&) -> void* { return nullptr; }, kPage);
    add("length 0", UHMM_ERR_INVALID, memory, 0);
    add("wraps", UHMM_ERR_INVALID, memory, SIZE_MAX - 100);
    add("ends beyond user space", UHMM_ERR_INVALID, memory, std::size_t{1} << 47);
    add(
        "begins beyond user space", UHMM_ERR_INVALID, [](World&) { return no_user_space(); }, kPage);
    const std::string name = call.name;
    if (name == "uhmm_register") {
      add("the same range again", UHMM_ERR_OVERLAP, memory, World::kHalf);
      add(
          "a byte of a registered range", UHMM_ERR_OVERLAP, [](World& w) -> void* { return w.memory + 5000; }, 1);
      add("more than a registered range", UHMM_ERR_OVERLAP, memory, World::kHalf + kPage);
      add(
          "the end of a registered range", UHMM_ERR_OVERLAP,
          [](World& w) -> void* { return w.memory + World::kHalf - 1; }, 2);
      add(
          "a hole", UHMM_ERR_FAULT, [](World& w) -> void* { return w.hole; }, kPage);
      add(
          "memory and a hole", UHMM_ERR_FAULT, [](World& w) -> void* { return w.hole - kPage; }, 2 * kPage);
      add(
          "shared memory that can't be read", UHMM_ERR_FAULT, [](World& w) -> void* { return w.unreadable; }, kPage);
      add(
          "a read-only private mapping of a file", UHMM_ERR_NOT_SUPPORTED,
          [](World& w) -> void* { return w.private_file; }, kPage);
    } else {
      const uhmm_status absent = name == "uhmm_release" ? UHMM_ERR_NOT_FOUND : UHMM_ERR_NOT_REGISTERED;
      add(
          "unregistered", absent, [](World& w) -> void* { return w.loose; }, kPage);
      add(
          "half of it unregistered", absent, [](World& w) -> void* { return w.loose - 1; }, 2);
      add(
          "a hole", absent, [](World& w) -> void* { return w.hole; }, 1);
    }
  }
  return rows;
}

// Calls that take pages, and don't ask whether they are registered.
Rows page_rows() {
  struct PageCall {
    const char* name;
    uhmm_status (*run)(void*, std::size_t);
  };
  Rows rows;
  for (const PageCall& call :
       {PageCall{"uhmm_forget", uhmm_forget}, PageCall{"uhmm_unregister_pages", uhmm_unregister_pages},
        PageCall{"uhmm_revoke", uhmm_revoke}}) {
    const auto add = [&](const char* what, uhmm_status expected, auto at, std::size_t length) {
      rows.push_back({call.name, what, expected, [=](World& w) { return call.run(at(w), length); }});
    };
    const auto loose = [](World& w) -> void* { return w.loose; };
    add(
        "NULL", UHMM_ERR_INVALID, [](World&) -> void* { return nullptr; }, kPage);
    add("length 0", UHMM_ERR_INVALID, loose, 0);
    add("wraps", UHMM_ERR_INVALID, loose, SIZE_MAX - 100);
    add("ends beyond user space", UHMM_ERR_INVALID, loose, std::size_t{1} << 47);
    add(
        "not the address of a page", UHMM_ERR_INVALID, [](World& w) -> void* { return w.memory + 1; }, kPage);
    add(
        "a hole", UHMM_OK, [](World& w) -> void* { return w.hole; }, kPage);
    add("unregistered", UHMM_OK, loose, kPage);
  }
  return rows;
}

// Calls that take a device.
Rows device_rows() {
  struct DeviceCall {
    const char* name;
    bool cpu_allowed;
    std::function<uhmm_status(World&, uhmm_processor)> run;
  };
  const DeviceCall calls[] = {
      {"uhmm_migrate", true, [](World& w, uhmm_processor d) { return uhmm_migrate(w.memory, 1, d, nullptr); }},
      {"uhmm_migrate_async", true,
       [](World& w, uhmm_processor d) { return uhmm_migrate_async(w.memory, 1, d, w.stream); }},
      {"uhmm_prefetch", true, [](World& w, uhmm_processor d) { return uhmm_prefetch(w.memory, 1, d, w.stream); }},
      {"uhmm_prefetch", true, [](World& w, uhmm_processor d) { return uhmm_prefetch(w.memory, 1, d, 0); }},
      {"uhmm_advise", true,
       [](World& w, uhmm_processor d) { return uhmm_advise(w.memory, 1, UHMM_ADVISE_PREFERRED_LOCATION, d); }},
      {"uhmm_advise", true,
       [](World& w, uhmm_processor d) { return uhmm_advise(w.memory, 1, UHMM_ADVISE_ACCESSED_BY, d); }},
      {"uhmm_acquire", true, [](World& w, uhmm_processor d) { return uhmm_acquire(w.memory, 1, d, UHMM_ACCESS_READ); }},
      {"uhmm_device_get_info", false,
       [](World&, uhmm_processor d) {
         uhmm_device_info info = UHMM_DEVICE_INFO_INIT;
         return uhmm_device_get_info(d, &info);
       }},
      {"uhmm_device_remove", false, [](World&, uhmm_processor d) { return uhmm_device_remove(d); }},
      {"uhmm_device_restart", false, [](World&, uhmm_processor d) { return uhmm_device_restart(d); }},
      {"uhmm_pool_create", false,
       [](World&, uhmm_processor d) {
         uhmm_pool_desc desc = UHMM_POOL_DESC_INIT;
         desc.device = d;
         desc.bytes = kPage;
         uhmm_pool pool = 0;
         return uhmm_pool_create(&desc, &pool);
       }},
      {"uhmm_stream_create", false,
       [](World&, uhmm_processor d) {
         uhmm_stream stream = 0;
         return uhmm_stream_create(d, &stream);
       }},
      {"uhmm_device_read", false,
       [](World& w, uhmm_processor d) { return uhmm_device_read(d, w.memory, w.buffer, 8, nullptr); }},
      {"uhmm_device_write", false,
       [](World& w, uhmm_processor d) { return uhmm_device_write(d, w.memory, w.buffer, 8, nullptr); }},
      {"uhmm_make_exclusive", false,
       [](World& w, uhmm_processor d) { return uhmm_make_exclusive(w.memory, 1, d, nullptr); }},
  };
  Rows rows;
  for (const auto& call : calls) {
    for (const uhmm_processor device : {2u, 8u, 9u, UINT32_MAX})
      rows.push_back({call.name, "device " + std::to_string(device), UHMM_ERR_NO_DEVICE,
                      [run = call.run, device](World& w) { return run(w, device); }});
    if (!call.cpu_allowed)
      rows.push_back(
          {call.name, "the CPU", UHMM_ERR_NO_DEVICE, [run = call.run](World& w) { return run(w, UHMM_CPU); }});
  }
  return rows;
}

// Calls that take a versioned struct.
template <typename Struct>
void struct_rows(Rows& rows, const char* name, const Struct& good, std::function<uhmm_status(World&, Struct*)> run) {
  rows.push_back({name, "NULL", UHMM_ERR_INVALID, [=](World& w) { return run(w, nullptr); }});
  for (const std::size_t size : {std::size_t{0}, std::size_t{4}, sizeof(std::size_t)})
    rows.push_back({name, "struct size " + std::to_string(size), UHMM_ERR_INVALID, [=](World& w) {
                      Struct copy = good;
                      copy.size = size;
                      const uhmm_status status = run(w, &copy);
                      EXPECT_EQ(copy.size, size);
                      return status;
                    }});
}
Rows all_struct_rows() {
  Rows rows;
  struct_rows<uhmm_config>(rows, "uhmm_get_config", UHMM_CONFIG_INIT,
                           [](World&, uhmm_config* c) { return uhmm_get_config(c); });
  struct_rows<uhmm_device_info>(rows, "uhmm_device_get_info", UHMM_DEVICE_INFO_INIT,
                                [](World&, uhmm_device_info* i) { return uhmm_device_get_info(1, i); });
  struct_rows<uhmm_device_desc>(rows, "uhmm_device_add", UHMM_DEVICE_DESC_INIT, [](World&, uhmm_device_desc* d) {
    uhmm_processor added = 0;
    return uhmm_device_add(d, &added);
  });
  uhmm_pool_desc pool = UHMM_POOL_DESC_INIT;
  pool.bytes = kPage;
  struct_rows<uhmm_pool_desc>(rows, "uhmm_pool_create", pool, [](World&, uhmm_pool_desc* d) {
    uhmm_pool out = 0;
    return uhmm_pool_create(d, &out);
  });
  Rows ops_rows;
  struct_rows<uhmm_pool_ops>(ops_rows, "uhmm_pool_create", UHMM_POOL_OPS_INIT, [pool](World&, uhmm_pool_ops* ops) {
    uhmm_pool_desc desc = pool;
    desc.ops = ops;
    uhmm_pool out = 0;
    return uhmm_pool_create(&desc, &out);
  });
  rows.insert(rows.end(), ops_rows.begin() + 1, ops_rows.end());  // ops may be NULL
  Rows result_rows;
  struct_rows<uhmm_migrate_result>(
      result_rows, "uhmm_migrate", UHMM_MIGRATE_RESULT_INIT,
      [](World& w, uhmm_migrate_result* r) { return uhmm_migrate(w.memory, World::kHalf, 1, r); });
  rows.insert(rows.end(), result_rows.begin() + 1, result_rows.end());  // so may the result
  uhmm_launch_desc kernel = UHMM_LAUNCH_DESC_INIT;
  kernel.kernel = empty_kernel;
  struct_rows<uhmm_launch_desc>(rows, "uhmm_launch", kernel,
                                [](World& w, uhmm_launch_desc* d) { return uhmm_launch(w.stream, d); });
  struct_rows<uhmm_stats>(rows, "uhmm_get_stats", UHMM_STATS_INIT,
                          [](World&, uhmm_stats* s) { return uhmm_get_stats(s); });
  struct_rows<uhmm_stats>(rows, "uhmm_get_range_stats", UHMM_STATS_INIT,
                          [](World& w, uhmm_stats* s) { return uhmm_get_range_stats(w.memory, s); });
  return rows;
}

// Calls that take a handle.
Rows handle_rows() {
  struct HandleCall {
    const char* name;
    std::function<uhmm_status(World&, std::uint64_t)> run;
  };
  const HandleCall calls[] = {
      {"uhmm_stream_synchronize", [](World&, std::uint64_t h) { return uhmm_stream_synchronize(h); }},
      {"uhmm_stream_destroy", [](World&, std::uint64_t h) { return uhmm_stream_destroy(h); }},
      {"uhmm_fence_record",
       [](World&, std::uint64_t h) {
         uhmm_fence fence = 0;
         return uhmm_fence_record(h, &fence);
       }},
      {"uhmm_stream_wait_fence", [](World& w, std::uint64_t h) { return uhmm_stream_wait_fence(h, w.fence); }},
      {"uhmm_stream_wait_fence", [](World& w, std::uint64_t h) { return uhmm_stream_wait_fence(w.stream, h); }},
      {"uhmm_fence_wait", [](World&, std::uint64_t h) { return uhmm_fence_wait(h, UINT64_MAX); }},
      {"uhmm_fence_destroy", [](World&, std::uint64_t h) { return uhmm_fence_destroy(h); }},
      {"uhmm_pool_destroy", [](World&, std::uint64_t h) { return uhmm_pool_destroy(h); }},
      {"uhmm_event_unsubscribe", [](World&, std::uint64_t h) { return uhmm_event_unsubscribe(h); }},
      {"uhmm_launch",
       [](World&, std::uint64_t h) {
         uhmm_launch_desc desc = UHMM_LAUNCH_DESC_INIT;
         desc.kernel = empty_kernel;
         return uhmm_launch(h, &desc);
       }},
      {"uhmm_migrate_async", [](World& w, std::uint64_t h) { return uhmm_migrate_async(w.memory, 1, 1, h); }},
  };
  Rows rows;
  for (const auto& call : calls)
    for (const std::uint64_t handle : {std::uint64_t{0}, kUnknown, UINT64_MAX})
      rows.push_back({call.name, "handle " + std::to_string(handle), UHMM_ERR_NOT_FOUND,
                      [run = call.run, handle](World& w) { return run(w, handle); }});
  rows.push_back({"uhmm_prefetch", "unknown stream", UHMM_ERR_NOT_FOUND,
                  [](World& w) { return uhmm_prefetch(w.memory, 1, 1, kUnknown); }});
  rows.push_back({"uhmm_range_set_pool", "unknown pool", UHMM_ERR_NOT_FOUND,
                  [](World& w) { return uhmm_range_set_pool(w.memory, kUnknown); }});
  rows.push_back({"uhmm_stream_synchronize", "a fence", UHMM_ERR_NOT_FOUND,
                  [](World& w) { return uhmm_stream_synchronize(w.fence); }});
  rows.push_back(
      {"uhmm_fence_wait", "a stream", UHMM_ERR_NOT_FOUND, [](World& w) { return uhmm_fence_wait(w.stream, 0); }});
  return rows;
}

uhmm_status launch_changed(World& w, const std::function<void(uhmm_launch_desc&)>& change) {
  uhmm_launch_desc desc = UHMM_LAUNCH_DESC_INIT;
  desc.kernel = empty_kernel;
  change(desc);
  return uhmm_launch(w.stream, &desc);
}
uhmm_status add_changed(const std::function<void(uhmm_device_desc&)>& change) {
  uhmm_device_desc desc = UHMM_DEVICE_DESC_INIT;
  change(desc);
  uhmm_processor added = 0;
  return uhmm_device_add(&desc, &added);
}
uhmm_status pool_changed(const std::function<void(uhmm_pool_desc&)>& change) {
  uhmm_pool_desc desc = UHMM_POOL_DESC_INIT;
  desc.bytes = kPage;
  change(desc);
  uhmm_pool pool = 0;
  return uhmm_pool_create(&desc, &pool);
}
// For calls whose failure is NULL and a detail.
uhmm_status failed(const void* pointer) { return pointer == nullptr ? UHMM_ERR_NO_MEMORY : UHMM_OK; }

Rows other_rows() {
  constexpr uhmm_status kInvalid = UHMM_ERR_INVALID;
  return {
      {"uhmm_init", "while running", UHMM_ERR_ALREADY, [](World&) { return uhmm_init(nullptr); }},
      {"uhmm_device_count", "NULL", kInvalid, [](World&) { return uhmm_device_count(nullptr); }},
      {"uhmm_device_list", "count NULL", kInvalid,
       [](World&) {
         uhmm_processor id = 0;
         return uhmm_device_list(&id, 1, nullptr);
       }},
      {"uhmm_device_list", "ids NULL", kInvalid,
       [](World&) {
         std::uint32_t count = 0;
         return uhmm_device_list(nullptr, 1, &count);
       }},
      {"uhmm_device_add", "out NULL", kInvalid,
       [](World&) {
         const uhmm_device_desc desc = UHMM_DEVICE_DESC_INIT;
         return uhmm_device_add(&desc, nullptr);
       }},
      {"uhmm_device_add", "kind 0", kInvalid, [](World&) { return add_changed([](auto& d) { d.kind = 0; }); }},
      {"uhmm_device_add", "kind 77", kInvalid, [](World&) { return add_changed([](auto& d) { d.kind = 77; }); }},
      {"uhmm_device_add", "unknown flag", kInvalid,
       [](World&) { return add_changed([](auto& d) { d.flags = UHMM_DEVICE_IS_LOST; }); }},
      {"uhmm_device_add", "reserved", kInvalid, [](World&) { return add_changed([](auto& d) { d.reserved = 1; }); }},
      {"uhmm_device_add", "too little memory", kInvalid,
       [](World&) { return add_changed([](auto& d) { d.memory_bytes = kBlock - 1; }); }},
      {"uhmm_device_add", "too much memory", kInvalid,
       [](World&) { return add_changed([](auto& d) { d.memory_bytes = UINT64_MAX; }); }},
      {"uhmm_device_add", "too many workers", kInvalid,
       [](World&) { return add_changed([](auto& d) { d.workers = 257; }); }},
      {"uhmm_pool_create", "out NULL", kInvalid,
       [](World&) {
         uhmm_pool_desc desc = UHMM_POOL_DESC_INIT;
         desc.bytes = kPage;
         return uhmm_pool_create(&desc, nullptr);
       }},
      {"uhmm_pool_create", "no bytes", kInvalid, [](World&) { return pool_changed([](auto& d) { d.bytes = 0; }); }},
      {"uhmm_pool_create", "flags", kInvalid, [](World&) { return pool_changed([](auto& d) { d.flags = 1; }); }},
      {"uhmm_pool_create", "more than the device has", UHMM_ERR_OVERLAP,
       [](World&) { return pool_changed([](auto& d) { d.bytes = test_config().device_memory + 1; }); }},
      {"uhmm_pool_create", "far more than the device has", UHMM_ERR_OVERLAP,
       [](World&) { return pool_changed([](auto& d) { d.bytes = UINT64_MAX; }); }},
      {"uhmm_pool_create", "together more than the device has", UHMM_ERR_OVERLAP,
       [](World&) { return pool_changed([](auto& d) { d.bytes = test_config().device_memory; }); }},
      {"uhmm_range_set_pool", "NULL", UHMM_ERR_NOT_REGISTERED,
       [](World& w) { return uhmm_range_set_pool(nullptr, w.pool); }},
      {"uhmm_range_set_pool", "unregistered", UHMM_ERR_NOT_REGISTERED,
       [](World& w) { return uhmm_range_set_pool(w.loose, w.pool); }},
      {"uhmm_unregister", "NULL", UHMM_ERR_NOT_REGISTERED, [](World&) { return uhmm_unregister(nullptr); }},
      {"uhmm_unregister", "unregistered", UHMM_ERR_NOT_REGISTERED, [](World& w) { return uhmm_unregister(w.loose); }},
      {"uhmm_unregister", "not the start", UHMM_ERR_NOT_REGISTERED,
       [](World& w) { return uhmm_unregister(w.memory + 1); }},
      {"uhmm_unregister", "beyond user space", UHMM_ERR_NOT_REGISTERED,
       [](World&) { return uhmm_unregister(no_user_space()); }},
      {"uhmm_malloc", "far too much", UHMM_ERR_NO_MEMORY, [](World&) { return failed(uhmm_malloc(SIZE_MAX)); }},
      {"uhmm_malloc", "too much", UHMM_ERR_NO_MEMORY, [](World&) { return failed(uhmm_malloc(SIZE_MAX / 2)); }},
      {"uhmm_calloc", "overflow", UHMM_ERR_NO_MEMORY, [](World&) { return failed(uhmm_calloc(SIZE_MAX / 2, 3)); }},
      {"uhmm_aligned_alloc", "alignment 0", UHMM_ERR_NO_MEMORY,
       [](World&) { return failed(uhmm_aligned_alloc(0, 8)); }},
      {"uhmm_aligned_alloc", "alignment 24", UHMM_ERR_NO_MEMORY,
       [](World&) { return failed(uhmm_aligned_alloc(24, 8)); }},
      {"uhmm_aligned_alloc", "alignment 2^63", UHMM_ERR_NO_MEMORY,
       [](World&) { return failed(uhmm_aligned_alloc(std::size_t{1} << 63, 8)); }},
      {"uhmm_aligned_alloc", "size and alignment overflow", UHMM_ERR_NO_MEMORY,
       [](World&) { return failed(uhmm_aligned_alloc(std::size_t{1} << 30, SIZE_MAX - (std::size_t{1} << 29))); }},
      {"uhmm_realloc", "too much", UHMM_ERR_NO_MEMORY,
       [](World& w) { return failed(uhmm_realloc(w.block, SIZE_MAX)); }},
      {"uhmm_realloc", "a foreign pointer", UHMM_ERR_NO_MEMORY,
       [](World& w) { return failed(uhmm_realloc(w.loose, 100)); }},
      {"uhmm_free", "a foreign pointer", UHMM_ERR_INVALID,
       [](World& w) {
         uhmm_free(w.loose);
         return *uhmm_error_detail() != '\0' ? UHMM_ERR_INVALID : UHMM_OK;
       }},
      {"uhmm_free", "the middle of a block", UHMM_ERR_INVALID,
       [](World& w) {
         uhmm_free(static_cast<std::byte*>(w.block) + 16);
         return *uhmm_error_detail() != '\0' ? UHMM_ERR_INVALID : UHMM_OK;
       }},
      {"uhmm_usable_size", "NULL and foreign", UHMM_OK,
       [](World& w) { return uhmm_usable_size(nullptr) + uhmm_usable_size(w.loose) == 0 ? UHMM_OK : kInvalid; }},
      {"uhmm_advise", "unknown advice", kInvalid,
       [](World& w) { return uhmm_advise(w.memory, 1, static_cast<uhmm_advice>(7), 0); }},
      {"uhmm_advise", "negative advice", kInvalid,
       [](World& w) { return uhmm_advise(w.memory, 1, static_cast<uhmm_advice>(-1), 0); }},
      {"uhmm_acquire", "no access", kInvalid,
       [](World& w) { return uhmm_acquire(w.memory, 1, 1, static_cast<uhmm_access>(0)); }},
      {"uhmm_acquire", "unknown access", kInvalid,
       [](World& w) { return uhmm_acquire(w.memory, 1, 1, static_cast<uhmm_access>(4)); }},
      {"uhmm_release", "unknown access", kInvalid,
       [](World& w) { return uhmm_release(w.memory, 1, 1, static_cast<uhmm_access>(4)); }},
      {"uhmm_release", "device 9", UHMM_ERR_NO_DEVICE,
       [](World& w) { return uhmm_release(w.memory, 1, 9, UHMM_ACCESS_READ); }},
      {"uhmm_release", "not acquired", UHMM_ERR_NOT_FOUND,
       [](World& w) { return uhmm_release(w.memory, kPage, 1, UHMM_ACCESS_READ); }},
      {"uhmm_stream_create", "out NULL", kInvalid, [](World&) { return uhmm_stream_create(1, nullptr); }},
      {"uhmm_fence_record", "out NULL", kInvalid, [](World& w) { return uhmm_fence_record(w.stream, nullptr); }},
      {"uhmm_launch", "no kernel", kInvalid,
       [](World& w) { return launch_changed(w, [](auto& d) { d.kernel = nullptr; }); }},
      {"uhmm_launch", "no argument bytes", kInvalid,
       [](World& w) { return launch_changed(w, [](auto& d) { d.args_size = 8; }); }},
      {"uhmm_launch", "too many argument bytes", kInvalid,
       [](World& w) {
         return launch_changed(w, [&](auto& d) {
           d.args = w.memory;
           d.args_size = UHMM_MAX_ARGS_BYTES + 1;
         });
       }},
      {"uhmm_launch", "flags", kInvalid, [](World& w) { return launch_changed(w, [](auto& d) { d.flags = 1; }); }},
      {"uhmm_launch", "data as a kernel", UHMM_ERR_UNKNOWN_KERNEL,
       [](World& w) { return launch_changed(w, [&](auto& d) { d.kernel = reinterpret_cast<uhmm_kernel>(w.loose); }); }},
      {"uhmm_device_read", "no buffer", kInvalid,
       [](World& w) { return uhmm_device_read(1, w.memory, nullptr, 8, nullptr); }},
      {"uhmm_device_write", "no buffer", kInvalid,
       [](World& w) { return uhmm_device_write(1, w.memory, nullptr, 8, nullptr); }},
      {"uhmm_snapshot", "count NULL", kInvalid,
       [](World& w) { return uhmm_snapshot(w.memory, kPage, nullptr, 0, nullptr); }},
      {"uhmm_snapshot", "pages NULL", kInvalid,
       [](World& w) {
         std::size_t count = 0;
         return uhmm_snapshot(w.memory, kPage, nullptr, 1, &count);
       }},
      {"uhmm_get_range_stats", "unregistered", UHMM_ERR_NOT_REGISTERED,
       [](World& w) {
         uhmm_stats stats = UHMM_STATS_INIT;
         return uhmm_get_range_stats(w.loose, &stats);
       }},
      {"uhmm_event_subscribe", "no callback", kInvalid,
       [](World& w) { return uhmm_event_subscribe(2, nullptr, nullptr, &w.subscription); }},
      {"uhmm_event_subscribe", "no kind", kInvalid,
       [](World& w) { return uhmm_event_subscribe(0, ignore_event, nullptr, &w.subscription); }},
      {"uhmm_event_subscribe", "out NULL", kInvalid,
       [](World&) { return uhmm_event_subscribe(2, ignore_event, nullptr, nullptr); }},
      {"uhmm_event_read", "cursor NULL", kInvalid,
       [](World&) {
         uhmm_event event;
         std::size_t count = 0;
         return uhmm_event_read(nullptr, &event, 1, &count);
       }},
      {"uhmm_event_read", "events NULL", kInvalid,
       [](World&) {
         std::uint64_t cursor = 0;
         std::size_t count = 0;
         return uhmm_event_read(&cursor, nullptr, 1, &count);
       }},
      {"uhmm_event_read", "count NULL", kInvalid,
       [](World&) {
         std::uint64_t cursor = 0;
         uhmm_event event;
         return uhmm_event_read(&cursor, &event, 1, nullptr);
       }},
      {"uhmm_status_name", "unknown", UHMM_OK,
       [](World&) {
         return std::string("UHMM_ERR_?") == uhmm_status_name(static_cast<uhmm_status>(-5)) ? UHMM_OK : kInvalid;
       }},
      {"uhmm_status_text", "unknown", UHMM_OK,
       [](World&) { return *uhmm_status_text(static_cast<uhmm_status>(999)) != '\0' ? UHMM_OK : kInvalid; }},
      {"uhmm_cause_text", "unknown", UHMM_OK,
       [](World&) {
         return std::string("?") == uhmm_cause_text(static_cast<uhmm_cause>(UHMM_CAUSE_COUNT)) ? UHMM_OK : kInvalid;
       }},
      {"uhmm_event_text", "unknown", UHMM_OK,
       [](World&) {
         return std::string("?") == uhmm_event_text(static_cast<uhmm_event_kind>(99)) ? UHMM_OK : kInvalid;
       }},
  };
}

}  // namespace

std::vector<Row> bad_calls() {
  Rows rows;
  for (Rows part : {range_rows(), page_rows(), device_rows(), all_struct_rows(), handle_rows(), other_rows()})
    rows.insert(rows.end(), part.begin(), part.end());
  return rows;
}

}  // namespace uhmm::test
