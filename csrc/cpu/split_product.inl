// Products of float32 matrices on the tile unit of the processor (Intel AMX), which multiplies bf16 and
// sums in float32.
//
// A float32 is exactly the sum of three bf16, x = h + m + l, each of the next eight bits. Of the nine
// products of two such sums, six are carried out: what the other three would add, some 2^-25 of the
// product and never more than 2^-23, is lost in the rounding of float32 sums, so that the result is as
// good as that of float32 arithmetic. The smallest are added first.
//
// The unit takes denormal numbers for zero: digits are lost of numbers below 2^-110 and of products below
// 2^-105. An infinite number, or one within 2^-9 of the largest finite one, makes a row or column NaN.
//
// Panels are 32 rows of A or columns of B. Inner dimensions go by 32, zero-padded: for each 32, the
// parts in order, each as two tiles of 16 rows (or columns) by 32 elements. A row of a tile of A holds
// the pairs (k, k + 16) side by side, and a row of a tile of B such a pair of all of its columns: one is
// the transpose of the other, seen as pairs.

using Part = uint16_t;
constexpr int split_parts = 3, split_side = 16, split_panel = 32, split_depth = 32,
              split_tile = 512;

// Writes rows of tiles: of as many parts each pair (x, y).
static inline __attribute__((always_inline)) void split_pairs(__m512 x, __m512 y, Part* out) {
    const __m512i round = _mm512_set1_epi32(0x8000), top = _mm512_set1_epi32(int(0xffff0000));
#pragma GCC unroll 3
    for (int part = 0; part < split_parts; ++part) {
        __m512i high = _mm512_castps_si512(x), next = _mm512_castps_si512(y);
        // The first is rounded, so that what is left has either sign. Of that the next two are plain
        // pieces, for the last of which there are bits enough.
        if (part == 0) {
            high = _mm512_add_epi32(high, round);
            next = _mm512_add_epi32(next, round);
        }
        _mm512_storeu_si512(
            out + part * 2 * split_tile,
            _mm512_mask_blend_epi16(0xaaaaaaaau, (__m512i)((__v16su)high >> 16), next));
        if (part + 1 == split_parts) break;
        x = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(high, top)));
        y = _mm512_sub_ps(y, _mm512_castsi512_ps(_mm512_and_si512(next, top)));
    }
}

static inline __mmask16 split_mask(int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : __mmask16((1u << count) - 1);
}

// A tile of A becomes one of B and the other way round.
static inline void turn_tile(Part* at) {
    float* tile = reinterpret_cast<float*>(at);
    Vec<float> r[16];
#pragma GCC unroll 16
    for (int l = 0; l < 16; ++l) r[l] = load(tile + l * 16);
    transpose<float>(r);
#pragma GCC unroll 16
    for (int l = 0; l < 16; ++l) store(tile + l * 16, r[l]);
}

// The splitting of a panel, in steps of about a hundred instructions. Seen as `count_` vectors of `depth_`
// elements: rows of A or columns of B. 32 of each at a time:
//   - where vectors are contiguous rows of tiles of A are found in memory, 32 elements of a vector;
//   - where their elements stand side by side rows of tiles of B are, two elements of 16 vectors;
//   - tiles that are not the wanted ones are turned afterwards.
class PanelSplit {
public:
    PanelSplit() = default;
    // Of the inner dimensions of all terms, counted in 32s, `most` from `from` on.
    PanelSplit(const Product<float>& p, bool as_b, int64_t panel, int64_t from, int64_t most,
               Part* out)
        : product_(&p), as_b_(as_b), vector_(panel * split_panel), out_(out), left_(most) {
        const int64_t first = blocks_of(p.terms[0].a.cols);
        term_ = from >= first;
        begin_term((from - (term_ ? first : 0)) * split_depth);
    }
    explicit operator bool() const { return left_ > 0; }  // something is left to do

