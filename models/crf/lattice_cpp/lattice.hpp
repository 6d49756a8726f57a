// The permutohedral lattice (Adams, Baek, Davis 2010) as plain data, and how it is built from features.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "buffer.hpp"

namespace lattice {

constexpr int MAX_DIMENSIONS = 7;

// One corner of the simplex that a point lies in. Offsets and weights of a point lie side by side: every pass over the
// pixels then reads one stream.
struct Corner {
    std::int32_t vertex;
    float weight;
};

struct Lattice {
    std::size_t points = 0;
    int dimensions = 0;
    std::size_t vertices = 0;
    Buffer<Corner> corners;  // points x (dimensions + 1)
    // Per axis the vertices in the order of their chains along it; the last of a chain is stored as ~vertex.
    // A blur then reads and writes every value once, in place, instead of reading three and writing a copy.
    Buffer<std::int32_t> chains;  // (dimensions + 1) x vertices

    std::size_t nbytes() const {
        return corners.size() * sizeof(Corner) + chains.size() * sizeof(std::int32_t);
    }
    float alpha() const { return 1.0f / (1.0f + 1.0f / static_cast<float>(1 << dimensions)); }
};

// A linear map of the labels' messages, added to -unary: one weight, a weight a label, or a full matrix.
struct Compatibility {
    enum Kind { SCALAR, DIAGONAL, FULL } kind = SCALAR;
    float weight = 1.0f;            // of SCALAR; 1 for the others
    const float* values = nullptr;  // (L) or (L, L), row = the label that receives
};

struct Term {
    const Lattice* lattice;
    const float* scale_in_n;   // nullptr: 1
    const float* scale_out_n;  // nullptr: 1
    Compatibility compatibility;
};

// One instruction set's passes; the fastest that the processor has is chosen at run time.
struct Kernels {
    const char* name;
    // Throws std::invalid_argument on features that are not finite or too widely spread.
    Lattice (*build)(const float* features_nd, std::size_t points, int dimensions);
    // K_ii of the complete lattice (every neighbour present), one value a point.
    void (*diagonal)(const Lattice&, float* out_n);
    void (*apply)(const Lattice&, const float* values_nk, int channels, bool reverse, float* out_nk);
    // Returns the energy; fills gradient_kn unless it is nullptr.
    double (*pair_energy)(const Lattice&, const float* probs_kn, int labels, const float* soft_n, float* gradient_kn);
    void (*mean_field)(const float* unary_ln, int labels, std::size_t points, const std::vector<Term>& terms,
                       int iterations, float* q_ln);
};

const Kernels& kernels();
std::vector<const char*> available();
bool choose(const char* name);

}  // namespace lattice
