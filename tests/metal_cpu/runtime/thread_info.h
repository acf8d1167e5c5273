// What Metal tells a thread about itself: one field for each attribute that MLX passes.
#pragma once

struct ThreadInfo {
  unsigned thread_position_in_grid[3], thread_position_in_threadgroup[3], threadgroup_position_in_grid[3];
  unsigned threads_per_threadgroup[3], dispatch_threads_per_threadgroup[3];
  unsigned threadgroups_per_grid[3], threads_per_grid[3], grid_size[3], grid_origin[3];
  unsigned thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
  unsigned threads_per_simdgroup, thread_execution_width;
  unsigned simdgroups_per_threadgroup, dispatch_simdgroups_per_threadgroup;
  unsigned thread_index_in_quadgroup, quadgroup_index_in_threadgroup;
  unsigned quadgroups_per_threadgroup, dispatch_quadgroups_per_threadgroup;
};
