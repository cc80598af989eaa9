// SPDX-License-Identifier: Apache-2.0
// The functions of HIP that are used: the one list.
#pragma once

// X(function), and Y(function, type) for the one that HIP's header overloads for C++
#define UHMM_HIP_SYMBOLS(X, Y)                                    \
  X(hipInit)                                                      \
  X(hipDriverGetVersion)                                          \
  X(hipGetErrorName)                                              \
  X(hipGetDeviceCount)                                            \
  X(hipDeviceGetName)                                             \
  X(hipDeviceTotalMem)                                            \
  X(hipDeviceGetAttribute)                                        \
  X(hipSetDevice)                                                 \
  X(hipDeviceReset)                                               \
  X(hipMemGetInfo)                                                \
  X(hipMemGetAllocationGranularity)                               \
  X(hipMemAddressReserve)                                         \
  X(hipMemAddressFree)                                            \
  X(hipMemCreate)                                                 \
  X(hipMemRelease)                                                \
  X(hipMemMap)                                                    \
  X(hipMemSetAccess)                                              \
  X(hipMemUnmap)                                                  \
  Y(hipHostMalloc, hipError_t (*)(void**, std::size_t, unsigned)) \
  X(hipHostFree)                                                  \
  X(hipHostRegister)                                              \
  X(hipHostUnregister)                                            \
  X(hipStreamCreateWithFlags)                                     \
  X(hipStreamDestroy)                                             \
  X(hipStreamSynchronize)                                         \
  X(hipEventCreateWithFlags)                                      \
  X(hipEventDestroy)                                              \
  X(hipEventRecord)                                               \
  X(hipEventQuery)                                                \
  X(hipEventSynchronize)                                          \
  X(hipMemcpyHtoDAsync)                                           \
  X(hipMemcpyDtoHAsync)                                           \
  X(hipMemsetD8Async)                                             \
  X(hipModuleLaunchKernel)
