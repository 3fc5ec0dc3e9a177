# For the toolchain files beside it: clang, its linker and the C libraries of many systems, out of the package ziglang.
# PYSKIP_ZIG_TARGET is zig's name of the system.

file(GLOB pyskip_ziglang ${CMAKE_CURRENT_LIST_DIR}/../.venv/lib/python*/site-packages/ziglang)
find_program(PYSKIP_ZIG zig PATHS ${pyskip_ziglang} REQUIRED)
set(CMAKE_C_COMPILER ${PYSKIP_ZIG} cc -target ${PYSKIP_ZIG_TARGET})
set(CMAKE_CXX_COMPILER ${PYSKIP_ZIG} c++ -target ${PYSKIP_ZIG_TARGET})
set(CMAKE_ASM_COMPILER ${PYSKIP_ZIG} cc -target ${PYSKIP_ZIG_TARGET})
foreach(tool AR RANLIB INSTALL_NAME_TOOL)
    string(TOLOWER llvm-${tool} name)
    string(REPLACE _ - name ${name})
    find_program(CMAKE_${tool} NAMES ${name} ${name}-14 REQUIRED)
endforeach()
set(CCACHE "" CACHE STRING "It would take `cc` for a file; zig has a cache of its own")
set(GGML_OPENMP OFF CACHE BOOL "" FORCE) # of which zig has no library; ggml has threads of its own
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE NEVER)
