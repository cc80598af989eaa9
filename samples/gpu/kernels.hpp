// SPDX-License-Identifier: Apache-2.0
// Kernels of the GPU samples, as CUDA and HIP both take them.
#pragma once

#include <cstddef>
#include <cstdint>

struct node {
  node* next;
  std::uint64_t value;
};

struct arrays {  // a struct of pointers
  const float* left;
  const float* right;
  float* sum;
  std::size_t count;
};

extern "C" __global__ void add_vectors(arrays* a) {
  const std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < a->count) a->sum[i] = a->left[i] + a->right[i];
}

extern "C" __global__ void sum_list(const node* first, std::uint64_t* sum) {
  for (const node* at = first; at != nullptr; at = at->next) *sum += at->value;
}

// One step of a stencil: the mean of three neighbours.
extern "C" __global__ void smooth(const float* from, float* to, std::size_t count) {
  const std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i == 0 || i + 1 >= count) return;
  to[i] = (from[i - 1] + from[i] + from[i + 1]) / 3;
}
