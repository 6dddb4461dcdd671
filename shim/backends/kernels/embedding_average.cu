// The mean of the rows of a table that each sample names, its gradient by atomics or by runs of equal ids, and descent
// along it for those rows alone.
//
// `lanes` threads (8, 16 or 32) share a row, each with vectors of 1, 2 or 4 floats, or up to 8 of 16 bits; the kernels
// end in that number. The width of a table must be a multiple of it. Positions that hold `padding` are left out; -1
// leaves out none. Tables of float16 and bfloat16 have no kernels for gradients; sums are of floats all the same.
// Axes: N samples, T positions, V rows of the table, W floats of a row (`width`).
#ifdef EMULATED
#include "emulation.h"
#else
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

template <int SIZE, class T = float>
struct __attribute__((aligned(sizeof(T) * SIZE))) Vector {
  T v[SIZE];
};

template <int SIZE, class T>
__device__ __forceinline__ Vector<SIZE, T> vector_at(const T* p) {
  return *reinterpret_cast<const Vector<SIZE, T>*>(p);
}

struct Float16 {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ void narrow(float x, float& y) { y = x; }
#ifdef __CUDA_ARCH__
__device__ __forceinline__ float wide(Float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ __forceinline__ void narrow(float x, Float16& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
__device__ __forceinline__ float wide(BFloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ __forceinline__ void narrow(float x, BFloat16& y) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
#else
__device__ __forceinline__ float wide(Float16 x) { return float_of_half(x.bits); }
__device__ __forceinline__ void narrow(float x, Float16& y) { y.bits = half_of_float(x); }
__device__ __forceinline__ float wide(BFloat16 x) { return float_of_bfloat16(x.bits); }
__device__ __forceinline__ void narrow(float x, BFloat16& y) { y.bits = bfloat16_of_float(x); }
#endif

constexpr int IN_FLIGHT = 4;  // rows that a group of lanes reads before it adds them up

// Grid N. Leaves the mean in y (N, W) and in shares (N) what a position contributes to it: 1 / positions that count.
// Shared memory: float[blockDim.x * SIZE], int[blockDim.x / lanes]. All sums have a fixed order.
template <int SIZE, class T>
__device__ __forceinline__ void average(const int* __restrict__ ids, const T* __restrict__ table, T* __restrict__ y,
                                        float* __restrict__ shares, int positions, int width, int padding, int lanes) {
  DYNAMIC_SHARED(float, sums);
  int* counts = reinterpret_cast<int*>(sums + blockDim.x * SIZE);
  const int groups = blockDim.x / lanes, group = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  ids += (size_t)blockIdx.x * positions;

  int count = 0;
  for (int t = group; t < positions; t += groups) count += __ldg(ids + t) != padding;
  if (lane == 0) counts[group] = count;
  for (int start = 0; start < width; start += lanes * SIZE) {
    const int column = start + lane * SIZE;
    float sum[SIZE] = {};
    if (column < width)
      for (int t = group; t < positions; t += IN_FLIGHT * groups) {
        Vector<SIZE, T> rows[IN_FLIGHT] = {};
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k) {
          const int at = t + k * groups, id = at < positions ? __ldg(ids + at) : padding;
          if (at < positions && id != padding) rows[k] = vector_at<SIZE>(table + (size_t)id * width + column);
        }
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k)
#pragma unroll
          for (int e = 0; e < SIZE; ++e) sum[e] += wide(rows[k].v[e]);
      }
#pragma unroll
    for (int e = 0; e < SIZE; ++e) sums[threadIdx.x * SIZE + e] = sum[e];
    __syncthreads();
    int total = 0;
    for (int k = 0; k < groups; ++k) total += counts[k];
    const float share = 1.f / max(total, 1);
    if (threadIdx.x == 0) shares[blockIdx.x] = share;
    for (int e = threadIdx.x; e < lanes * SIZE && start + e < width; e += blockDim.x) {
      float mean = 0.f;
      for (int k = 0; k < groups; ++k) mean += sums[k * lanes * SIZE + e];
      narrow(mean * share, y[(size_t)blockIdx.x * width + start + e]);
    }
    __syncthreads();
  }
}

__device__ __forceinline__ void add_to(float* p, Vector<1> x) { atomicAdd(p, x.v[0]); }

__device__ __forceinline__ void add_to(float* p, Vector<2> x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(p), "f"(x.v[0]), "f"(x.v[1]) : "memory");
#else
  for (int e = 0; e < 2; ++e) atomicAdd(p + e, x.v[e]);
#endif
}

__device__ __forceinline__ void add_to(float* p, Vector<4> x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(x.v[0]), "f"(x.v[1]), "f"(x.v[2]),
               "f"(x.v[3])
               : "memory");
#else
  for (int e = 0; e < 4; ++e) atomicAdd(p + e, x.v[e]);
#endif
}

