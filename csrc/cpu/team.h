// Threads that stay together for a whole algorithm.
//
// A normalisation is some thirty short passes that wait for one another. Waking a pool for each
// costs microseconds; a team enters the pool once, one thread leads and the others wait for its
// passes by reading one atomic word, which costs a fraction of one. Nobody is waited for: whoever is
// there takes tasks, and a leader on its own does them all, so that it does not matter how many of
// the pool's threads come, or when. Which thread runs a task decides nothing about its result.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "parallel.h"

namespace lipfuse::cpu {

class Team {
public:
    explicit Team(int threads) : threads_(threads) {}
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    // What the leader's algorithm is given.
    Parallel parallel() { return {threads_, &Team::run, this}; }

    // The other threads: take part in passes until the leader has finished.
    void help() {
        Patience patience;
        while (!finished_.load(std::memory_order_acquire)) {
            if (take_one())
                patience = {};
            else
                patience.wait();
        }
    }

    void finish() { finished_.store(true, std::memory_order_release); }

private:
    using Body = void (*)(void*, int);

    // Waits politely: for a while by spinning, since a pass lasts microseconds, then by letting
    // others run, since there may be more threads than processors.
    struct Patience {
        int spins = 0;
        void wait() {
            if (++spins < 4000) {
#if defined(__x86_64__) || defined(__i386__)
                __builtin_ia32_pause();
#elif defined(__aarch64__)
                asm volatile("yield");
#endif
            } else {
                std::this_thread::yield();
            }
        }
    };

    static void run(void* pool, int tasks, Body body, void* context) {
        static_cast<Team*>(pool)->pass(tasks, body, context);
    }

    // state_: number of the pass, its tasks, and the next one to take, in 24, 20 and 20 bits.
    static constexpr uint64_t most_tasks = (uint64_t(1) << 20) - 1;
    static uint64_t next_of(uint64_t state) { return state & most_tasks; }
    static uint64_t tasks_of(uint64_t state) { return (state >> 20) & most_tasks; }

    bool take_one() {
        const uint64_t seen = state_.load(std::memory_order_acquire);
        if (next_of(seen) >= tasks_of(seen)) return false;
        // Whatever pass this hits: its body stays in place until all its tasks are done, this one
        // among them.
        const uint64_t taken = state_.fetch_add(1, std::memory_order_acq_rel);
        if (next_of(taken) >= tasks_of(taken)) return false;
        try {
            body_(context_, static_cast<int>(next_of(taken)));
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex_);
            error_ = std::current_exception();
        }
        pending_.fetch_sub(1, std::memory_order_acq_rel);
        return true;
    }

    void pass(int tasks, Body body, void* context) {
        body_ = body;
        context_ = context;
        pending_.store(tasks, std::memory_order_relaxed);
        state_.store((++passes_ << 40) | (uint64_t(tasks) << 20), std::memory_order_release);
        while (take_one()) {
        }
        Patience patience;
        while (pending_.load(std::memory_order_acquire) != 0) patience.wait();
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }

    const int threads_;
    uint64_t passes_ = 0;
    Body body_ = nullptr;
    void* context_ = nullptr;
    alignas(64) std::atomic<uint64_t> state_{0};
    alignas(64) std::atomic<int> pending_{0};
    std::atomic<bool> finished_{false};
    std::mutex mutex_;
    std::exception_ptr error_;
};

}  // namespace lipfuse::cpu
