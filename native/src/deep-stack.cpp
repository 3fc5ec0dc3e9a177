#include "deep-stack.h"

#include <exception>

#if defined(_WIN32)
#    define WIN32_LEAN_AND_MEAN
#    include <process.h>
#    include <windows.h>
#else
#    include <pthread.h>
#endif

namespace {

struct deep_task {
    const std::function<void()> & run;
    std::exception_ptr            thrown;
};

thread_local bool is_deep = false;

void deep_run(deep_task & todo) {
    is_deep = true;
    try {
        todo.run();
    } catch (...) {
        todo.thrown = std::current_exception();
    }
}

// Runs it in a thread of that stack, to its end. False if there can be none.
#if defined(_WIN32)

unsigned __stdcall thread_main(void * data) {
    deep_run(*(deep_task *) data);
    return 0;
}

bool run_in_thread(size_t n_bytes, deep_task & todo) {
    const bool      fits   = n_bytes <= 0xffff0000u;
    const uintptr_t thread = fits ? _beginthreadex(nullptr, (unsigned) n_bytes, thread_main, &todo,
                                                   STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr)
                                  : 0;
    if (thread == 0) {
        return false;
    }
    WaitForSingleObject((HANDLE) thread, INFINITE);
    CloseHandle((HANDLE) thread);
    return true;
}

#else

void * thread_main(void * data) {
    deep_run(*(deep_task *) data);
    return nullptr;
}

bool run_in_thread(size_t n_bytes, deep_task & todo) {
    pthread_t      thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    const bool is_started = pthread_attr_setstacksize(&attributes, n_bytes) == 0 &&
                            pthread_create(&thread, &attributes, thread_main, &todo) == 0;
    pthread_attr_destroy(&attributes);
    if (is_started) {
        pthread_join(thread, nullptr);
    }
    return is_started;
}

#endif

} // namespace

bool pyskip_on_deep_stack(size_t n_bytes, const std::function<void()> & run) {
    static constexpr size_t LEAST = 16u << 20; // what surrounds the recursion

    deep_task todo = { run, nullptr };
    if (!run_in_thread((n_bytes + LEAST) & ~(size_t) 0xffff, todo)) {
        return false;
    }
    if (todo.thrown) {
        std::rethrow_exception(todo.thrown);
    }
    return true;
}

bool pyskip_is_on_deep_stack() {
    return is_deep;
}