// Add the gradient of every position to its row of dtable (V, W), which holds zeros, in whatever order they come. Leave
// the ids in touched (N T), and the number of the step in stamps (V) for each of their rows; either may be null. One
// group of lanes for each of the `total` = N T positions; the first of up to `longest` equal neighbours adds for all of
// them, since additions to one row, such as that of the padding, wait for each other.
template <int SIZE>
__device__ __forceinline__ void scatter(const int* __restrict__ ids, const float* __restrict__ shares,
                                        const float* __restrict__ dy, float* __restrict__ dtable,
                                        int* __restrict__ touched, int* __restrict__ stamps,
                                        const int* __restrict__ step, int total, int positions, int width, int padding,
                                        int lanes, int longest) {
  const int at = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes, lane = threadIdx.x % lanes;
  if (at >= total) return;
  const int id = __ldg(ids + at), end = min(total, (at / longest + 1) * longest);
  if (touched && lane == 0) touched[at] = id;
  if (id == padding || (at % longest && __ldg(ids + at - 1) == id)) return;
  if (stamps && lane == 0) stamps[id] = __ldg(step);
  for (int column = lane * SIZE; column < width; column += lanes * SIZE) {
    Vector<SIZE> sum = {};
    for (int k = at; k < end && __ldg(ids + k) == id;) {
      const int sample = k / positions, last = min(end, (sample + 1) * positions), first = k;
      while (k < last && __ldg(ids + k) == id) ++k;
      const float share = (k - first) * __ldg(shares + sample);
      const Vector<SIZE> x = vector_at<SIZE>(dy + (size_t)sample * width + column);
#pragma unroll
      for (int e = 0; e < SIZE; ++e) sum.v[e] = fmaf(x.v[e], share, sum.v[e]);
    }
    add_to(dtable + (size_t)id * width + column, sum);
  }
}

// The same with one order of every sum, in two passes. `order` (N T) lists the positions by id, `keys` (N T) the ids in
// that order. First, one group of lanes for each position: the one at the head of a run of equal ids, or of what is
// left of it in a piece of PIECE positions, adds up to the end of the piece. The head of a run leaves that in its row,
// any other in parts (pieces, W).
constexpr int PIECE = 64;

template <int SIZE>
__device__ __forceinline__ void sum_runs(const int* __restrict__ order, const int* __restrict__ keys,
                                         const float* __restrict__ shares, const float* __restrict__ dy,
                                         float* __restrict__ dtable, float* __restrict__ parts,
                                         int* __restrict__ stamps, const int* __restrict__ step, int total,
                                         int positions, int width, int padding, int lanes) {
  const int head = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes, lane = threadIdx.x % lanes;
  if (head >= total) return;
  const int key = __ldg(keys + head), end = min(total, (head / PIECE + 1) * PIECE);
  const bool inside = head > 0 && __ldg(keys + head - 1) == key;
  if (key == padding || (inside && head % PIECE)) return;
  if (stamps && lane == 0 && !inside) stamps[key] = __ldg(step);
  float* row = inside ? parts + (size_t)(head / PIECE) * width : dtable + (size_t)key * width;
  for (int column = lane * SIZE; column < width; column += lanes * SIZE) {
    Vector<SIZE> sum = {};
    bool more = true;
    for (int start = head; more; start += IN_FLIGHT) {
      Vector<SIZE> rows[IN_FLIGHT] = {};
      float share[IN_FLIGHT] = {};
#pragma unroll
      for (int k = 0; k < IN_FLIGHT; ++k) {
        more = start + k < end && __ldg(keys + start + k) == key;
        if (!more) continue;
        const int sample = __ldg(order + start + k) / positions;
        share[k] = __ldg(shares + sample);
        rows[k] = vector_at<SIZE>(dy + (size_t)sample * width + column);
      }
#pragma unroll
      for (int k = 0; k < IN_FLIGHT; ++k)
#pragma unroll
        for (int e = 0; e < SIZE; ++e) sum.v[e] = fmaf(rows[k].v[e], share[k], sum.v[e]);
    }
    *reinterpret_cast<Vector<SIZE>*>(row + column) = sum;
  }
}

