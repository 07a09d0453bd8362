# Which files serve CUDA: the kernels, their emulation on the CPU, or a file without either.
# Sets LOGITLESS_CUDA_{SOURCES,DEFINITIONS,INCLUDE,SUMMARY} and LOGITLESS_NVCC_FLAGS.

file(GLOB _kernels CONFIGURE_DEPENDS csrc/cuda/rows*.cu)

# Sets _reason, and CMAKE_CUDA_COMPILER where there is one.
function(logitless_find_nvcc)
  set(_reason "LOGITLESS_CUDA=OFF" PARENT_SCOPE)
  if(LOGITLESS_CUDA STREQUAL "OFF")
    return()
  elseif(NOT LOGITLESS_CUDA MATCHES "^(AUTO|ON)$")
    message(FATAL_ERROR "LOGITLESS_CUDA must be AUTO, ON or OFF, got ${LOGITLESS_CUDA}")
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  set(_reason "no working CUDA compiler (nvcc) was found at build time" PARENT_SCOPE)
  if(NOT CMAKE_CUDA_COMPILER AND LOGITLESS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LOGITLESS_CUDA=ON, but no working CUDA compiler was found: put nvcc on PATH, set CUDACXX to it, or use LOGITLESS_CUDA=AUTO")
  endif()
endfunction()

if(LOGITLESS_SIMT)
  # tests/simt has files of the names that <cuda/...> asks for.
  file(GLOB _machine CONFIGURE_DEPENDS tests/simt/*.cpp)
  list(FILTER _machine EXCLUDE REGEX "/(module|selftest)\\.cpp$")
  set_source_files_properties(${_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas")
  set(LOGITLESS_CUDA_SOURCES ${_kernels} ${_machine})
  set(LOGITLESS_CUDA_INCLUDE tests/simt csrc)
  set(LOGITLESS_CUDA_DEFINITIONS LOGITLESS_SIMT)
  set(LOGITLESS_CUDA_SUMMARY "CUDA kernels emulated")
  return()
endif()

logitless_find_nvcc()
if(NOT CMAKE_CUDA_COMPILER OR LOGITLESS_CUDA STREQUAL "OFF")
  set(LOGITLESS_CUDA_SOURCES csrc/cuda/absent.cpp)
  set(LOGITLESS_CUDA_DEFINITIONS "LOGITLESS_CUDA_REASON=\"${_reason}\"")
  set(LOGITLESS_CUDA_SUMMARY "no CUDA: ${_reason}")
  return()
endif()

# Machine code for each architecture; the newest also as PTX, for devices to come.
string(REPLACE "," ";" _architectures "${LOGITLESS_CUDA_ARCHITECTURES}")
list(SORT _architectures COMPARE NATURAL)
list(JOIN _architectures "," _names)
list(POP_BACK _architectures _newest)
list(TRANSFORM _architectures APPEND "-real")
set(CMAKE_CUDA_ARCHITECTURES ${_architectures} ${_newest})
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
# Static: the module asks neither for CUDA's libraries nor for a driver until a kernel runs.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
set(LOGITLESS_CUDA_SOURCES ${_kernels} csrc/cuda/runtime.cu)
set(LOGITLESS_CUDA_INCLUDE csrc)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" _toolkit "${CMAKE_CUDA_COMPILER_VERSION}")
set(LOGITLESS_CUDA_DEFINITIONS "LOGITLESS_CUDA_ARCHITECTURES=\"${_names}\"" "LOGITLESS_CUDA_TOOLKIT=\"${_toolkit}\"")
set(LOGITLESS_CUDA_SUMMARY "CUDA ${_toolkit} for ${_names}")
