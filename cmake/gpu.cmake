# GPU drivers are opened at run time; their headers are needed to build against, and may be absent.
set(UHMM_CUDA_INCLUDE_DIR "" CACHE PATH "Folder of cuda.h; empty: looked for")
set(UHMM_HIP_INCLUDE_DIR "" CACHE PATH "Folder of hip/hip_runtime_api.h; empty: looked for")

find_package(CUDAToolkit QUIET) # knows where toolkits usually are
find_path(uhmm_cuda_found cuda.h HINTS ${UHMM_CUDA_INCLUDE_DIR} ${CUDAToolkit_INCLUDE_DIRS} ENV CUDA_HOME ENV CUDA_PATH
  PATH_SUFFIXES include)
find_path(uhmm_hip_found hip/hip_runtime_api.h HINTS ${UHMM_HIP_INCLUDE_DIR} ENV ROCM_PATH PATHS /opt/rocm
  PATH_SUFFIXES include)
foreach(vendor cuda hip)
  string(TOUPPER ${vendor} upper)
  if(uhmm_${vendor}_found)
    set(UHMM_HAS_${upper} TRUE)
    message(STATUS "${upper} backend: with ${uhmm_${vendor}_found}")
  else()
    set(UHMM_HAS_${upper} FALSE)
    message(STATUS "${upper} backend: off, no header found")
  endif()
endforeach()

# What a target needs that is compiled against a driver's header.
function(uhmm_use_gpu_headers target)
  foreach(vendor CUDA HIP)
    string(TOLOWER ${vendor} lower)
    if(UHMM_HAS_${vendor})
      target_include_directories(${target} SYSTEM PRIVATE ${uhmm_${lower}_found})
      target_compile_definitions(${target} PRIVATE UHMM_HAS_${vendor})
    endif()
  endforeach()
endfunction()
