// One set of passes per instruction set, and the choice between them when the module is loaded.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "lattice.hpp"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MASKMILL_X86 1
#include <immintrin.h>
#endif

#if defined(__clang__)
#define MASKMILL_NO_CONTRACTION
#define MASKMILL_NO_CONTRACTION_HERE _Pragma("clang fp contract(off)")
#else
#define MASKMILL_NO_CONTRACTION __attribute__((optimize("fp-contract=off")))
#define MASKMILL_NO_CONTRACTION_HERE
#endif

namespace lattice {
namespace base {
constexpr int WIDE = 8;
#include "build.inc"
#include "passes.inc"
}  // namespace base

#ifdef MASKMILL_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
constexpr int WIDE = 8;
#include "build.inc"
#include "passes.inc"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")
namespace avx512 {
constexpr int WIDE = 16;
#include "build.inc"
#include "passes.inc"
}  // namespace avx512
#pragma GCC pop_options
#endif

namespace {

const std::vector<Kernels>& supported() {
    static const std::vector<Kernels> all = [] {
        std::vector<Kernels> found;
#ifdef MASKMILL_X86
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
            found.push_back({"avx512", avx512::build, avx512::diagonal, avx512::apply, avx512::pair_energy,
                             avx512::mean_field});
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            found.push_back({"avx2", avx2::build, avx2::diagonal, avx2::apply, avx2::pair_energy,
                             avx2::mean_field});
#endif
        found.push_back({"base", base::build, base::diagonal, base::apply, base::pair_energy,
                             base::mean_field});
        return found;
    }();
    return all;
}

const Kernels* chosen = nullptr;

}  // namespace

const Kernels& kernels() { return chosen ? *chosen : supported().front(); }

std::vector<const char*> available() {
    std::vector<const char*> names;
    for (const Kernels& one : supported()) names.push_back(one.name);
    return names;
}

bool choose(const char* name) {
    for (const Kernels& one : supported())
        if (std::strcmp(one.name, name) == 0) {
            chosen = &one;
            return true;
        }
    return false;
}

}  // namespace lattice
