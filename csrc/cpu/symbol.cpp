// The Gram matrices of a convolution's symbol, a lane of a vector for each frequency.
#include "checks.h"

namespace lipfuse::cpu {
namespace {

struct Symbol {
    int64_t batch, n, terms, frequencies;

    // even, odd: (batch, n, n, terms); cosines, sines: (terms, frequencies).
    Symbol(const Tensor& even, const Tensor& odd, const Tensor& cosines, const Tensor& sines) {
        STD_TORCH_CHECK(even.dim() == 4 && even.size(1) == even.size(2),
                        "lipfuse: even must be (batch, n, n, terms)");
        batch = even.size(0);
        n = even.size(1);
        terms = even.size(3);
        STD_TORCH_CHECK(cosines.dim() == 2 && cosines.size(0) == terms,
                        "lipfuse: cosines must be (terms, frequencies)");
        frequencies = cosines.size(1);
        check_numel(odd, even.numel(), "odd");
        check_numel(sines, cosines.numel(), "sines");
        for (const Tensor* t : {&odd, &cosines, &sines}) check_same_type(even, *t, "arguments");
        // The kernels take one lane of frequencies after the other, and whole triangles.
        STD_TORCH_CHECK(
            double(n) * double(n + 1) < 0x1p50 && double(batch) * double(frequencies) < 0x1p31,
            "lipfuse: the symbol's sizes are too large");
    }
};

// Calls f(matrix, first frequency, how many, cosines, sines, scratch) for every matrix and as many
// frequencies as there are lanes; `extra` vectors of scratch beside the triangle.
template <class T, class F>
void for_each_wave(const Symbol& s, const Tensor& cosines, const Tensor& sines, int64_t extra,
                   F f) {
    const int lanes = kernels<T>().lanes;
    const int64_t blocks = (s.frequencies + lanes - 1) / lanes;
    const double work =
        double(s.batch) * double(blocks) * double(s.n * s.n) * double(s.n + s.terms);
    in_team(work, [&](Parallel team) {
        team.for_each(static_cast<int>(s.batch * blocks), [&](int task) {
            Backend<T> backend;
            const auto mark = backend.mark();
            const int64_t first = task % blocks * lanes;
            const int64_t count = std::min<int64_t>(lanes, s.frequencies - first);
            T* c = backend.allocate(2 * s.terms * lanes);
            T* d = c + s.terms * lanes;
            for (int64_t t = 0; t < s.terms; ++t) {
                for (int l = 0; l < lanes; ++l) {
                    const int64_t at = t * s.frequencies + first + std::min<int64_t>(l, count - 1);
                    c[t * lanes + l] = data<T>(cosines)[at];
                    d[t * lanes + l] = data<T>(sines)[at];
                }
            }
            T* scratch = backend.allocate((s.n * (s.n + 1) + extra) * lanes);
            f(task / blocks, first, count, c, d, scratch);
            backend.release(mark);
        });
    });
}

// (frequencies, batch): the norm of S x after power iteration from `start`.
Tensor symbol_scores(const Tensor& even_in, const Tensor& odd_in, const Tensor& cosines_in,
                     const Tensor& sines_in, const Tensor& start_in, int64_t steps) {
    const Symbol s(even_in, odd_in, cosines_in, sines_in);
    check_like(even_in, start_in, s.n, "start");
    const int times = check_count(steps, "steps");
    const Tensor even = packed(even_in), odd = packed(odd_in), start = packed(start_in);
    const Tensor cosines = packed(cosines_in), sines = packed(sines_in);
    Tensor out = make(even, {s.frequencies, s.batch});
    if (out.numel() == 0) return out;
    by_dtype(even, [&](auto zero) {
        using T = decltype(zero);
        const int64_t area = s.n * s.n * s.terms;
        for_each_wave<T>(
            s, cosines, sines, 4 * s.n,
            [&](int64_t b, int64_t first, int64_t count, const T* c, const T* d, T* scratch) {
                T scores[64];
                kernels<T>().wave_scores(data<T>(even) + b * area, data<T>(odd) + b * area, s.n,
                                         s.terms, c, d, data<T>(start), times, scratch, scores);
                for (int64_t l = 0; l < count; ++l)
                    data<T>(out)[(first + l) * s.batch + b] = scores[l];
            });
    });
    return out;
}

// (frequencies, batch): 0 where no eigenvalue of S exceeds the threshold of its matrix, else 1.
Tensor symbol_exceeds(const Tensor& even_in, const Tensor& odd_in, const Tensor& cosines_in,
                      const Tensor& sines_in, const Tensor& thresholds_in) {
    const Symbol s(even_in, odd_in, cosines_in, sines_in);
    check_like(even_in, thresholds_in, s.batch, "thresholds");
    const Tensor even = packed(even_in), odd = packed(odd_in), thresholds = packed(thresholds_in);
    const Tensor cosines = packed(cosines_in), sines = packed(sines_in);
    Tensor out = make(even, {s.frequencies, s.batch}, aoti_torch_dtype_uint8());
    if (out.numel() == 0) return out;
    by_dtype(even, [&](auto zero) {
        using T = decltype(zero);
        const int64_t area = s.n * s.n * s.terms;
        for_each_wave<T>(
            s, cosines, sines, s.n,
            [&](int64_t b, int64_t first, int64_t count, const T* c, const T* d, T* scratch) {
                uint8_t flags[64];
                kernels<T>().wave_exceeds(data<T>(even) + b * area, data<T>(odd) + b * area, s.n,
                                          s.terms, c, d, data<T>(thresholds)[b], scratch, flags);
                for (int64_t l = 0; l < count; ++l)
                    data<uint8_t>(out)[(first + l) * s.batch + b] = flags[l];
            });
    });
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lipfuse, CPU, m) {
    m.impl("symbol_scores", TORCH_BOX(&symbol_scores));
    m.impl("symbol_exceeds", TORCH_BOX(&symbol_exceeds));
}

}  // namespace lipfuse::cpu
