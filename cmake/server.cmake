# pyskip's server: upstream's tools/server from the patched tree with native/server, as one program that is linked with
# libllama and libmtmd. Included by CMakeLists.txt if PYSKIP_SERVER is set. Upstream's own CMake files are not used: they
# would make three libraries more, and ask git and the network on the way.

set(server_dir ${CMAKE_CURRENT_SOURCE_DIR}/native/server)
set(page_dir   ${CMAKE_CURRENT_SOURCE_DIR}/pyskip/server/page)

find_package(Threads REQUIRED)

# What upstream's program tells of its build.
set(LLAMA_BUILD_NUMBER 0)
set(LLAMA_BUILD_COMMIT "pyskip")
set(BUILD_COMPILER     "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
set(BUILD_TARGET       "${CMAKE_SYSTEM_NAME} ${CMAKE_SYSTEM_PROCESSOR}")
configure_file(${PYSKIP_TREE}/common/build-info.cpp.in ${CMAKE_CURRENT_BINARY_DIR}/server/build-info.cpp)

# The page, in the place of upstream's web UI and by its interface.
file(GLOB page CONFIGURE_DEPENDS ${page_dir}/*)
set(page_sources ${CMAKE_CURRENT_BINARY_DIR}/server/ui.cpp ${CMAKE_CURRENT_BINARY_DIR}/server/ui.h)
add_custom_command(
    OUTPUT  ${page_sources}
    COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/tools/embed_page.py ${page_dir} ${CMAKE_CURRENT_BINARY_DIR}/server
    DEPENDS ${page} tools/embed_page.py
    COMMENT "Embedding the server's page"
    VERBATIM)

file(GLOB common ${PYSKIP_TREE}/common/*.cpp ${PYSKIP_TREE}/common/jinja/*.cpp ${PYSKIP_TREE}/common/parsers/*.cpp)
file(GLOB server ${PYSKIP_TREE}/tools/server/*.cpp)
list(FILTER server EXCLUDE REGEX "/main\\.cpp$")
if(PYSKIP_REFERENCE) # upstream's own, to compare with
    set(own ${PYSKIP_TREE}/tools/server/main.cpp)
else()
    file(GLOB own CONFIGURE_DEPENDS ${server_dir}/*.cpp)
    foreach(name schema-check schema-limits schema-root pattern) # libllama hides its own
        list(APPEND own ${CMAKE_CURRENT_SOURCE_DIR}/native/src/${name}.cpp)
    endforeach()
endif()

set(httplib ${PYSKIP_TREE}/vendor/cpp-httplib/httplib.cpp)
add_executable(pyskip-server EXCLUDE_FROM_ALL ${own} ${server} ${common} ${httplib} ${page_sources}
               ${CMAKE_CURRENT_BINARY_DIR}/server/build-info.cpp)
target_compile_features(pyskip-server PRIVATE cxx_std_17)
target_include_directories(pyskip-server PRIVATE
    ${server_dir} native/src ${CMAKE_CURRENT_BINARY_DIR}/server ${PYSKIP_TREE} ${PYSKIP_TREE}/common
    ${PYSKIP_TREE}/tools/mtmd ${PYSKIP_TREE}/tools/server ${PYSKIP_TREE}/vendor)
target_compile_definitions(pyskip-server PRIVATE
    LLAMA_SUBPROCESS # several models: a process for each
    CPPHTTPLIB_LISTEN_BACKLOG=512 CPPHTTPLIB_REQUEST_URI_MAX_LENGTH=32768 CPPHTTPLIB_TCP_NODELAY=1
    CPPHTTPLIB_FORM_URL_ENCODED_PAYLOAD_MAX_LENGTH=1048576)
set_source_files_properties(${server} ${common} ${httplib} PROPERTIES COMPILE_OPTIONS "-w") # upstream's warnings
target_compile_options(pyskip-server PRIVATE -ffunction-sections -fdata-sections)
if(APPLE)
    target_link_options(pyskip-server PRIVATE -Wl,-dead_strip)
else()
    target_link_options(pyskip-server PRIVATE -Wl,--gc-sections)
endif()
if(WIN32)
    if(NOT PYSKIP_REFERENCE)
        enable_language(RC)
        target_sources(pyskip-server PRIVATE ${server_dir}/pyskip-server.rc)
    endif()
    target_link_libraries(pyskip-server PRIVATE ws2_32)
endif()
target_link_libraries(pyskip-server PRIVATE
    mtmd llama ggml vendor::hash vendor::sheredom vendor::nlohmann Threads::Threads)
set_target_properties(pyskip-server PROPERTIES INSTALL_RPATH "${PYSKIP_ORIGIN}" BUILD_WITH_INSTALL_RPATH ON)

if(PYSKIP_REFERENCE)
    set_target_properties(pyskip-server PROPERTIES OUTPUT_NAME llama-server)
    install(TARGETS pyskip-server RUNTIME DESTINATION lib)
    return()
endif()

# Beside the libraries that it is linked with: one place to be found, by $ORIGIN.
install(TARGETS pyskip-server RUNTIME DESTINATION pyskip/lib)
install(FILES ${PYSKIP_TREE}/vendor/cpp-httplib/LICENSE DESTINATION pyskip/lib RENAME LICENSE.cpp-httplib)
install(FILES ${PYSKIP_TREE}/licenses/LICENSE-jsonhpp DESTINATION pyskip/lib RENAME LICENSE.jsonhpp)