    // How many there are in `most` 32s, if all terms are alike.
    static int64_t steps(const Product<float>& p, bool as_b, int64_t most) {
        const View<const float>& x = as_b ? p.terms[0].b : p.terms[0].a;
        const bool along = (as_b ? x.row_stride : x.col_stride) == 1;
        return most * (row_steps + (along == as_b ? split_parts * 2 : 0));
    }
    __attribute__((noinline)) void step() {
        if (step_ >= row_steps) {
            turn_tile(out_ + (step_ - row_steps) * split_tile);
        } else if (strided_) {
            split_strided();
            step_ = row_steps - 1;
        } else {
            Part* const to =
                out_ + step_ / (row_steps / 2) * split_tile + step_ % (row_steps / 2) * rows * 32;
            if (whole_) {
#pragma GCC unroll 4
                for (int r = 0; r < rows; ++r)
                    split_pairs(_mm512_loadu_ps(in_ + r * between_),
                                _mm512_loadu_ps(in_ + r * between_ + second_), to + r * 32);
                in_ += rows * between_;
            } else {
                split_masked(to);
            }
            if (!along_ && step_ == row_steps / 2 - 1) in_ = start_ + split_side;
        }
        if (++step_ == last_step_) next_block();
    }
    void complete() {
        while (left_ > 0) step();
    }

private:
    static constexpr int64_t rows = 4, row_steps = split_panel / rows;

    void begin_term(int64_t k) {
        const auto& term = product_->terms[term_];
        const View<const float>& x = as_b_ ? term.b : term.a;
        data_ = x.data;
        count_ = as_b_ ? x.cols : x.rows;
        depth_ = as_b_ ? x.rows : x.cols;
        vector_stride_ = as_b_ ? x.col_stride : x.row_stride;
        stride_ = as_b_ ? x.row_stride : x.col_stride;
        along_ = stride_ == 1;
        strided_ = !along_ && vector_stride_ != 1;
        between_ = along_ ? vector_stride_ : stride_;
        second_ = 16 * stride_;
        last_step_ = row_steps + (!strided_ && along_ == as_b_ ? split_parts * 2 : 0);
        k_ = k;
        begin_block();
    }
    void begin_block() {
        in_ = start_ = data_ + vector_ * vector_stride_ + k_ * stride_;
        whole_ = vector_ + split_panel <= count_ && k_ + split_depth <= depth_;
        step_ = 0;
    }
    void next_block() {
        out_ += split_parts * 2 * split_tile;
        if (--left_ == 0) return;
        if ((k_ += split_depth) < depth_) {
            begin_block();
        } else {
            ++term_;
            begin_term(0);
        }
    }
    // Of the 32 x 32 elements only some are there.
    void split_masked(Part* to) {
        const int64_t vectors = count_ - vector_, depth = depth_ - k_;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t row = step_ * rows + r, half = row / split_side * split_side,
                          k = row - half;
            const float* in = start_ + (along_ ? row * between_ : half + k * between_);
            __mmask16 first, second;
            if (along_) {
                first = row < vectors ? split_mask(depth) : 0;
                second = row < vectors ? split_mask(depth - 16) : 0;
            } else {
                first = k < depth ? split_mask(vectors - half) : 0;
                second = k + 16 < depth ? split_mask(vectors - half) : 0;
            }
            split_pairs(_mm512_maskz_loadu_ps(first, in),
                        _mm512_maskz_loadu_ps(second, in + second_), to + r * 32);
        }
    }
    // Vectors that are contiguous in neither direction.
    void split_strided() {
        float block[split_panel * split_depth] = {};
        for (int64_t i = 0; i < least(split_panel, count_ - vector_); ++i)
            for (int64_t l = 0; l < least(split_depth, depth_ - k_); ++l)
                block[i * split_depth + l] = start_[i * vector_stride_ + l * stride_];
        for (int64_t row = 0; row < split_panel; ++row)
            split_pairs(_mm512_loadu_ps(block + row * split_depth),
                        _mm512_loadu_ps(block + row * split_depth + 16), out_ + row * 32);
        for (int tile = 0; as_b_ && tile < split_parts * 2; ++tile)
            turn_tile(out_ + tile * split_tile);
    }

    const Product<float>* product_ = nullptr;
    bool as_b_ = false;
    int64_t vector_ = 0;  // the panel's first
    Part* out_ = nullptr;
    int64_t left_ = 0;  // of 32 elements of each
    // the operand
    int term_ = 0;
    const float* data_ = nullptr;
    int64_t count_ = 0, depth_ = 0;
    int64_t vector_stride_ = 0, stride_ = 0;  // of a vector's start, of its elements
    bool along_ = false, strided_ = false;
    int64_t between_ = 0, second_ = 0, last_step_ = 0;  // apart: rows, the two of a pair
    // the 32 x 32 elements from k_ on
    int64_t k_ = 0, step_ = 0;
    bool whole_ = false;
    const float* start_ = nullptr;
    const float* in_ = nullptr;  // the next row of a tile
};

