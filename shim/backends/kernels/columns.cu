// The gradient before a rectifier and the sums of its columns, which are the gradient of a bias.
//
// Grid (ceil(columns / 32), parts), block 32 x LINES threads: a warp reads 32 columns of a row. The last block of some
// columns adds up what the others have left, always in the same order.
#ifdef EMULATED
#include "emulation.h"
#else
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

constexpr int LINES = 16;  // rows of a block that are read at a time
constexpr int AHEAD = 4;   // rows that a thread reads before it adds them up

// dy (rows, columns), y what the rectifier returned or null, dz (rows, columns) or null: where it is null nothing but the
// sums is wanted. partial (parts, columns) is scratch, and tickets (ceil(columns / 32)) holds zeros, before and after.
// Shared memory: float[32 * LINES], int.
extern "C" __global__ void __launch_bounds__(32 * LINES)
rectified_sums(const float* __restrict__ dy, const float* __restrict__ y, float* __restrict__ dz,
               float* __restrict__ sums, float* __restrict__ partial, int* __restrict__ tickets, int rows, int columns) {
  DYNAMIC_SHARED(float, lines);
  int* ticket = reinterpret_cast<int*>(lines + 32 * LINES);
  const int lane = threadIdx.x % 32, line = threadIdx.x / 32, column = blockIdx.x * 32 + lane, step = gridDim.y * LINES;
  float sum = 0.f;
  if (column < columns)
    for (int start = blockIdx.y * LINES + line; start < rows; start += AHEAD * step) {
      float values[AHEAD] = {};
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        const int row = start + k * step;
        const size_t i = (size_t)row * columns + column;
        if (row < rows) values[k] = y && !(__ldg(y + i) > 0.f) ? 0.f : __ldg(dy + i);
        if (row < rows && dz) dz[i] = values[k];
      }
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) sum += values[k];
    }
  lines[threadIdx.x] = sum;
  __syncthreads();
  if (line == 0) {
    for (int k = 1; k < LINES; ++k) sum += lines[32 * k + lane];
    if (column < columns) (gridDim.y == 1 ? sums + column : partial + (size_t)blockIdx.y * columns + column)[0] = sum;
    __threadfence();
    __syncwarp();
    if (lane == 0 && gridDim.y > 1) *ticket = atomicAdd(tickets + blockIdx.x, 1);
  }
  if (gridDim.y == 1) return;
  __syncthreads();
  if (*ticket + 1 < (int)gridDim.y) return;
  __threadfence();
  sum = 0.f;
  if (column < columns)
    for (int k = line; k < (int)gridDim.y; k += LINES) sum += __ldcg(partial + (size_t)k * columns + column);
  lines[threadIdx.x] = sum;
  __syncthreads();
  if (line == 0 && column < columns) {
    for (int k = 1; k < LINES; ++k) sum += lines[32 * k + lane];
    sums[column] = sum;
  }
  if (threadIdx.x == 0) tickets[blockIdx.x] = 0;
}

#ifdef EMULATED
EMULATE(rectified_sums)
#endif
