#include "deep-stack.h"

#include <exception>

#include <pthread.h>

namespace {

struct deep_task {
    const std::function<void()> & run;
    std::exception_ptr            thrown;
};

thread_local bool is_deep = false;

void * deep_run(void * data) {
    is_deep          = true;
    deep_task & todo = *(deep_task *) data;
    try {
        todo.run();
    } catch (...) {
        todo.thrown = std::current_exception();
    }
    return nullptr;
}

} // namespace

bool pyskip_on_deep_stack(size_t n_bytes, const std::function<void()> & run) {
    static constexpr size_t LEAST = 16u << 20; // what surrounds the recursion

    deep_task      todo = { run, nullptr };
    pthread_t      thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    const bool is_started = pthread_attr_setstacksize(&attributes, (n_bytes + LEAST) & ~(size_t) 0xffff) == 0 &&
                            pthread_create(&thread, &attributes, deep_run, &todo) == 0;
    pthread_attr_destroy(&attributes);
    if (!is_started) {
        return false;
    }
    pthread_join(thread, nullptr);
    if (todo.thrown) {
        std::rethrow_exception(todo.thrown);
    }
    return true;
}

bool pyskip_is_on_deep_stack() {
    return is_deep;
}
