# Options, language and warnings, in one place for every target.
option(UHMM_CHECKS "Compile the checks of the second tier (UHMM_CHECK)" OFF)
option(UHMM_BUILD_SAMPLES "Build samples/" ${PROJECT_IS_TOP_LEVEL})
option(UHMM_BUILD_BENCH "Build bench/ (needs Google Benchmark)" ${PROJECT_IS_TOP_LEVEL})
option(UHMM_BUILD_TESTS "Build tests/ (needs GoogleTest)" ${PROJECT_IS_TOP_LEVEL})
set(UHMM_SANITIZE "" CACHE STRING "'address' (ASan and UBSan), 'thread' (TSan) or nothing")
set_property(CACHE UHMM_SANITIZE PROPERTY STRINGS "" address thread)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS ON) # gnu++20: designated initialisers and builtins as GCC and Clang have them
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)
endif()

if(UHMM_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(UHMM_SANITIZE STREQUAL "thread")
  # -Wno-tsan: GCC says that it does not model std::atomic_thread_fence.
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer $<$<CXX_COMPILER_ID:GNU>:-Wno-tsan>)
  add_link_options(-fsanitize=thread)
elseif(UHMM_SANITIZE)
  message(FATAL_ERROR "UHMM_SANITIZE is '${UHMM_SANITIZE}'; it may be empty, 'address' or 'thread'")
endif()

# What every target of this tree gets.
function(uhmm_target target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow
    $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor -Woverloaded-virtual>)
  target_compile_definitions(${target} PRIVATE _GNU_SOURCE $<$<BOOL:${UHMM_CHECKS}>:UHMM_CHECKS>)
endfunction()
