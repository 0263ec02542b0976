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

// The splitting of a panel, in steps of about a hundred instructions: of rows of A or columns of B, 32 of
// the inner dimension at a time. Rows of tiles of A are found in rows of the operand, and those of tiles
// of B in two of its rows. Blocks that are not there row by row, whole, are brought into that form first.
class PanelSplit {
public:
    PanelSplit() = default;
    // Of the inner dimensions of all terms, counted in 32s, `most` from `from` on. `brought` has room
    // for a block.
    PanelSplit(const Product<float>& p, bool as_b, int64_t panel, int64_t from, int64_t most,
               Part* out, float* brought)
        : product_(&p), as_b_(as_b), panel_(panel), out_(out), brought_(brought), left_(most) {
        const int64_t first = blocks_of(p.terms[0].a.cols);
        term_ = from >= first;
        depth_ = from - (term_ ? first : 0);
        begin_block();
    }
    explicit operator bool() const { return left_ > 0; }  // something is left to do

    // How many there are, about.
    int64_t steps() const {
        if (left_ == 0) return 0;
        const View<const float>& x = operand();
        int64_t bring = x.col_stride == 1 ? 0 : left_;
        if (x.layout != Layout::rows)
            bring = as_b_ ? most(0, least(left_, panel_ - depth_))
                          : most(0, depth_ + left_ - most(depth_, panel_ + 1));
        return left_ * split_steps + bring * bring_steps;
    }
    __attribute__((noinline)) void step() {
        if (step_ < 0) {
            bring(step_ + bring_steps);
        } else {
            Part* const to = out_ + step_ / (split_steps / 2) * split_tile +
                             step_ % (split_steps / 2) * rows * 32;
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r)
                split_pairs(_mm512_loadu_ps(in_ + r * between_),
                            _mm512_loadu_ps(in_ + r * between_ + second_), to + r * 32);
            in_ += rows * between_;
            // After half of the rows of B it is the next columns.
            if (as_b_ && step_ == split_steps / 2 - 1) in_ += split_side - split_side * between_;
        }
        if (++step_ == split_steps) next_block();
    }
    void complete() {
        while (left_ > 0) step();
    }

private:
    static constexpr int rows = 4, split_steps = split_panel / rows, bring_steps = 4;

    const View<const float>& operand() const {
        const auto& term = product_->terms[term_];
        return as_b_ ? term.b : term.a;
    }
    void begin_block() {
        const View<const float>& x = operand();
        const int64_t row = as_b_ ? depth_ : panel_, col = as_b_ ? panel_ : depth_;
        row_stride_ = x.row_stride;
        col_stride_ = x.col_stride;
        rows_ = least(split_panel, x.rows - row * split_panel);
        cols_ = least(split_panel, x.cols - col * split_panel);
        negative_ = false;
        if (x.layout == Layout::rows) {
            source_ = x.data + row * split_panel * row_stride_ + col * split_panel * col_stride_;
        } else {
            const bool below = row >= col;
            source_ = x.data + block_begin(x.layout, most(row, col) * split_panel,
                                           least(row, col) * split_panel, x.cols);
            row_stride_ = below ? split_panel : 1;
            col_stride_ = below ? 1 : split_panel;
            negative_ = !below && x.half == Mirror::skew;
        }
        const bool there = col_stride_ == 1 && rows_ == split_panel && cols_ == split_panel;
        in_ = there ? source_ : brought_;
        between_ = there ? row_stride_ : split_panel;
        second_ = as_b_ ? split_side * between_ : split_side;
        step_ = there ? 0 : -bring_steps;
    }
    void next_block() {
        out_ += split_parts * 2 * split_tile;
        if (--left_ == 0) return;
        if (++depth_ == blocks_of(product_->terms[term_].a.cols)) {
            ++term_;
            depth_ = 0;
        }
        begin_block();
    }
    // A quarter of the block; zero where there is nothing.
    void bring(int quarter) {
        const int64_t r = quarter / 2 * split_side, c = quarter % 2 * split_side;
        float* const to = brought_ + r * split_panel + c;
        Vec<float> v[split_side];
        if (col_stride_ == 1) {
#pragma GCC unroll 16
            for (int l = 0; l < split_side; ++l)
                store(to + l * split_panel,
                      (Vec<float>)_mm512_maskz_loadu_ps(r + l < rows_ ? split_mask(cols_ - c) : 0,
                                                        source_ + (r + l) * row_stride_ + c));
        } else if (row_stride_ == 1) {
            const __mmask16 there = split_mask(rows_ - r);
#pragma GCC unroll 16
            for (int l = 0; l < split_side; ++l)
                v[l] = _mm512_maskz_loadu_ps(c + l < cols_ ? there : 0,
                                             source_ + (c + l) * col_stride_ + r);
            transpose<float>(v);
#pragma GCC unroll 16
            for (int l = 0; l < split_side; ++l)
                store(to + l * split_panel, negative_ ? -v[l] : v[l]);
        } else {
            for (int64_t l = 0; l < split_side; ++l)
                for (int64_t k = 0; k < split_side; ++k)
                    to[l * split_panel + k] =
                        r + l < rows_ && c + k < cols_
                            ? source_[(r + l) * row_stride_ + (c + k) * col_stride_]
                            : 0;
        }
    }

    const Product<float>* product_ = nullptr;
    bool as_b_ = false;
    int64_t panel_ = 0;
    Part* out_ = nullptr;
    float* brought_ = nullptr;
    int64_t left_ = 0;  // blocks
    // the block
    int term_ = 0;
    int64_t depth_ = 0;  // which one of its term
    const float* source_ = nullptr;
    int64_t row_stride_ = 0, col_stride_ = 0, rows_ = 0, cols_ = 0;
    bool negative_ = false;
    // where its rows are split from, and how far apart are rows and the two of a pair
    int step_ = 0;
    const float* in_ = nullptr;
    int64_t between_ = 0, second_ = 0;
};

