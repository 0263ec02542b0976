// How a launch is laid out: which blocks work on which matrix. It travels with the launch.
#pragma once

#include <cstdint>

#include "execution.h"

namespace lipfuse::cuda {

constexpr int most_items = 64;  // of different size in one launch

// Equal matrices: those of a batch, or of the groups of one weight.
struct Place {
    int32_t matrices;
    // A team of blocks for each matrix; or 1: one block after the other takes matrices from a pool.
    int32_t blocks;
    int32_t first;                // block of the first team
    int32_t scratch_at, scratch;  // of its teams, of one of them, in units
};

struct Layout {
    static constexpr int64_t unit = 256;  // bytes

    int32_t items = 0;
    int32_t pool_first = 0, pool_blocks = 0;
    int32_t pool_scratch_at = 0, pool_scratch = 0;  // of all its blocks, of one of them, in units
    int32_t shared_scratch = 0;  // bytes of shared memory for arrays, of blocks in the pool
    int32_t tile_bytes = 0;      // of shared memory in front of them
    // The pieces of a number in a product on tensor cores; 0: there are none.
    int32_t pieces = 0, rough_pieces = 0;
    char* scratch = nullptr;
    unsigned* counters = nullptr;  // one a block, zero
    double* partial = nullptr;     // two a block
    Place place[most_items] = {};
};

// What one kernel does to each item.
template <class Arguments>
struct Table {
    Arguments item[most_items];
};

struct Task {
    int item;  // negative: there is none
    int64_t matrix;
};

// The part of this block in a launch.
struct Role {
    int item = -1;   // of its team; negative: it belongs to the pool
    int64_t matrix;  // of its team
    int blocks = 1, block = 0;

    LIPFUSE_DEVICE explicit Role(const Layout& layout) : matrix(0) {
        const int b = block_index();
        for (int i = 0; i < layout.items; ++i) {
            const Place& p = layout.place[i];
            const int64_t at = b - p.first;
            if (p.blocks < 2 || at < 0 || at >= int64_t(p.blocks) * p.matrices) continue;
            item = i;
            matrix = at / p.blocks;
            blocks = p.blocks;
            block = static_cast<int>(at % p.blocks);
        }
    }
    LIPFUSE_DEVICE int leader() const { return block_index() - block; }
    LIPFUSE_DEVICE char* scratch(const Layout& layout) const {
        const int64_t at =
            item >= 0 ? layout.place[item].scratch_at + matrix * layout.place[item].scratch
                      : layout.pool_scratch_at +
                            int64_t(block_index() - layout.pool_first) * layout.pool_scratch;
        return layout.scratch + at * Layout::unit;
    }
    LIPFUSE_DEVICE int64_t scratch_bytes(const Layout& layout) const {
        return (item >= 0 ? layout.place[item].scratch : layout.pool_scratch) * Layout::unit;
    }
    // What it does first, second, ...
    LIPFUSE_DEVICE Task task(const Layout& layout, int64_t turn) const {
        if (item >= 0) return {turn == 0 ? item : -1, matrix};
        int64_t index = block_index() - layout.pool_first + turn * layout.pool_blocks;
        for (int i = 0; i < layout.items; ++i) {
            const Place& p = layout.place[i];
            if (p.blocks > 1) continue;
            if (index < p.matrices) return {i, index};
            index -= p.matrices;
        }
        return {-1, 0};
    }
};

}  // namespace lipfuse::cuda