// Then one group of lanes for each piece: where a run goes on for the first time, add up its parts.
template <int SIZE>
__device__ __forceinline__ void join_runs(const int* __restrict__ keys, const float* __restrict__ parts,
                                          float* __restrict__ dtable, int total, int width, int padding, int lanes) {
  const int first = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes, at = first * PIECE;
  if (first == 0 || at >= total) return;
  const int key = __ldg(keys + at);
  if (key == padding || __ldg(keys + at - 1) != key) return;
  if (first > 1 && __ldg(keys + at - PIECE - 1) == key) return;
  for (int column = threadIdx.x % lanes * SIZE; column < width; column += lanes * SIZE) {
    float* row = dtable + (size_t)key * width + column;
    Vector<SIZE> sum = vector_at<SIZE>(row);
    bool more = true;
    for (int start = first; more; start += 2 * IN_FLIGHT) {
      Vector<SIZE> rows[2 * IN_FLIGHT] = {};
#pragma unroll
      for (int k = 0; k < 2 * IN_FLIGHT; ++k) {
        more = (start + k) * PIECE < total && __ldg(keys + (start + k) * PIECE) == key;
        if (more) rows[k] = vector_at<SIZE>(parts + (size_t)(start + k) * width + column);
      }
#pragma unroll
      for (int k = 0; k < 2 * IN_FLIGHT; ++k)
#pragma unroll
        for (int e = 0; e < SIZE; ++e) sum.v[e] += rows[k].v[e];
    }
    *reinterpret_cast<Vector<SIZE>*>(row) = sum;
  }
}

// The whole gradient of a table of few rows, in one order: grid (V, ceil(W / (32 SIZE))). Every warp looks for the row in a
// part of the positions. Shared memory: float[blockDim.x * SIZE].
constexpr int LOOKED_AT = 8;  // ids at a time

template <int SIZE>
__device__ __forceinline__ void sum_table(const int* __restrict__ ids, const float* __restrict__ shares,
                                          const float* __restrict__ dy, float* __restrict__ dtable, int total,
                                          int positions, int width, int padding) {
  DYNAMIC_SHARED(float, sums);
  const int row = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int first = blockIdx.y * 32 * SIZE, column = first + lane * SIZE;
  Vector<SIZE> sum = {};
  if (row != padding)
    for (int start = warp * LOOKED_AT; start < total; start += warps * LOOKED_AT) {
      int found[LOOKED_AT];
#pragma unroll
      for (int k = 0; k < LOOKED_AT; ++k) found[k] = start + k < total ? __ldg(ids + start + k) : -1;
#pragma unroll
      for (int k = 0; k < LOOKED_AT; ++k)
        if (found[k] == row && column < width) {
          const int sample = (start + k) / positions;
          const float share = __ldg(shares + sample);
          const Vector<SIZE> x = vector_at<SIZE>(dy + (size_t)sample * width + column);
#pragma unroll
          for (int e = 0; e < SIZE; ++e) sum.v[e] = fmaf(x.v[e], share, sum.v[e]);
        }
    }
#pragma unroll
  for (int e = 0; e < SIZE; ++e) sums[threadIdx.x * SIZE + e] = sum.v[e];
  __syncthreads();
  for (int e = threadIdx.x; e < 32 * SIZE && first + e < width; e += blockDim.x) {
    float all = 0.f;
    for (int k = 0; k < warps; ++k) all += sums[k * 32 * SIZE + e];
    dtable[(size_t)row * width + first + e] = all;
  }
}

// Copy the row of each of `total` positions to y (total, W), one group of lanes for each.
template <int SIZE, class T>
__device__ __forceinline__ void gather(const int* __restrict__ ids, const T* __restrict__ table, T* __restrict__ y,
                                       int total, int width, int lanes) {
  const int at = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
  if (at >= total) return;
  const T* row = table + (size_t)__ldg(ids + at) * width;
  for (int column = threadIdx.x % lanes * SIZE; column < width; column += lanes * SIZE)
    *reinterpret_cast<Vector<SIZE, T>*>(y + (size_t)at * width + column) = vector_at<SIZE>(row + column);
}

// Descend along the gradient of the rows that a step touched, and clear it if asked to. One group of lanes for each of
// the `total` positions; the first to negate a row's stamp has the row; without stamps each position has its own.
template <int SIZE>
__device__ __forceinline__ void descend(float* __restrict__ p, const int* __restrict__ ids, float* __restrict__ values,
                                        int* __restrict__ stamps, const int* __restrict__ step,
                                        const float* __restrict__ rate, int total, int width, int lanes, int clear) {
  const int at = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes, lane = threadIdx.x % lanes;
  const int id = at < total ? __ldg(ids + at) : 0, now = __ldg(step);
  int mine = at < total && lane == 0 && (!stamps || atomicCAS(stamps + id, now, -now) == now);
  mine = __shfl_sync(~0u, mine, threadIdx.x % 32 - lane);
  if (!mine) return;
  const float lr = __ldg(rate);
  for (int column = lane * SIZE; column < width; column += lanes * SIZE) {
    const size_t i = (size_t)id * width + column;
    const Vector<SIZE> g = vector_at<SIZE>(values + i);
    Vector<SIZE> moved = vector_at<SIZE>(p + i);
#pragma unroll
    for (int e = 0; e < SIZE; ++e) moved.v[e] -= lr * g.v[e];
    *reinterpret_cast<Vector<SIZE>*>(p + i) = moved;
    if (clear) *reinterpret_cast<Vector<SIZE>*>(values + i) = Vector<SIZE>{};
  }
}

