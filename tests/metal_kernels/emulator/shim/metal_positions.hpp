// Where a thread is: one function for every attribute that MLX puts into a kernel's signature.
#pragma once
#include "metal_types.hpp"

namespace emu {
inline uint3 three(const uint32_t* v) { return uint3(v[0], v[1], v[2]); }
inline uint product(const uint32_t* v) { return v[0] * v[1] * v[2]; }
inline uint blocks(uint threads, uint of) { return (threads + of - 1) / of; }
#define EMU_POSITION(type, name, value) inline type name() { return value; }
EMU_POSITION(uint3, thread_position_in_grid, three(emu_self->in_grid))
EMU_POSITION(uint3, thread_position_in_threadgroup, three(emu_self->in_group))
EMU_POSITION(uint, thread_index_in_threadgroup, emu_self->index)
EMU_POSITION(uint, thread_index_in_simdgroup, emu_self->lane)
EMU_POSITION(uint, thread_index_in_quadgroup, emu_self->lane % 4)
EMU_POSITION(uint, simdgroup_index_in_threadgroup, emu_self->simd)
EMU_POSITION(uint, quadgroup_index_in_threadgroup, emu_self->index / 4)
EMU_POSITION(uint, simdgroups_per_threadgroup, blocks(product(emu_group.size), 32))
EMU_POSITION(uint, dispatch_simdgroups_per_threadgroup, blocks(product(emu_group.asked), 32))
EMU_POSITION(uint, quadgroups_per_threadgroup, blocks(product(emu_group.size), 4))
EMU_POSITION(uint, dispatch_quadgroups_per_threadgroup, blocks(product(emu_group.asked), 4))
EMU_POSITION(uint3, threads_per_threadgroup, three(emu_group.size))
EMU_POSITION(uint3, dispatch_threads_per_threadgroup, three(emu_group.asked))
EMU_POSITION(uint3, threadgroup_position_in_grid, three(emu_group.position))
EMU_POSITION(uint3, threadgroups_per_grid, three(emu_group.count))
EMU_POSITION(uint3, threads_per_grid, three(emu_group.grid))
EMU_POSITION(uint3, grid_size, three(emu_group.grid))
EMU_POSITION(uint3, grid_origin, uint3(0u))
EMU_POSITION(uint, threads_per_simdgroup, 32)
EMU_POSITION(uint, thread_execution_width, 32)
#undef EMU_POSITION
}  // namespace emu
