// SPDX-License-Identifier: Apache-2.0
// What the GPU samples do: a GPU works on malloc'd memory, std::vector, a linked list and a static array by the
// program's own pointers. Each check computes the same on the CPU and compares.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.hpp"
#include "uhmm/uhmm.h"

struct gpu_kernels {
  uhmm_kernel add_vectors;
  uhmm_kernel sum_list;
  uhmm_kernel smooth;
};

inline int failed_checks = 0;

inline void need(uhmm_status status, const char* what) {
  if (status == UHMM_OK) return;
  std::printf("%s: %s: %s\n", what, uhmm_status_name(status), uhmm_error_detail());
  std::exit(1);
}
inline void check(bool right, const char* what) {
  std::printf("%-6s%s\n", right ? "OK" : "WRONG", what);
  if (!right) ++failed_checks;
}

// The parameters in one piece, as the kernel declares them.
template <typename Params>
void run(uhmm_stream stream, uhmm_kernel kernel, const Params& params, std::size_t threads) {
  constexpr std::uint32_t kBlock = 256;
  uhmm_launch_desc launch = UHMM_LAUNCH_DESC_INIT;
  launch.kernel = kernel;
  launch.args = &params;
  launch.args_size = sizeof(params);
  launch.grid[0] = static_cast<std::uint32_t>((threads + kBlock - 1) / kBlock);
  launch.block[0] = kBlock;
  need(uhmm_launch(stream, &launch), "launch");
  need(uhmm_stream_synchronize(stream), "kernel");
}

inline void check_vectors(uhmm_stream stream, const gpu_kernels& kernels) {
  constexpr std::size_t kCount = 1'000'000;
  auto* left = static_cast<float*>(std::malloc(kCount * sizeof(float)));
  std::vector<float> right(kCount);
  std::vector<float> sum(kCount);
  arrays all{left, right.data(), sum.data(), kCount};
  for (std::size_t i = 0; i < kCount; ++i) left[i] = static_cast<float>(i % 1000);
  for (std::size_t i = 0; i < kCount; ++i) right[i] = static_cast<float>(i % 777);
  need(uhmm_register(left, kCount * sizeof(float)), "register");
  need(uhmm_register(right.data(), kCount * sizeof(float)), "register");
  need(uhmm_register(sum.data(), kCount * sizeof(float)), "register");
  need(uhmm_register(&all, sizeof(all)), "register");
  struct {
    arrays* all;
  } params{&all};
  run(stream, kernels.add_vectors, params, kCount);
  bool good = true;
  for (std::size_t i = 0; i < kCount; ++i) good = good && sum[i] == left[i] + right[i];
  check(good, "malloc'd memory and std::vector, by a struct of pointers on the stack");
  need(uhmm_unregister(&all), "unregister");
  need(uhmm_unregister(sum.data()), "unregister");
  need(uhmm_unregister(right.data()), "unregister");
  need(uhmm_unregister(left), "unregister");
  std::free(left);
}

inline void check_list(uhmm_stream stream, const gpu_kernels& kernels) {
  constexpr std::uint64_t kNodes = 10'000;
  std::vector<node> nodes(kNodes);
  for (std::uint64_t i = 0; i < kNodes; ++i)  // every 37th: neighbours in the list are not neighbours in memory
    nodes[i * 37 % kNodes] = {i + 1 < kNodes ? &nodes[(i + 1) * 37 % kNodes] : nullptr, i};
  static std::uint64_t sum;
  sum = 0;
  need(uhmm_register(nodes.data(), nodes.size() * sizeof(node)), "register");
  need(uhmm_register(&sum, sizeof(sum)), "register");
  struct {
    const node* first;
    std::uint64_t* sum;
  } params{nodes.data(), &sum};
  uhmm_launch_desc launch = UHMM_LAUNCH_DESC_INIT;
  launch.kernel = kernels.sum_list;
  launch.args = &params;
  launch.args_size = sizeof(params);
  need(uhmm_launch(stream, &launch), "launch");
  need(uhmm_stream_synchronize(stream), "kernel");
  check(sum == kNodes * (kNodes - 1) / 2, "a linked list, summed up into a static variable");
  need(uhmm_unregister(&sum), "unregister");
  need(uhmm_unregister(nodes.data()), "unregister");
}

inline void check_turns(uhmm_stream stream, const gpu_kernels& kernels) {
  constexpr std::size_t kCount = 200'000;
  static float field[2][kCount];
  std::vector<float> expected(kCount);
  std::vector<float> next(kCount);
  for (std::size_t i = 0; i < kCount; ++i) field[0][i] = field[1][i] = expected[i] = static_cast<float>(i % 100);
  need(uhmm_register(field, sizeof(field)), "register");
  for (unsigned turn = 0; turn < 6; ++turn) {
    struct {
      const float* from;
      float* to;
      std::size_t count;
    } params{field[turn % 2], field[(turn + 1) % 2], kCount};
    run(stream, kernels.smooth, params, kCount);
    next = expected;
    for (std::size_t i = 1; i + 1 < kCount; ++i) next[i] = (expected[i - 1] + expected[i] + expected[i + 1]) / 3;
    // The CPU changes one value in a hundred.
    for (std::size_t i = 50; i < kCount; i += 100) field[(turn + 1) % 2][i] = next[i] = static_cast<float>(turn);
    field[(turn + 1) % 2][0] = next[0];
    field[(turn + 1) % 2][kCount - 1] = next[kCount - 1];
    expected = next;
  }
  bool good = true;
  for (std::size_t i = 0; i < kCount; ++i) good = good && std::fabs(field[0][i] - expected[i]) < 1e-3f;
  check(good, "a stencil on a static array, CPU and GPU taking turns");
  need(uhmm_unregister(field), "unregister");
}

// 0: all right; 1: something is wrong; 77: no GPU.
template <typename Load>
int run_checks(std::uint32_t vendor_flag, Load&& load) {
  uhmm_config config = UHMM_CONFIG_INIT;
  config.gpus = 1;
  config.flags = vendor_flag;
  if (const uhmm_status started = uhmm_init(&config); started != UHMM_OK) {
    std::printf("no GPU: %s: %s\n", uhmm_status_name(started), uhmm_error_detail());
    return 77;
  }
  uhmm_device_info info = UHMM_DEVICE_INFO_INIT;
  need(uhmm_device_get_info(1, &info), "device");
  std::printf("%s, %llu MiB\n", info.name, static_cast<unsigned long long>(info.memory_bytes >> 20));
  const gpu_kernels kernels = load();
  uhmm_stream stream = 0;
  need(uhmm_stream_create(1, &stream), "stream");
  check_vectors(stream, kernels);
  check_list(stream, kernels);
  check_turns(stream, kernels);
  need(uhmm_stream_destroy(stream), "stream");
  need(uhmm_shutdown(), "shutdown");
  return failed_checks == 0 ? 0 : 1;
}