// Takes a block to memory, and its mirror image to its place, in such steps.
class BlockFinish {
public:
    BlockFinish() = default;
    BlockFinish(const Product<float>& p, const Place& at, const float* sums)
        : product_(&p), at_(at), sums_(sums), last_step_(row_steps) {
        if (p.mirror != Mirror::none) last_step_ += 4;
    }
    explicit operator bool() const { return product_; }  // something is left to do
    static int64_t steps(const Product<float>& p) {
        return p.mirror == Mirror::none ? row_steps : row_steps + 4;
    }
    __attribute__((noinline)) void step() {
        if (step_ < row_steps) {
            const Epilogue<float>& e = product_->epilogue;
            const bool whole = at_.rows == split_panel && at_.cols == split_panel;
            if (!whole)
                take_rows<3, false>();
            else if (e.x[2])
                take_rows<3, true>();
            else if (e.x[1])
                take_rows<2, true>();
            else if (e.x[0])
                take_rows<1, true>();
            else
                take_rows<0, true>();
        } else if (product_->mirror == Mirror::symmetric) {
            reflect<false>(step_ - row_steps);
        } else {
            reflect<true>(step_ - row_steps);
        }
        if (++step_ == last_step_) product_ = nullptr;
    }
    void complete() {
        while (product_) step();
    }

private:
    static constexpr int64_t rows = 4, row_steps = split_panel / rows;

    template <int X, bool Whole>
    inline __attribute__((always_inline)) void take_rows() const {
        const Epilogue<float>& e = product_->epilogue;
        const int64_t first = step_ * rows, corner = (at_.i + first) * e.stride + at_.j;
        const float* const sums = sums_ + first * split_panel;
        const int64_t there = Whole ? rows : least(rows, at_.rows - first);
        for (int o = e.outputs - 1; o >= 0; --o) {  // out[0] may be an X: it comes last
            float* const out = e.out[o];
            const __m512 f = _mm512_set1_ps(e.acc[o]), f0 = _mm512_set1_ps(e.x0[o]),
                         f1 = _mm512_set1_ps(e.x1[o]), f2 = _mm512_set1_ps(e.x2[o]);
            for (int64_t r = 0; r < there; ++r)
#pragma GCC unroll 2
                for (int64_t c = 0; c < split_panel; c += 16) {
                    const int64_t k = corner + r * e.stride + c;
                    const __mmask16 mask = Whole ? 0xffff : split_mask(at_.cols - c);
                    __m512 y = f * _mm512_load_ps(sums + r * split_panel + c);
                    if (X > 0 && (Whole || e.x[0]))
                        y += f0 * _mm512_maskz_loadu_ps(mask, e.x[0] + k);
                    if (X > 1 && (Whole || e.x[1]))
                        y += f1 * _mm512_maskz_loadu_ps(mask, e.x[1] + k);
                    if (X > 2 && (Whole || e.x[2]))
                        y += f2 * _mm512_maskz_loadu_ps(mask, e.x[2] + k);
                    _mm512_mask_storeu_ps(out + k, mask, y);
                }
            if (at_.i == at_.j && e.diagonal[o] != 0)
                for (int64_t r = 0; r < least(there, at_.cols - first); ++r)
                    out[corner + r * e.stride + first + r] += e.diagonal[o];
        }
    }
    // A quarter of the block.
    template <bool Skew>
    void reflect(int64_t quarter) const {
        const Epilogue<float>& e = product_->epilogue;
        const int64_t r = quarter / 2 * split_side, c = quarter % 2 * split_side,
                      height = least(split_side, at_.rows - r),
                      width = least(split_side, at_.cols - c);
        if (height <= 0 || width <= 0 || at_.i + r < at_.j + c) return;
        for (int o = 0; o < e.outputs; ++o) {
            const float* from = e.out[o] + (at_.i + r) * e.stride + at_.j + c;
            float* to = e.out[o] + (at_.j + c) * e.stride + at_.i + r;
            if (from == to)
                mirror_rows<float, Skew>(to, height, e.stride, 0, height);
            else
                transpose_block<float, Skew>(from, e.stride, to, e.stride, height, width);
        }
    }

