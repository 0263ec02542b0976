// A grid of threads on the host: every thread is a fiber, so that barriers, shuffles and blocks
// that wait for each other work as on the device, in an order the caller chooses. Built with
// AddressSanitizer it finds accesses outside of buffers, shared memory and scratch; built with
// ThreadSanitizer, to which every fiber is a thread and only barriers are synchronisation, it finds
// races. A barrier that not all threads reach is reported.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define LIPFUSE_UNOBSERVED __attribute__((no_sanitize("thread"), noinline))
#else
#define LIPFUSE_UNOBSERVED
#endif

#define LIPFUSE_NOINLINE __attribute__((noinline))
#define LIPFUSE_UNROLL

namespace lipfuse::cuda {
namespace host {

// What a group of threads waits for. The two tags tell ThreadSanitizer which barrier orders what.
struct Barrier {
    int expected = 0, arrived = 0;
    unsigned generation = 0;
    char tags[2] = {};
};

struct Warp {
    Barrier barrier;
    double slots[2][32];
};

struct Block {
    Barrier barrier;
    std::unique_ptr<Warp[]> warps;
    unsigned char* shared = nullptr;
};

struct Thread {
    ucontext_t context;
    char* stack = nullptr;
    void* sanitizer = nullptr;
    Block* block = nullptr;
    int block_index = 0, index = 0;
    bool finished = false;
    const unsigned* watched = nullptr;  // waits until this differs from, or reaches, `value`
    unsigned value = 0;
    bool reaches = false;
};

enum class Order { forward, backward, shuffled };

class Grid {
public:
    static constexpr size_t stack_bytes = size_t(1) << 18;

    static Grid*& current() {
        static Grid* grid = nullptr;
        return grid;
    }

    template <class Body>
    static void launch(int blocks, int threads, size_t shared_bytes, Order order, Body body) {
        Grid grid(blocks, threads, shared_bytes);
        grid.call_ = [](void* b) { (*static_cast<Body*>(b))(); };
        grid.body_ = &body;
        grid.run(order);
    }

    Thread& running() { return *running_; }
    int blocks() const { return blocks_; }

    // Gives way until the condition of the running thread holds.
    LIPFUSE_UNOBSERVED void wait(const unsigned* watched, unsigned value, bool reaches) {
        Thread& t = *running_;
        t.watched = watched;
        t.value = value;
        t.reaches = reaches;
        if (ready(t)) return;
        to_scheduler(t);
    }

    LIPFUSE_UNOBSERVED void arrive(Barrier& b, bool orders_memory) {
        const unsigned generation = b.generation;
        char* tag = &b.tags[generation % 2];
        (void)tag;
        (void)orders_memory;
#if defined(__SANITIZE_THREAD__)
        if (orders_memory) __tsan_release(tag);
#endif
        if (++b.arrived == b.expected) {
            b.arrived = 0;
            ++b.generation;
        } else {
            wait(&b.generation, generation, false);
        }
#if defined(__SANITIZE_THREAD__)
        if (orders_memory) __tsan_acquire(tag);
#endif
    }

private:
    Grid(int blocks, int threads, size_t shared_bytes)
        : blocks_(blocks),
          threads_(threads),
          team_(size_t(blocks)),
          all_(size_t(blocks) * threads) {
        for (int b = 0; b < blocks; ++b) {
            Block& block = team_[size_t(b)];
            block.barrier.expected = threads;
            const int warps = (threads + 31) / 32;
            block.warps.reset(new Warp[size_t(warps)]);
            for (int w = 0; w < warps; ++w)
                block.warps[w].barrier.expected = threads - 32 * w < 32 ? threads - 32 * w : 32;
            block.shared =
                static_cast<unsigned char*>(std::malloc(shared_bytes ? shared_bytes : 1));
            std::memset(block.shared, 0xff, shared_bytes);  // NaN: reading before writing shows
            for (int i = 0; i < threads; ++i) {
                Thread& t = all_[size_t(b) * threads + i];
                t.block = &block;
                t.block_index = b;
                t.index = i;
                prepare(t);
            }
        }
    }
    // Apart from the loops above: getcontext() may return twice, which locals do not survive.
    static __attribute__((noinline)) void prepare(Thread& t) {
        t.stack = static_cast<char*>(std::malloc(stack_bytes));
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = t.stack;
        t.context.uc_stack.ss_size = stack_bytes;
        t.context.uc_link = nullptr;
        makecontext(&t.context, enter, 0);
#if defined(__SANITIZE_THREAD__)
        t.sanitizer = __tsan_create_fiber(0);
#endif
    }
    ~Grid() {
        for (Thread& t : all_) {
#if defined(__SANITIZE_THREAD__)
            __tsan_destroy_fiber(t.sanitizer);
#endif
            std::free(t.stack);
        }
        for (Block& b : team_) std::free(b.shared);
    }

    LIPFUSE_UNOBSERVED static bool ready(const Thread& t) {
        if (!t.watched) return true;
        const unsigned now = *t.watched;
        return t.reaches ? static_cast<int>(now - t.value) >= 0 : now != t.value;
    }

