// The instruction sets that the kernels are compiled for.
#pragma once

#include <string>

#include "tiles.h"

namespace sgl {

// True if products of many rows use the processor's matrix unit (AMX).
inline bool multiplies_tiles() {
#ifdef SGL_TILES
  return tiles_allowed();
#else
  return false;
#endif
}

// Names as llama.cpp spells them, separated by spaces.
inline std::string instruction_sets() {
  std::string names;
#ifdef __AVX__
  names += " AVX";
#endif
#ifdef __AVX2__
  names += " AVX2";
#endif
#ifdef __FMA__
  names += " FMA";
#endif
#ifdef __F16C__
  names += " F16C";
#endif
#ifdef __BMI2__
  names += " BMI2";
#endif
#ifdef __AVXVNNI__
  names += " AVX_VNNI";
#endif
#ifdef __AVX512F__
  names += " AVX512";
#endif
#ifdef __AVX512VBMI__
  names += " AVX512_VBMI";
#endif
#ifdef __AVX512VNNI__
  names += " AVX512_VNNI";
#endif
#ifdef __AVX512BF16__
  names += " AVX512_BF16";
#endif
#ifdef __AMX_INT8__
  names += " AMX_INT8";
#endif
#ifdef __AMX_BF16__
  names += " AMX_BF16";
#endif
#ifdef __ARM_NEON
  names += " NEON";
#endif
#ifdef __ARM_FEATURE_DOTPROD
  names += " DOTPROD";
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
  names += " MATMUL_INT8";
#endif
#ifdef __ARM_FEATURE_SVE
  names += " SVE";
#endif
  return names.empty() ? names : names.substr(1);
}

}  // namespace sgl
