// The mean of the rows of a table that each sample names, and its gradient: by atomics, or by runs of equal ids.
//
// `lanes` threads (8, 16 or 32) share a row, each with vectors of 1, 2 or 4 floats; the kernels end in that number. The
// width of a table must be a multiple of it. Positions that hold `padding` are left out; -1 leaves out none.
// Axes: N samples, T positions, V rows of the table, W floats of a row (`width`).
#ifdef EMULATED
#include "emulation.h"
#else
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

template <int SIZE>
struct __attribute__((aligned(4 * SIZE))) Vector {
  float v[SIZE];
};

template <int SIZE>
__device__ __forceinline__ Vector<SIZE> vector_at(const float* p) {
  return *reinterpret_cast<const Vector<SIZE>*>(p);
}

constexpr int IN_FLIGHT = 4;  // rows that a group of lanes reads before it adds them up

// Grid N. Leaves the mean in y (N, W) and in shares (N) what a position contributes to it: 1 / positions that count.
// Shared memory: float[blockDim.x * SIZE], int[blockDim.x / lanes]. All sums have a fixed order.
template <int SIZE>
__device__ __forceinline__ void average(const int* __restrict__ ids, const float* __restrict__ table,
                                        float* __restrict__ y, float* __restrict__ shares, int positions, int width,
                                        int padding, int lanes) {
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
        Vector<SIZE> rows[IN_FLIGHT] = {};
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k) {
          const int at = t + k * groups, id = at < positions ? __ldg(ids + at) : padding;
          if (at < positions && id != padding) rows[k] = vector_at<SIZE>(table + (size_t)id * width + column);
        }
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k)
#pragma unroll
          for (int e = 0; e < SIZE; ++e) sum[e] += rows[k].v[e];
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
      y[(size_t)blockIdx.x * width + start + e] = mean * share;
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

// Add the gradient of every position to its row of dtable (V, W), which holds zeros, in whatever order they come.
// One group of lanes for each of the `total` = N T positions.
template <int SIZE>
__device__ __forceinline__ void scatter(const int* __restrict__ ids, const float* __restrict__ shares,
                                        const float* __restrict__ dy, float* __restrict__ dtable, int total,
                                        int positions, int width, int padding, int lanes) {
  const int at = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
  if (at >= total) return;
  const int id = __ldg(ids + at), sample = at / positions;
  if (id == padding) return;
  const float share = __ldg(shares + sample);
  for (int column = threadIdx.x % lanes * SIZE; column < width; column += lanes * SIZE) {
    Vector<SIZE> x = vector_at<SIZE>(dy + (size_t)sample * width + column);
#pragma unroll
    for (int e = 0; e < SIZE; ++e) x.v[e] *= share;
    add_to(dtable + (size_t)id * width + column, x);
  }
}

// The same with one order of every sum. `order` (N T) lists the positions by id, `slots` (N T) the row of `rows` for each
// of them in that order: the id itself for a dense gradient, the number of the run for its rows, -1 for nothing.
// One group of lanes for each position; the one at the head of a run adds up the run.
template <int SIZE>
__device__ __forceinline__ void sum_runs(const int* __restrict__ order, const int* __restrict__ slots,
                                         const float* __restrict__ shares, const float* __restrict__ dy,
                                         float* __restrict__ rows, int total, int positions, int width, int lanes) {
  const int head = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
  if (head >= total) return;
  const int slot = __ldg(slots + head);
  if (slot < 0 || (head > 0 && __ldg(slots + head - 1) == slot)) return;
  for (int column = threadIdx.x % lanes * SIZE; column < width; column += lanes * SIZE) {
    Vector<SIZE> sum = {};
    for (int k = head; k < total && __ldg(slots + k) == slot; ++k) {
      const int sample = __ldg(order + k) / positions;
      const float share = __ldg(shares + sample);
      const Vector<SIZE> x = vector_at<SIZE>(dy + (size_t)sample * width + column);
#pragma unroll
      for (int e = 0; e < SIZE; ++e) sum.v[e] = fmaf(x.v[e], share, sum.v[e]);
    }
    *reinterpret_cast<Vector<SIZE>*>(rows + (size_t)slot * width + column) = sum;
  }
}

#define KERNELS(SIZE)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(1024) average_##SIZE(                                                   \
      const int* ids, const float* table, float* y, float* shares, int positions, int width, int padding, int lanes) { \
    average<SIZE>(ids, table, y, shares, positions, width, padding, lanes);                                            \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) scatter_##SIZE(                                                    \
      const int* ids, const float* shares, const float* dy, float* dtable, int total, int positions, int width,        \
      int padding, int lanes) {                                                                                        \
    scatter<SIZE>(ids, shares, dy, dtable, total, positions, width, padding, lanes);                                   \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) sum_runs_##SIZE(                                                   \
      const int* order, const int* slots, const float* shares, const float* dy, float* rows, int total, int positions, \
      int width, int lanes) {                                                                                          \
    sum_runs<SIZE>(order, slots, shares, dy, rows, total, positions, width, lanes);                                    \
  }
KERNELS(1)
KERNELS(2)
KERNELS(4)

#ifdef EMULATED
EMULATE(average_1)
EMULATE(average_2)
EMULATE(average_4)
EMULATE(scatter_1)
EMULATE(scatter_2)
EMULATE(scatter_4)
EMULATE(sum_runs_1)
EMULATE(sum_runs_2)
EMULATE(sum_runs_4)
#endif