// Takes a block to memory, and its mirror image to its place, in such steps.
class BlockFinish {
public:
    BlockFinish() = default;
    BlockFinish(const Product<float>& p, const Place& at, const float* sums)
        : product_(&p), at_(at), sums_(sums) {
        corner_ = block_begin(p.layout, at.i, at.j, p.epilogue.stride);
        stride_ = p.layout == Layout::rows ? p.epilogue.stride : split_panel;
        const bool mirrored =
            p.mirror != Mirror::none && (p.layout == Layout::rows || at.i == at.j);
        last_step_ = mirrored ? row_steps + 4 : row_steps;
    }
    explicit operator bool() const { return product_; }  // something is left to do
    int64_t steps() const { return last_step_; }
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
        const int64_t first = step_ * rows, corner = corner_ + first * stride_;
        const float* const sums = sums_ + first * split_panel;
        const int64_t there = Whole ? rows : least(rows, at_.rows - first);
        for (int o = e.outputs - 1; o >= 0; --o) {  // out[0] may be an X: it comes last
            float* const out = e.out[o];
            const __m512 f = _mm512_set1_ps(e.acc[o]), f0 = _mm512_set1_ps(e.x0[o]),
                         f1 = _mm512_set1_ps(e.x1[o]), f2 = _mm512_set1_ps(e.x2[o]);
            for (int64_t r = 0; r < there; ++r)
#pragma GCC unroll 2
                for (int64_t c = 0; c < split_panel; c += 16) {
                    const int64_t k = corner + r * stride_ + c;
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
                    out[corner + r * stride_ + first + r] += e.diagonal[o];
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
            const float* from = e.out[o] + corner_ + r * stride_ + c;
            float* to =
                e.out[o] + (at_.i == at_.j ? corner_ : at_.j * stride_ + at_.i) + c * stride_ + r;
            if (from == to)
                mirror_rows<float, Skew>(to, height, stride_, 0, height);
            else
                transpose_block<float, Skew>(from, stride_, to, stride_, height, width);
        }
    }

    const Product<float>* product_ = nullptr;  // null: nothing is left to do
    Place at_{};
    const float* sums_ = nullptr;
    int64_t corner_ = 0, stride_ = 0;  // in memory: where it begins, how far apart rows are
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
    alignas(64) float sums[2][split_panel * split_panel], brought[2][split_panel * split_panel];
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
            int64_t split_rows = begin;  // up to which panels of A are split
            PanelSplit(p, true, blocks.col_begin, from, depth, b[0], brought[1]).complete();
            for (int64_t j = blocks.col_begin; j < col_end; ++j) {
                const int64_t first = begin + (begin == blocks.row_begin && j < blocks.first_col),
                              top = mirrored ? most(first, j) : first,
                              bottom = end - (end == blocks.row_end && j >= blocks.last_col);
                if (j + 1 < col_end)
                    beside.b = PanelSplit(p, true, j + 1, from, depth, b[1], brought[1]);
                const int64_t steps_of_b = beside.b.steps();
                for (int64_t i = top; i < bottom; ++i) {
                    const auto panel_of_a = [&](int64_t row) {
                        return PanelSplit(p, false, row, from, depth,
                                          a + (row - begin) * panel_size, brought[0]);
                    };
                    while (split_rows <= i) panel_of_a(split_rows++).complete();
                    if (i + 1 < bottom && split_rows == i + 1) beside.a = panel_of_a(split_rows++);
                    const int64_t steps = (beside.finish ? beside.finish.steps() : 0) +
                                          beside.a.steps() +
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

// Rows [begin, end) of blocks of P - Pᵀ for the product P, through an epilogue, and their mirror image
// where that is kept.
static void finish_skew(const Product<float>& p, const View<const float>& product, int64_t begin,
                        int64_t end) {
    const int64_t n = product.rows, stride = block_stride(product);
    alignas(64) float sums[split_panel * split_panel], turned[split_panel * split_panel];
    for (int64_t i = begin * split_panel; i < least(n, end * split_panel); i += split_panel)
        for (int64_t j = 0; j <= i; j += split_panel) {
            const int64_t rows = least(split_panel, n - i), cols = least(split_panel, n - j);
            const float* const block = product.data + block_begin(product.layout, i, j, n);
            transpose_block(product.data + block_begin(product.layout, j, i, n), stride, turned,
                            split_panel, cols, rows);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t c = 0; c < cols; c += 16) {
                    const __mmask16 there = split_mask(cols - c);
                    const __m512 x = _mm512_maskz_loadu_ps(there, block + r * stride + c),
                                 y = _mm512_maskz_loadu_ps(there, turned + r * split_panel + c);
                    _mm512_store_ps(sums + r * split_panel + c, _mm512_sub_ps(x, y));
                }
            BlockFinish(p, {i, j, rows, cols}, sums).complete();
        }
}
