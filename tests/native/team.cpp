// Teams of threads (csrc/cpu/team.h) on the real algorithms, without torch: for ThreadSanitizer, by
// tests/native/sanitize.sh. Results must not depend on who takes part, or when; exits with 1 if one does.
#include "cpu/team.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "algorithms/bjorck.h"
#include "algorithms/polar_gradient.h"
#include "algorithms/power_iteration.h"
#include "cpu/backend.h"

using namespace lipfuse;
using cpu::Backend;
using cpu::Team;

namespace {

void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "team: %s\n", what);
    std::exit(1);
}

// Calls lead(parallel) with helpers at its side, some of which come late and some too late.
template <class F>
void with_helpers(int threads, int helpers, F lead) {
    Team team(threads);
    std::vector<std::thread> others;
    for (int i = 0; i < helpers; ++i)
        others.emplace_back([&team, i] {
            for (int k = 0; k < 300 * i; ++k) std::this_thread::yield();
            team.help();
        });
    lead(team.parallel());
    team.finish();
    for (auto& t : others) t.join();
}

template <class T>
std::vector<T> drawn(int64_t count, uint32_t seed) {
    std::vector<T> x(static_cast<size_t>(count));
    for (T& value : x) {
        seed = seed * 1664525u + 1013904223u;
        value = T(seed) / T(4294967296.0) - T(0.5);
    }
    return x;
}

// Everything that the engine makes of a matrix, one after the other.
template <class T>
std::vector<T> computed(cpu::Parallel parallel, const std::vector<T>& w, int64_t rows,
                        int64_t cols) {
    const int64_t area = rows * cols, small = std::min(rows, cols);
    std::vector<T> out(static_cast<size_t>(3 * area + 2 * small * small + rows + cols));
    T* q = out.data();
    T* gradient = q + area;
    T* iterated = gradient + area;
    T* root = iterated + area;
    T* factor = root + small * small;
    T* u = factor + small * small;
    T* v = u + rows;
    Backend<T> backend(parallel);
    const PolarInfo info = polar(backend, w.data(), rows, cols, 1e-4, 1.0, q, root, factor);
    polar_backward(backend, w.data(), w.data(), q, root, rows, cols, 1.0, info.low, info.high, 2e-3,
                   false, gradient, static_cast<const T*>(factor));
    std::fill(v, v + cols, T(1));
    power_iteration(backend, Backend<T>::view(w.data(), rows, cols), u, v, 5, 1e-12);
    double shrink;
    bjorck(backend, w.data(), rows, cols, 0.5, 4, 1e-6, 1.0, true, iterated,
           static_cast<T*>(nullptr), &shrink);
    return out;
}

template <class T>
void same_bits_whoever_helps(int64_t rows, int64_t cols) {
    const std::vector<T> w = drawn<T>(rows * cols, uint32_t(rows + cols));
    std::vector<T> expected;
    with_helpers(4, 0, [&](cpu::Parallel p) { expected = computed(p, w, rows, cols); });
    for (int i = 0; i < 6; ++i)
        with_helpers(4, 1 + i % 4, [&](cpu::Parallel p) {
            const std::vector<T> found = computed(p, w, rows, cols);
            require(!std::memcmp(found.data(), expected.data(), found.size() * sizeof(T)),
                    "the result depends on who helps");
        });
}

void every_task_runs_once() {
    std::vector<int> runs(64);
    with_helpers(4, 3, [&](cpu::Parallel p) {
        for (int pass = 0; pass < 5000; ++pass) {
            const int tasks = 2 + pass % 63;
            p.for_each(tasks, [&](int i) { ++runs[size_t(i)]; });
            for (int i = 0; i < tasks; ++i)
                require(std::exchange(runs[size_t(i)], 0) == 1, "a task");
        }
    });
}

void exceptions_reach_the_leader() {
    with_helpers(4, 3, [&](cpu::Parallel p) {
        for (int pass = 0; pass < 200; ++pass) {
            bool caught = false;
            try {
                p.for_each(20, [&](int i) {
                    if (i == pass % 20) throw std::runtime_error("here");
                });
            } catch (const std::runtime_error&) {
                caught = true;
            }
            require(caught, "an exception was lost");
        }
    });
}

}  // namespace

int main() {
    every_task_runs_once();
    exceptions_reach_the_leader();
    same_bits_whoever_helps<float>(96, 96);
    same_bits_whoever_helps<float>(130, 57);
    same_bits_whoever_helps<double>(40, 150);
    same_bits_whoever_helps<float>(180, 190);  // shared as lower halves
    // Teams beside one another, as of several callers.
    std::vector<std::thread> callers;
    for (int64_t i = 0; i < 3; ++i)
        callers.emplace_back([i] { same_bits_whoever_helps<float>(64 + i, 80); });
    for (auto& t : callers) t.join();
    std::puts("team: no finding");
}