    const Product<float>* product_ = nullptr;  // null: nothing is left to do
    Place at_{};
    const float* sums_ = nullptr;
    int64_t step_ = 0, last_step_ = 0;
};

// What the vector units do while tiles are multiplied: the last block is finished, and the panels are
// split that are needed next. The processor looks some 500 instructions ahead: it is after every four
// products of tiles that a share of this has to come for the tile unit not to wait.
struct Beside {
    BlockFinish finish;
    PanelSplit a, b;

    __attribute__((noinline)) void run(int64_t steps) {
        for (; steps > 0; --steps) {
            if (finish)
                finish.step();
            else if (a)
                a.step();
            else if (b)
                b.step();
        }
    }
};

// What the tile unit is told: eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Registers 0 to 3 are the block, 4 and 5 the rows of A, 6 and 7 the columns of B.
static inline __attribute__((always_inline)) void load_rows(const Part* a, int part) {
    _tile_loadd(4, a + part * 2 * split_tile, 64);
    _tile_loadd(5, a + (part * 2 + 1) * split_tile, 64);
}
static inline __attribute__((always_inline)) void load_cols(const Part* b, int part) {
    _tile_loadd(6, b + part * 2 * split_tile, 64);
    _tile_loadd(7, b + (part * 2 + 1) * split_tile, 64);
}
static inline __attribute__((always_inline)) void multiply_tiles() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

// One block of 32 x 32 from a panel of A and one of B, of `depth` times 32 terms, added to `before` if
// there is that, and `steps` of what is done beside it.
static inline void split_block(const Part* a, const Part* b, int64_t depth, Beside& beside,
                               int64_t steps, const float* before, float* sums) {
    constexpr int64_t step = split_parts * 2 * split_tile;
    const int64_t rate = (steps << 16) / (depth * 6);
    int64_t due = 0;
    const auto multiply = [&]() __attribute__((always_inline)) {
        multiply_tiles();
        due += rate;
        if (due >= 65536) {
            beside.run(due >> 16);
            due &= 65535;
        }
    };
    if (before) {
        _tile_loadd(0, before, 128);
        _tile_loadd(1, before + 16, 128);
        _tile_loadd(2, before + 16 * 32, 128);
        _tile_loadd(3, before + 16 * 32 + 16, 128);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; ++k, a += step, b += step) {
        load_cols(b, 0);
        load_rows(a, 2);
        multiply();
        load_rows(a, 1);
        multiply();
        load_cols(b, 1);
        multiply();
        load_rows(a, 0);
        multiply();
        load_cols(b, 2);
        multiply();
        load_cols(b, 0);
        multiply();
        // After more than five rounds without one, the next store of a tile takes as long as two of
        // them, as measured on a Xeon; not after four.
        if (k % 4 == 3) _tile_stored(7, sums, 128);
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + 16 * 32, 128);
    _tile_stored(3, sums + 16 * 32 + 16, 128);
}

