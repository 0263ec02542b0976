// Scratch memory that is kept from call to call: one arena a thread, grown as needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

// AddressSanitizer does not know of arrays inside a block unless it is told.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define LIPFUSE_FORBID(address, bytes) ASAN_POISON_MEMORY_REGION(address, bytes)
#define LIPFUSE_PERMIT(address, bytes) ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#else
#define LIPFUSE_FORBID(address, bytes) static_cast<void>(0)
#define LIPFUSE_PERMIT(address, bytes) static_cast<void>(0)
#endif

namespace lipfuse::cpu {

class Arena {
public:
    static constexpr size_t alignment = 64;
    static constexpr size_t kept_bytes = size_t(64) << 20;  // more than this is given back
    static constexpr size_t most_bytes = size_t(1) << 60;
    static constexpr size_t large_page = size_t(2) << 20;

    struct Mark {
        size_t block, used;
    };

    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() { drop(0); }

    static Arena& of_this_thread() {
        static thread_local Arena arena;
        return arena;
    }

    Mark mark() const { return {current_, blocks_.empty() ? 0 : blocks_[current_].used}; }

    void release(Mark mark) {
        for (size_t i = mark.block; i < blocks_.size(); ++i) {
            Block& b = blocks_[i];
            b.used = i == mark.block ? mark.used : 0;
            LIPFUSE_FORBID(b.data + b.used, b.size - b.used);
        }
        current_ = mark.block;
        if (mark.block == 0 && mark.used == 0 && total_ > kept_bytes) drop(0);
    }

    template <class T>
    T* allocate(int64_t count) {
        // One cache line apart, so that arrays whose sizes are powers of two do not all fall into
        // the same sets of a cache.
        if (count < 0 || count > int64_t(most_bytes / sizeof(T))) throw std::bad_alloc();
        const size_t wanted = size_t(count) * sizeof(T);
        const size_t bytes = (wanted + 18 * alignment - 1) / alignment * alignment;
        while (current_ < blocks_.size()) {
            Block& b = blocks_[current_];
            if (b.used + bytes <= b.size) {
                void* p = b.data + b.used;
                b.used += bytes;
                LIPFUSE_PERMIT(p, wanted);
                return static_cast<T*>(p);
            }
            if (current_ + 1 == blocks_.size()) break;
            ++current_;
        }
        // Algorithms hold several arrays of one size, and what is left of a block is of no use to them.
        size_t size = total_ > (size_t(1) << 16) ? total_ : size_t(1) << 16;
        if (size < 8 * bytes) size = 8 * bytes;
        if (size > kept_bytes) size = kept_bytes;
        if (size < bytes) size = bytes;
        // Large ones on large pages, if the system has them to spare: a product of large matrices touches
        // more small ones than the processor keeps the addresses of.
        const size_t page = size > large_page / 2 ? large_page : size_t(4096);
        size = (size + page - 1) / page * page;
        char* data = static_cast<char*>(std::aligned_alloc(page, size));
        if (!data) throw std::bad_alloc();
#ifdef __linux__
        if (page == large_page) madvise(data, size, MADV_HUGEPAGE);
#endif
        blocks_.push_back({data, size, bytes});
        total_ += size;
        current_ = blocks_.size() - 1;
        LIPFUSE_FORBID(data + wanted, size - wanted);
        return reinterpret_cast<T*>(data);
    }

private:
    struct Block {
        char* data;
        size_t size, used;
    };

    void drop(size_t from) {
        for (size_t i = from; i < blocks_.size(); ++i) {
            std::free(blocks_[i].data);
            total_ -= blocks_[i].size;
        }
        blocks_.resize(from);
        current_ = 0;
    }

    std::vector<Block> blocks_;
    size_t current_ = 0, total_ = 0;
};

}  // namespace lipfuse::cpu
