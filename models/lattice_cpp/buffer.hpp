// Uninitialised memory for arrays that are written before they are read.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lattice {

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
        const std::size_t bytes = (size * sizeof(T) + align - 1) / align * align;
        data_ = static_cast<T*>(std::aligned_alloc(align, bytes));
        if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
        if (align == HUGE_PAGE) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    }
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Buffer() { std::free(data_); }

    void swap(Buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }
    T* data() { return data_; }
    const T* data() const { return data_; }
    T* begin() { return data_; }
    T* end() { return data_ + size_; }
    T& operator[](std::size_t i) { return data_[i]; }
    const T& operator[](std::size_t i) const { return data_[i]; }
    std::size_t size() const { return size_; }

private:
    static constexpr std::size_t HUGE_PAGE = std::size_t{2} << 20;
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace lattice
