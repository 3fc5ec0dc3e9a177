#include "system.h"

#include <cstdlib>

#if defined(_WIN32)
#    define WIN32_LEAN_AND_MEAN
#    include <windows.h>
#elif defined(__APPLE__)
#    include <mach-o/dyld.h>
#    include <unistd.h>
#else
#    include <unistd.h>
#endif

namespace fs = std::filesystem;

fs::path pyskip_program_path() {
    std::error_code ignored;
#if defined(_WIN32)
    std::wstring path(32768, L'\0'); // the longest
    path.resize(GetModuleFileNameW(nullptr, path.data(), (DWORD) path.size()));
    return path;
#elif defined(__APPLE__)
    uint32_t size = 0;
    _NSGetExecutablePath(nullptr, &size);
    std::string path(size, '\0');
    return _NSGetExecutablePath(path.data(), &size) == 0 ? fs::canonical(path.c_str(), ignored) : fs::path();
#else
    return fs::read_symlink("/proc/self/exe", ignored);
#endif
}

void pyskip_set_env(const char * name, const char * value) {
#if defined(_WIN32)
    _putenv_s(name, value ? value : "");
#else
    if (value) {
        setenv(name, value, 1);
    } else {
        unsetenv(name);
    }
#endif
}

int32_t pyskip_stderr() {
#if defined(_WIN32)
    return (int32_t) (intptr_t) GetStdHandle(STD_ERROR_HANDLE);
#else
    return STDERR_FILENO;
#endif
}

bool pyskip_is_retaken(int n_own, size_t n_args) {
#if defined(_WIN32)
    return (size_t) n_own == n_args;
#else
    (void) n_own;
    (void) n_args;
    return false;
#endif
}
