// SPDX-License-Identifier: Apache-2.0
// Names of functions for messages, also of those that the dynamic linker does not know: kernels are often static.
#pragma once

#include <span>

namespace uhmm::soft {

// "name in module" or "module+0x..."; "" for what is not code. Reads the module's file, so: user threads only, and keep
// the result. Does not use the heap.
void symbol_name(const void* function, std::span<char> text);
// "a::b" of a mangled C++ function name without its arguments; other names stay as they are.
void plain_name(const char* mangled, std::span<char> text);

}  // namespace uhmm::soft