static void split_product(const Product<float>& p, const Blocks& blocks, Part* scratch) {
    // Static: compilers are not told that more than its first bytes are read.
    static constexpr TileConfig config;
    _tile_loadconfig(&config);
    alignas(64) float sums[2][split_panel * split_panel];
    int current = 0;
    const int64_t m = p.terms[0].a.rows, n = p.terms[0].b.cols;
    const bool mirrored = p.mirror != Mirror::none;
    const SplitPlan plan(p);
    const int64_t panel_size = plan.chunk * split_parts * 2 * split_tile;
    Part* b[2] = {scratch, scratch + panel_size};
    Part* const a = scratch + 2 * panel_size;
    float* const partial = reinterpret_cast<float*>(a + plan.rows * panel_size);
    Beside beside;
    // Equal pieces: B is split for each of them.
    const int64_t all_rows = blocks.row_end - blocks.row_begin,
                  pieces = most(1, (all_rows + plan.rows - 1) / plan.rows),
                  rows = (all_rows + pieces - 1) / pieces;
    for (int64_t begin = blocks.row_begin; begin < blocks.row_end; begin += rows) {
        const int64_t end = least(blocks.row_end, begin + rows),
                      col_end = mirrored ? least(end, blocks.col_end) : blocks.col_end;
        for (int64_t from = 0; from < plan.depth; from += plan.chunk) {
            const int64_t depth = least(plan.chunk, plan.depth - from);
            const bool last = from + depth == plan.depth;
            const int64_t steps_of_a = PanelSplit::steps(p, false, depth),
                          steps_of_b = PanelSplit::steps(p, true, depth);
            int64_t split_rows = begin;  // up to which panels of A are split
            PanelSplit(p, true, blocks.col_begin, from, depth, b[0]).complete();
            for (int64_t j = blocks.col_begin; j < col_end; ++j) {
                const int64_t first = begin + (begin == blocks.row_begin && j < blocks.first_col),
                              top = mirrored ? most(first, j) : first,
                              bottom = end - (end == blocks.row_end && j >= blocks.last_col);
                if (j + 1 < col_end) beside.b = PanelSplit(p, true, j + 1, from, depth, b[1]);
                for (int64_t i = top; i < bottom; ++i) {
                    const auto panel_of_a = [&](int64_t row) {
                        return PanelSplit(p, false, row, from, depth,
                                          a + (row - begin) * panel_size);
                    };
                    while (split_rows <= i) panel_of_a(split_rows++).complete();
                    if (i + 1 < bottom && split_rows == i + 1) beside.a = panel_of_a(split_rows++);
                    const int64_t steps = (beside.finish ? BlockFinish::steps(p) : 0) +
                                          (beside.a ? steps_of_a : 0) +
                                          (beside.b ? steps_of_b / (bottom - top) : 0);
                    float* const kept =
                        partial +
                        ((i - begin) * (blocks.col_end - blocks.col_begin) + j - blocks.col_begin) *
                            block_side * block_side;
                    split_block(a + (i - begin) * panel_size, b[0], depth, beside, steps,
                                from > 0 ? kept : nullptr, last ? sums[current] : kept);
                    beside.finish.complete();
                    beside.a.complete();
                    if (!last) continue;
                    beside.finish = BlockFinish(
                        p,
                        {i * split_panel, j * split_panel, least(split_panel, m - i * split_panel),
                         least(split_panel, n - j * split_panel)},
                        sums[current]);
                    current ^= 1;
                }
                beside.b.complete();
                Part* const used = b[0];
                b[0] = b[1];
                b[1] = used;
            }
        }
    }
    beside.finish.complete();
    _tile_release();
}

// Rows [begin, end) of blocks of P - Pᵀ for the product P, through an epilogue, and their mirror image.
static void finish_skew(const Product<float>& p, const float* product, int64_t begin, int64_t end) {
    const int64_t n = p.terms[0].a.rows;
    alignas(64) float sums[split_panel * split_panel], turned[split_panel * split_panel];
    for (int64_t i = begin * split_panel; i < least(n, end * split_panel); i += split_panel)
        for (int64_t j = 0; j <= i; j += split_panel) {
            const int64_t rows = least(split_panel, n - i), cols = least(split_panel, n - j);
            transpose_block(product + j * n + i, n, turned, split_panel, cols, rows);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t c = 0; c < cols; c += 16) {
                    const __mmask16 there = split_mask(cols - c);
                    const __m512 x = _mm512_maskz_loadu_ps(there, product + (i + r) * n + j + c),
                                 y = _mm512_maskz_loadu_ps(there, turned + r * split_panel + c);
                    _mm512_store_ps(sums + r * split_panel + c, _mm512_sub_ps(x, y));
                }
            BlockFinish(p, {i, j, rows, cols}, sums).complete();
        }
}
