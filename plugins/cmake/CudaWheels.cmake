# repair_cuda_wheels(<dir> <compiler>) makes a toolkit that CMake and nvcc accept in <dir> out of
# the wheels of cuda-toolkit[nvcc,nvvm,crt,cudart,cccl], and sets <compiler> to its nvcc; to an empty
# string where the wheels are not installed.
#
# What the wheels' tree (nvidia/cu13) lacks:
# - nvcc links with -L<top>/lib64, and the tree has lib alone;
# - find_package(CUDAToolkit) looks for libcudart.so, and the tree has libcudart.so.13 alone;
# - the headers of 13.0 and 13.1 declare rsqrt without noexcept, glibc 2.42 and newer with it.
# nvcc finds its parts from the folder it was called in, so links to the wheels' files are enough;
# the headers are copied because one is changed.

function(repair_cuda_wheels dir compiler)
  set(${compiler} "" PARENT_SCOPE)
  if(Python_EXECUTABLE)
    set(python ${Python_EXECUTABLE})
  else()
    find_program(python NAMES python3 python NO_CACHE)
  endif()
  if(NOT python)
    return()
  endif()
  execute_process(
    COMMAND ${python} -c "
import importlib.util, pathlib
spec = importlib.util.find_spec('nvidia')
for root in spec.submodule_search_locations if spec else ():
    top = pathlib.Path(root) / 'cu13'
    parts = 'bin/nvcc', 'bin/crt', 'nvvm/bin/cicc', 'include/crt', 'include/cccl', 'lib/libcudart.so.13'
    if all((top / part).exists() for part in parts):
        print(top, end='')
        break
"
    OUTPUT_VARIABLE top ERROR_QUIET)
  if(NOT top)
    return()
  endif()

  file(REMOVE_RECURSE ${dir})
  foreach(part bin lib)
    file(MAKE_DIRECTORY ${dir}/${part})
    file(GLOB entries ${top}/${part}/*)
    foreach(entry ${entries})
      get_filename_component(name ${entry} NAME)
      file(CREATE_LINK ${entry} ${dir}/${part}/${name} SYMBOLIC)
    endforeach()
  endforeach()
  file(CREATE_LINK ${top}/nvvm ${dir}/nvvm SYMBOLIC)
  file(CREATE_LINK lib ${dir}/lib64 SYMBOLIC)
  file(CREATE_LINK libcudart.so.13 ${dir}/lib/libcudart.so SYMBOLIC)
  file(COPY ${top}/include DESTINATION ${dir})

  # noexcept on every declaration and definition: correct for every glibc, since an older one does
  # not declare rsqrt at all. Headers that already deal with it (13.2) have no such line.
  foreach(header math_functions.h math_functions.hpp)
    file(READ ${dir}/include/crt/${header} text)
    string(REGEX REPLACE "(__device_builtin__ +(double|float) +rsqrtf?\\((double|float) x\\));"
           "\\1 noexcept(true);" text "${text}")
    string(REGEX REPLACE "(__func__\\((double|float) rsqrtf?\\((const )?(double|float) a\\))\\)"
           "\\1 noexcept(true))" text "${text}")
    file(WRITE ${dir}/include/crt/${header} "${text}")
  endforeach()
  set(${compiler} ${dir}/bin/nvcc PARENT_SCOPE)
endfunction()