#define FORWARD(SIZE, T, NAMED)                                                                                        \
  extern "C" __global__ void __launch_bounds__(1024) average_##NAMED(                                                  \
      const int* ids, const T* table, T* y, float* shares, int positions, int width, int padding, int lanes) {         \
    average<SIZE>(ids, table, y, shares, positions, width, padding, lanes);                                            \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) gather_##NAMED(const int* ids, const T* table, T* y, int total,    \
                                                                   int width, int lanes) {                             \
    gather<SIZE>(ids, table, y, total, width, lanes);                                                                  \
  }
#define HALVES(SIZE)                            \
  FORWARD(SIZE, Float16, float16_##SIZE)        \
  FORWARD(SIZE, BFloat16, bfloat16_##SIZE)
HALVES(1)
HALVES(2)
HALVES(4)
HALVES(8)

#define KERNELS(SIZE)                                                                                                  \
  FORWARD(SIZE, float, SIZE)                                                                                           \
  extern "C" __global__ void __launch_bounds__(256) scatter_##SIZE(                                                    \
      const int* ids, const float* shares, const float* dy, float* dtable, int* touched, int* stamps, const int* step, \
      int total, int positions, int width, int padding, int lanes, int longest) {                                      \
    scatter<SIZE>(ids, shares, dy, dtable, touched, stamps, step, total, positions, width, padding, lanes, longest);   \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) sum_runs_##SIZE(                                                   \
      const int* order, const int* keys, const float* shares, const float* dy, float* dtable, float* parts,            \
      int* stamps, const int* step, int total, int positions, int width, int padding, int lanes) {                     \
    sum_runs<SIZE>(order, keys, shares, dy, dtable, parts, stamps, step, total, positions, width, padding, lanes);     \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256, 1) join_runs_##SIZE(                                               \
      const int* keys, const float* parts, float* dtable, int total, int width, int padding, int lanes) {              \
    join_runs<SIZE>(keys, parts, dtable, total, width, padding, lanes);                                                \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) descend_##SIZE(                                                    \
      float* p, const int* ids, float* values, int* stamps, const int* step, const float* rate, int total, int width,  \
      int lanes, int clear) {                                                                                          \
    descend<SIZE>(p, ids, values, stamps, step, rate, total, width, lanes, clear);                                     \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) sum_table_##SIZE(                                                  \
      const int* ids, const float* shares, const float* dy, float* dtable, int total, int positions, int width,        \
      int padding) {                                                                                                   \
    sum_table<SIZE>(ids, shares, dy, dtable, total, positions, width, padding);                                        \
  }
KERNELS(1)
KERNELS(2)
KERNELS(4)

#ifdef EMULATED
EMULATE(average_1)
EMULATE(average_2)
EMULATE(average_4)
EMULATE(average_float16_1)
EMULATE(average_float16_2)
EMULATE(average_float16_4)
EMULATE(average_float16_8)
EMULATE(average_bfloat16_1)
EMULATE(average_bfloat16_2)
EMULATE(average_bfloat16_4)
EMULATE(average_bfloat16_8)
EMULATE(scatter_1)
EMULATE(scatter_2)
EMULATE(scatter_4)
EMULATE(sum_runs_1)
EMULATE(sum_runs_2)
EMULATE(sum_runs_4)
EMULATE(join_runs_1)
EMULATE(join_runs_2)
EMULATE(join_runs_4)
EMULATE(sum_table_1)
EMULATE(sum_table_2)
EMULATE(sum_table_4)
EMULATE(gather_1)
EMULATE(gather_2)
EMULATE(gather_4)
EMULATE(gather_float16_1)
EMULATE(gather_float16_2)
EMULATE(gather_float16_4)
EMULATE(gather_float16_8)
EMULATE(gather_bfloat16_1)
EMULATE(gather_bfloat16_2)
EMULATE(gather_bfloat16_4)
EMULATE(gather_bfloat16_8)
EMULATE(descend_1)
EMULATE(descend_2)
EMULATE(descend_4)
#endif
