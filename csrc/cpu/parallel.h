// How kernels ask for threads without knowing whose they are.
#pragma once

#include <cstdint>

namespace lipfuse::cpu {

struct Parallel {
    int threads = 1;
    // Runs body(context, i) for every i < tasks, in any order, on any threads; null: one by one.
    void (*run)(void* pool, int tasks, void (*body)(void*, int), void* context) = nullptr;
    void* pool = nullptr;

    template <class F>
    void for_each(int tasks, F&& f) const {
        if (tasks <= 1 || !run || threads <= 1) {
            for (int i = 0; i < tasks; ++i) f(i);
            return;
        }
        run(
            pool, tasks, [](void* context, int i) { (*static_cast<F*>(context))(i); },
            const_cast<void*>(static_cast<const void*>(&f)));
    }
};

}  // namespace lipfuse::cpu