    LIPFUSE_UNOBSERVED void run(Order order) {
        current() = this;
        std::vector<size_t> sequence(all_.size());
        for (size_t i = 0; i < sequence.size(); ++i)
            sequence[i] = order == Order::backward ? sequence.size() - 1 - i : i;
        uint32_t state = 12345;
        size_t left = all_.size();
#if defined(__SANITIZE_THREAD__)
        scheduler_fiber_ = __tsan_get_current_fiber();
        __tsan_release(&start_);
#endif
        while (left) {
            if (order == Order::shuffled)
                for (size_t i = sequence.size() - 1; i > 0; --i) {
                    state = state * 1664525u + 1013904223u;
                    std::swap(sequence[i], sequence[(state >> 8) % (i + 1)]);
                }
            bool progress = false;
            for (size_t i : sequence) {
                Thread& t = all_[i];
                if (t.finished || !ready(t)) continue;
                t.watched = nullptr;
                progress = true;
                switch_to(t);
                if (t.finished) --left;
            }
            if (!progress) {
                std::fprintf(stderr,
                             "host execution: %zu threads wait at a barrier others do not reach\n",
                             left);
                std::abort();
            }
        }
#if defined(__SANITIZE_THREAD__)
        __tsan_acquire(&end_);
#endif
        current() = nullptr;
    }

    LIPFUSE_UNOBSERVED void switch_to(Thread& t) {
        running_ = &t;
#if defined(__SANITIZE_THREAD__)
        __tsan_switch_to_fiber(t.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
        void* fake = nullptr;
        __sanitizer_start_switch_fiber(&fake, t.stack, stack_bytes);
#endif
        swapcontext(&scheduler_, &t.context);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    }

    LIPFUSE_UNOBSERVED void to_scheduler(Thread& t) {
#if defined(__SANITIZE_THREAD__)
        __tsan_switch_to_fiber(scheduler_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
        void* fake = nullptr;
        __sanitizer_start_switch_fiber(t.finished ? nullptr : &fake, main_stack_,
                                       main_stack_bytes_);
#endif
        swapcontext(&t.context, &scheduler_);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    }

    LIPFUSE_UNOBSERVED static void enter() {
        Grid& g = *current();
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(nullptr, &g.main_stack_, &g.main_stack_bytes_);
#endif
#if defined(__SANITIZE_THREAD__)
        __tsan_acquire(&g.start_);
#endif
        g.call_(g.body_);
        Thread& t = g.running();
        t.finished = true;
#if defined(__SANITIZE_THREAD__)
        __tsan_release(&g.end_);
#endif
        g.to_scheduler(t);
    }

    int blocks_, threads_;
    std::vector<Block> team_;
    std::vector<Thread> all_;
    Thread* running_ = nullptr;
    ucontext_t scheduler_;
    void (*call_)(void*) = nullptr;
    void* body_ = nullptr;
    char start_ = 0, end_ = 0;
#if defined(__SANITIZE_ADDRESS__)
    const void* main_stack_ = nullptr;
    size_t main_stack_bytes_ = 0;
#endif
#if defined(__SANITIZE_THREAD__)
    void* scheduler_fiber_ = nullptr;
#endif
};

inline Thread& self() {
    return Grid::current()->running();
}

}  // namespace host

LIPFUSE_UNOBSERVED inline int thread_index() {
    return host::self().index;
}
LIPFUSE_UNOBSERVED inline int block_index() {
    return host::self().block_index;
}
LIPFUSE_UNOBSERVED inline int grid_blocks() {
    return host::Grid::current()->blocks();
}
LIPFUSE_UNOBSERVED inline void sync_threads() {
    host::Grid::current()->arrive(host::self().block->barrier, true);
}
// Exchanges registers, and like the device's promises nothing about memory.
LIPFUSE_UNOBSERVED inline double shuffle_xor(double x, int mask) {
    host::Thread& t = host::self();
    host::Warp& warp = t.block->warps[t.index / 32];
    double* slots = warp.slots[warp.barrier.generation % 2];
    const int lane = t.index % 32;
    slots[lane] = x;
    host::Grid::current()->arrive(warp.barrier, false);
    return slots[lane ^ mask];
}
LIPFUSE_UNOBSERVED inline unsigned char* shared_memory() {
    return host::self().block->shared;
}
LIPFUSE_UNOBSERVED inline void arrive_and_wait(unsigned* counter, unsigned target) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(counter);
#endif
    ++*counter;
    host::Grid::current()->wait(counter, target, true);
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(counter);
#endif
}
inline void forbid([[maybe_unused]] void* at, [[maybe_unused]] int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    if (bytes > 0) __asan_poison_memory_region(at, size_t(bytes));
#endif
}
inline void permit([[maybe_unused]] void* at, [[maybe_unused]] int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    if (bytes > 0) __asan_unpoison_memory_region(at, size_t(bytes));
#endif
}
[[noreturn]] inline void fail() {
    std::fprintf(stderr, "host execution: a kernel gave up (scratch memory exhausted)\n");
    std::abort();
}

}  // namespace lipfuse::cuda
