# choose_cuda_compiler(<reason>) sets CMAKE_CUDA_COMPILER and CMAKE_CUDA_ARCHITECTURES in the
# caller's scope, or <reason> to a clause that says why there is no compiler.
#
# Order: CMAKE_CUDA_COMPILER, $CUDACXX, the wheels of cuda-toolkit, nvcc on PATH, /usr/local/cuda.
# The first that compiles a kernel wins; one that was named explicitly is the only candidate.

include(CudaWheels)

set(default_cuda_architectures 80-real 86-real 89-real 90a-real 100-real 120)
set(minimum_cuda_version 12.8) # the first that knows compute capability 12.0

function(cuda_compiler_version compiler version)
  execute_process(COMMAND ${compiler} --version OUTPUT_VARIABLE text ERROR_QUIET)
  if(text MATCHES "release ([0-9]+\\.[0-9]+)")
    set(${version} ${CMAKE_MATCH_1} PARENT_SCOPE)
  else()
    set(${version} 0 PARENT_SCOPE)
  endif()
endfunction()

# Compiles and links a kernel. An incomplete or mixed set of wheels fails here: its headers are
# missing, or its ptxas rejects what its compiler emits.
function(cuda_compiler_works compiler works)
  set(dir ${CMAKE_CURRENT_BINARY_DIR}/cuda_check)
  file(WRITE ${dir}/check.cu "#include <cuda_bf16.h>
#include <cuda_fp16.h>
__global__ void check(__half2* x) { x[threadIdx.x] = __hmax2(x[threadIdx.x], x[0]); }
int run(__half2* x) { check<<<1, 32>>>(x); return cudaGetLastError(); }
")
  set(host_compiler)
  if(CMAKE_CUDA_HOST_COMPILER)
    set(host_compiler -ccbin ${CMAKE_CUDA_HOST_COMPILER})
  elseif(NOT "$ENV{CUDAHOSTCXX}" STREQUAL "")
    set(host_compiler -ccbin $ENV{CUDAHOSTCXX})
  endif()
  execute_process(
    COMMAND ${compiler} ${host_compiler} -shared -Xcompiler=-fPIC -std=c++17
            -gencode=arch=compute_90,code=sm_90 -o ${dir}/check.so ${dir}/check.cu
    RESULT_VARIABLE status OUTPUT_VARIABLE log ERROR_VARIABLE log)
  if(status EQUAL 0)
    set(${works} TRUE PARENT_SCOPE)
  else()
    message(STATUS "The CUDA compiler ${compiler} does not work here:\n${log}")
    set(${works} FALSE PARENT_SCOPE)
  endif()
endfunction()

function(choose_cuda_compiler reason)
  set(${reason} "" PARENT_SCOPE)
  if(NOT "$ENV{TRT_RESA_CUDA_ARCHS}" STREQUAL "")
    string(REGEX REPLACE "[ ,]+" ";" architectures "$ENV{TRT_RESA_CUDA_ARCHS}")
    set(oldest_version 12.0)
  elseif(CMAKE_CUDA_ARCHITECTURES)
    set(architectures ${CMAKE_CUDA_ARCHITECTURES})
    set(oldest_version 12.0)
  else()
    set(architectures ${default_cuda_architectures})
    set(oldest_version ${minimum_cuda_version})
  endif()

  set(candidates)
  if(CMAKE_CUDA_COMPILER)
    list(APPEND candidates ${CMAKE_CUDA_COMPILER})
  elseif(NOT "$ENV{CUDACXX}" STREQUAL "")
    list(APPEND candidates $ENV{CUDACXX})
  else()
    repair_cuda_wheels(${CMAKE_CURRENT_BINARY_DIR}/cuda wheel_compiler)
    find_program(nvcc_on_path nvcc NO_CACHE)
    foreach(candidate ${wheel_compiler} ${nvcc_on_path} /usr/local/cuda/bin/nvcc)
      if(EXISTS ${candidate})
        list(APPEND candidates ${candidate})
      endif()
    endforeach()
  endif()
  list(REMOVE_DUPLICATES candidates)
  if(NOT candidates)
    set(${reason} "no CUDA compiler was found (looked for the cuda-toolkit wheels, nvcc on PATH and \
/usr/local/cuda)" PARENT_SCOPE)
    return()
  endif()

  foreach(compiler ${candidates})
    cuda_compiler_version(${compiler} version)
    if(version VERSION_LESS oldest_version)
      message(STATUS "The CUDA compiler ${compiler} is version ${version}; the architectures "
                     "${architectures} need ${oldest_version} or newer")
      continue()
    endif()
    cuda_compiler_works(${compiler} works)
    if(works)
      message(STATUS "CUDA compiler ${compiler} (${version}) for ${architectures}")
      set(CMAKE_CUDA_COMPILER ${compiler} CACHE FILEPATH "CUDA compiler" FORCE)
      set(CMAKE_CUDA_ARCHITECTURES ${architectures} PARENT_SCOPE)
      return()
    endif()
  endforeach()
  list(JOIN candidates ", " tried)
  set(${reason} "no CUDA compiler of version ${oldest_version} or newer works (tried ${tried}; \
the build's log holds their messages)" PARENT_SCOPE)
endfunction()
