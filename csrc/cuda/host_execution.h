// A grid of threads on the host: every thread is a fiber, so that barriers, shuffles and blocks
// that wait for each other work as on the device, in an order the caller chooses. Built with
// AddressSanitizer it finds accesses outside of buffers, shared memory and scratch; built with
// ThreadSanitizer, to which every fiber is a thread and only barriers are synchronisation, it finds
// races. A barrier that not all threads reach is reported.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
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

#define LIPFUSE_UNROLL
#define LIPFUSE_SPLIT_PRODUCTS 1

// A switch from one stack to another. The C library's swapcontext() asks the kernel for the signal
// mask each time, which takes most of a run.
#if defined(__x86_64__)
extern "C" void lipfuse_switch_stack(void** from, void* to);
asm(R"(
.text
.type lipfuse_switch_stack, @function
lipfuse_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size lipfuse_switch_stack, . - lipfuse_switch_stack
)");
#endif

namespace lipfuse::cuda {
namespace host {

// Where a thread of control is to go on.
class Context {
public:
    // To begin with `entry` on a stack of its own.
    __attribute__((noinline)) void prepare(char* stack, size_t bytes, void (*entry)()) {
#if defined(__x86_64__)
        // As if it had been called: an odd multiple of 8 below the top, under six saved registers.
        void** top = reinterpret_cast<void**>(stack + bytes);
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(entry);
        for (int i = 0; i < 6; ++i) *--top = nullptr;
        at_ = top;
#else
        getcontext(&at_);
        at_.uc_stack.ss_sp = stack;
        at_.uc_stack.ss_size = bytes;
        at_.uc_link = nullptr;
        makecontext(&at_, entry, 0);
#endif
    }
    LIPFUSE_UNOBSERVED static void change(Context& from, Context& to) {
#if defined(__x86_64__)
        lipfuse_switch_stack(&from.at_, to.at_);
#else
        swapcontext(&from.at_, &to.at_);
#endif
    }

private:
#if defined(__x86_64__)
    void* at_ = nullptr;
#else
    ucontext_t at_;
#endif
};

// What a group of threads waits for. The two tags tell ThreadSanitizer which barrier orders what.
struct Barrier {
    int expected = 0, arrived = 0;
    unsigned generation = 0;
    char tags[2] = {};
};

struct Warp {
    Barrier barrier;
    double slots[2][32];
    uint32_t fragments[2][32][56];
};

struct Block {
    Barrier barrier;
    std::unique_ptr<Warp[]> warps;
    unsigned char* shared = nullptr;
};

struct Thread {
    Context context;
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
    static constexpr size_t stack_bytes = size_t(1) << 17;

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
        : blocks_(blocks), team_(size_t(blocks)), all_(size_t(blocks) * threads) {
        // Pages of stacks come to be when they are touched.
        stacks_ =
            static_cast<char*>(mmap(nullptr, all_.size() * stack_bytes, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (stacks_ == MAP_FAILED) {
            std::perror("host execution: no memory for stacks");
            std::abort();
        }
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
                t.stack = stacks_ + (size_t(b) * threads + i) * stack_bytes;
                t.context.prepare(t.stack, stack_bytes, enter);
#if defined(__SANITIZE_THREAD__)
                t.sanitizer = __tsan_create_fiber(0);
#endif
            }
        }
    }
    Grid(const Grid&) = delete;
    ~Grid() {
#if defined(__SANITIZE_THREAD__)
        for (Thread& t : all_) __tsan_destroy_fiber(t.sanitizer);
#endif
#if defined(__SANITIZE_ADDRESS__)
        for (Thread& t : all_) __asan_unpoison_memory_region(t.stack, stack_bytes);
#endif
        munmap(stacks_, all_.size() * stack_bytes);
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
        Context::change(scheduler_, t.context);
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
        Context::change(t.context, scheduler_);
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

    int blocks_;
    std::vector<Block> team_;
    std::vector<Thread> all_;
    char* stacks_ = nullptr;
    Thread* running_ = nullptr;
    Context scheduler_;
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
inline float shuffle_xor(float x, int mask) {
    return float(shuffle_xor(double(x), mask));
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

inline float as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline uint32_t as_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline uint16_t to_bf16(float x) {
    const uint32_t bits = as_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline uint32_t pack_bf16(float low, float high) {
    return uint32_t(to_bf16(low)) | uint32_t(to_bf16(high)) << 16;
}
inline float from_fp16(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u,
                   mantissa = bits & 0x3ffu;
    if (exponent == 31) return as_float(sign | 0x7f800000u | mantissa << 13);
    const float size =
        exponent ? as_float((exponent + 112) << 23 | mantissa << 13) : float(mantissa) * 0x1p-24f;
    return sign ? -size : size;
}
inline uint16_t to_fp16(float x) {
    const uint16_t sign = uint16_t(as_bits(x) >> 16 & 0x8000u);
    const float size = x < 0 ? -x : x;
    if (x != x) return 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;
    // Adding a power of two so large that only ten bits remain rounds to nearest even.
    uint32_t exponent = as_bits(size) >> 23;
    if (exponent < 113) exponent = 113;  // below the normal numbers the last bit does not move
    const float unit = as_float((exponent + 13) << 23);
    const float rounded = (size + unit) - unit;
    if (rounded < 0x1p-14f) return uint16_t(sign | uint16_t(rounded * 0x1p24f));
    return uint16_t(sign | uint16_t((as_bits(rounded) - (112u << 23)) >> 13));
}

// The device's product of fragments, in its layout; see execution.h.
template <int M, int P>
LIPFUSE_UNOBSERVED __attribute__((no_sanitize("address"))) inline void multiply_split(
    float (&sum)[M][4], const uint32_t (&a)[M][P][4], const uint32_t (&b)[P][2]) {
    host::Thread& t = host::self();
    host::Warp& warp = t.block->warps[t.index / 32];
    auto* slots = warp.fragments[warp.barrier.generation % 2];
    const int lane = t.index % 32;
    std::memcpy(slots[lane], a, sizeof a);
    std::memcpy(slots[lane] + 4 * P * M, b, sizeof b);
    host::Grid::current()->arrive(warp.barrier, false);
    // The rows of A and columns of B that this lane's results are made of.
    float x[M][2][P][16], y[2][P][16];
    for (int p = 0; p < P; ++p)
        for (int k = 0; k < 16; ++k) {
            const auto half = [k](uint32_t word) {
                return as_float(k % 2 ? word & 0xffff0000u : word << 16);
            };
            for (int h = 0; h < 2; ++h) {
                for (int m = 0; m < M; ++m)
                    x[m][h][p][k] =
                        half(slots[lane / 4 * 4 + k % 8 / 2][(m * P + p) * 4 + h + 2 * (k / 8)]);
                y[h][p][k] =
                    half(slots[(lane % 4 * 2 + h) * 4 + k % 8 / 2][4 * P * M + 2 * p + k / 8]);
            }
        }
    for (int m = 0; m < M; ++m)
        for (int r = 0; r < 4; ++r) {
            float part = 0;
            for (int order = P - 1; order >= 0; --order)
                for (int i = order; i >= 0; --i)
                    for (int k = 0; k < 16; ++k) part += x[m][r / 2][i][k] * y[r % 2][order - i][k];
            sum[m][r] += part;
        }
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
