# Toolchain file: zig (the Python package ziglang) for macOS 11 on ARM, for `make macos-check`. It brings Apple's libc, and no
# frameworks, which pyskip does without.

set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_VERSION 20.0)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_OSX_DEPLOYMENT_TARGET "" CACHE STRING "" FORCE) # it is part of the target

# CMake wants programs, not commands of a program.
foreach(tool cc c++ ar ranlib)
    set(script ${CMAKE_CURRENT_BINARY_DIR}/zig-${tool})
    set(target)
    if(tool MATCHES "^c")
        set(target "-target aarch64-macos.11.0")
    endif()
    if(NOT EXISTS ${script})
        file(WRITE ${script} "#!/bin/sh\nexec python -m ziglang ${tool} ${target} \"$@\"\n")
        file(CHMOD ${script} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
    endif()
endforeach()
set(CMAKE_C_COMPILER ${CMAKE_CURRENT_BINARY_DIR}/zig-cc)
set(CMAKE_CXX_COMPILER ${CMAKE_CURRENT_BINARY_DIR}/zig-c++)
set(CMAKE_AR ${CMAKE_CURRENT_BINARY_DIR}/zig-ar)
set(CMAKE_RANLIB ${CMAKE_CURRENT_BINARY_DIR}/zig-ranlib)
set(CMAKE_INSTALL_NAME_TOOL llvm-install-name-tool)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
