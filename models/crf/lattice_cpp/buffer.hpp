// Uninitialised memory for arrays that are written before they are read.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lattice {

constexpr std::size_t HUGE_PAGE = std::size_t{2} << 20;

// What a thread freed last, up to 64 MB, for its next arrays: fresh memory has to be cleared by the kernel first, which
// costs a CRF on a usual picture some 5 % of its time. Freed when the thread ends.
class Spares {
public:
    static Spares& of_thread() {
        thread_local Spares spares;
        return spares;
    }
    ~Spares() {
        for (const Block& block : blocks_) std::free(block.data);
    }
    // A block of at least that size, and not twice as large; nullptr if there is none.
    void* take(std::size_t bytes, std::size_t& found) {
        for (std::size_t i = 0; i < blocks_.size(); ++i)
            if (blocks_[i].bytes >= bytes && blocks_[i].bytes <= 2 * bytes) {
                const Block block = blocks_[i];
                blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(i));
                held_ -= block.bytes;
                found = block.bytes;
                return block.data;
            }
        return nullptr;
    }
    void give(void* data, std::size_t bytes) {
        if (bytes < HUGE_PAGE || bytes > MOST_HELD) return std::free(data);
        while (held_ + bytes > MOST_HELD) {
            std::free(blocks_.front().data);
            held_ -= blocks_.front().bytes;
            blocks_.erase(blocks_.begin());
        }
        blocks_.push_back({data, bytes});
        held_ += bytes;
    }

private:
    struct Block {
        void* data;
        std::size_t bytes;
    };
    static constexpr std::size_t MOST_HELD = std::size_t{64} << 20;
    std::vector<Block> blocks_;
    std::size_t held_ = 0;
};

// Large arrays ask for huge pages: vertices are visited in no order that a TLB of small pages could follow, and the
// first touch of fresh small pages costs as much as a pass over them.
template <typename T>
class Buffer {
    static_assert(std::is_trivially_copyable_v<T>);

public:
    Buffer() = default;
    explicit Buffer(std::size_t size) : size_(size) {
        if (size == 0) return;
        const std::size_t align = size * sizeof(T) >= HUGE_PAGE ? HUGE_PAGE : 64;
        bytes_ = (size * sizeof(T) + align - 1) / align * align;
        if (align == HUGE_PAGE) data_ = static_cast<T*>(Spares::of_thread().take(bytes_, bytes_));
        if (data_ != nullptr) return;
        data_ = static_cast<T*>(std::aligned_alloc(align, bytes_));
        if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
        if (align == HUGE_PAGE) madvise(data_, bytes_, MADV_HUGEPAGE);
#endif
    }
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Buffer() {
        if (data_ != nullptr) Spares::of_thread().give(data_, bytes_);
    }

    void swap(Buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(bytes_, other.bytes_);
    }
    T* data() { return data_; }
    const T* data() const { return data_; }
    T* begin() { return data_; }
    T* end() { return data_ + size_; }
    T& operator[](std::size_t i) { return data_[i]; }
    const T& operator[](std::size_t i) const { return data_[i]; }
    std::size_t size() const { return size_; }

private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
    std::size_t bytes_ = 0;
};

}  // namespace lattice
